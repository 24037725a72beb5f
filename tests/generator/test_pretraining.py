"""Masked-LM training from raw text: on a toy corpus, in seconds."""

from __future__ import annotations

import errno
import functools
import json
import math
import os
import shlex
import signal
import stat

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)
from typer.testing import CliRunner

from diffcse_scale.cli import app
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.foundation.finite import NotFinite
from diffcse_scale.foundation.patience import until_written
from diffcse_scale.generator import pretraining as module
from diffcse_scale.generator.masked_lm_trainer import masked_logits
from diffcse_scale.generator.pretraining import pretrain_generator
from tests.support.file_events import FileEvents, fail
from tests.support.files import write_files
from tests.support.generators import saved_weights
from tests.support.launch import ROOT, Ranks
from tests.support.tiny_models import tiny_tokenizer


def test_raw_text_becomes_a_masked_language_model_that_knows_it(options, tmp_path):
    """Each sentence repeats one of ten words, so a masked token follows from the others and not from frequency."""
    words = ["north", "south", "east", "west", "red", "green", "blue", "black", "white", "grey"]
    text = [" ".join([words[n % 10]] * (3 + n // 10 % 20)) + f" , {n}" for n in range(500)]
    (tmp_path / "corpus.txt").write_text("\n".join(text))
    record = pretrain_generator(options(steps=100, vocab_size=150, dropout=0, learning_rate=1e-2))

    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.vocab_size == model.config.vocab_size <= 150
    assert model.config.hidden_dropout_prob == 0.1, "dropout 0 belongs to this training, not to the model"
    assert record["held_out_before"]["accuracy"] < 0.1
    assert record["held_out_after"]["accuracy"] > 0.4
    assert record["loss"][-1]["loss"] < 0.7 * record["loss"][0]["loss"]
    assert record["sentences"] == {"train": 450, "held_out": 50}
    assert json.loads((tmp_path / "out" / "training_record.json").read_text()) == record
    assert "--hidden 32" in record["command"] and "--bf16" not in record["command"]
    assert not [*tmp_path.glob(".out*"), *tmp_path.glob("out.*")], "no partial output stays behind"


def test_the_first_evaluation_runs_where_training_will(options, monkeypatch):
    elsewhere, seen = torch.device("meta"), []

    def evaluation(model, *_):
        seen.append(model.device)
        raise KeyboardInterrupt

    monkeypatch.setattr(module.TrainingArguments, "device", property(lambda self: elsewhere))
    monkeypatch.setattr(module, "held_out_accuracy", evaluation)
    with pytest.raises(KeyboardInterrupt):
        pretrain_generator(options())
    assert seen == [elsewhere]


def test_a_model_from_scratch_begins_as_its_seed_says_whatever_was_drawn_before(options):
    tokenizer, words = tiny_tokenizer(), "embeddings.word_embeddings.weight"
    first, second, other = (
        module._model(options(seed=seed), tokenizer).base_model.state_dict()[words] for seed in (1, 1, 2)
    )
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_same_seed_same_saved_weights(options, tmp_path):
    pretrain_generator(options(output=str(tmp_path / "a")))
    pretrain_generator(options(output=str(tmp_path / "b")))
    pretrain_generator(options(output=str(tmp_path / "c"), seed=7))
    a, b, c = (saved_weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)
    vocabularies = [AutoTokenizer.from_pretrained(tmp_path / name).get_vocab() for name in "abc"]
    assert vocabularies[0] == vocabularies[1] == vocabularies[2], "the vocabulary is a matter of the text alone"


def test_vocabulary_and_tokens_are_made_once_and_then_read(options, tmp_path):
    """As by the ranks of one training: whoever comes second finds them in the cache."""
    made = []
    for name in ("first", "second"):
        pretrain_generator(options(output=str(tmp_path / name), steps=1))
        kept = [*(tmp_path / "cache").glob("wordpiece-*.json"), *(tmp_path / "cache").glob("tokens-*/*")]
        made.append({file: file.stat().st_mtime_ns for file in kept})
    assert made[0] == made[1] and len(made[0]) == 6  # a vocabulary; ids, offsets, lengths, facts and their list
    pretrain_generator(options(output=str(tmp_path / "third"), steps=1, vocab_size=300))
    assert len(list((tmp_path / "cache").glob("wordpiece-*.json"))) == 2


TELLS_OF_MAPS = """
import datasets

original = datasets.Dataset.map


def told(*arguments, **options):
    print("this rank maps", flush=True)
    return original(*arguments, **options)


datasets.Dataset.map = told
from diffcse_scale.cli import main

main()
"""


@pytest.mark.slow
def test_of_two_ranks_one_makes_vocabulary_and_tokens(options, tmp_path):
    arguments = shlex.split(options(steps=2).command())[1:]
    # without it transformers takes ranks on CPUs for programs of their own
    variables = {"DIFFCSE_CACHE": str(tmp_path / "ranks"), "ACCELERATE_USE_CPU": "true"}
    program = tmp_path / "program.py"
    program.write_text(TELLS_OF_MAPS)
    with Ranks(tmp_path / "outputs", *arguments, program=program, **variables) as ranks:
        assert ranks.wait(300) == [0, 0], ranks.output()
    assert sum("this rank maps" in output.read_text() for output in ranks.outputs) == 1
    assert len(list((tmp_path / "ranks").glob("tokens-*"))) == 2, "the tokens and their lock"
    record = json.loads((tmp_path / "out" / "training_record.json").read_text())
    assert record["sentences"] == {"train": 450, "held_out": 50}


@pytest.mark.slow
def test_of_two_ranks_that_train_one_that_is_asked_stops_both(options, tmp_path):
    arguments = shlex.split(options(steps=100_000).command())[1:]
    variables = {"DIFFCSE_CACHE": str(tmp_path / "ranks"), "ACCELERATE_USE_CPU": "true"}
    program = ROOT / "diffcse_scale" / "__main__.py"
    with Ranks(tmp_path / "outputs", *arguments, program=program, **variables) as ranks:
        ranks.wait_for(lambda: "loss " in ranks.output())
        ranks.processes[1].send_signal(signal.SIGTERM)
        assert ranks.wait(100) == [ExitCode.STOPPED] * 2, ranks.output()
    assert list((tmp_path / "out.unfinished").glob("step-*"))


def test_training_continues_where_a_checkpoint_stopped(options, tmp_path):
    first = pretrain_generator(options(output=str(tmp_path / "first"), steps=30))
    second = pretrain_generator(options(base=str(tmp_path / "first"), steps=30))
    assert second["held_out_before"] == first["held_out_after"]
    assert second["held_out_after"]["loss"] < first["held_out_after"]["loss"]
    assert (tmp_path / "out" / "tokenizer.json").read_text() == (tmp_path / "first" / "tokenizer.json").read_text()


def test_the_recorded_command_is_a_command_line_that_does_the_same(options, tmp_path):
    wanted = options(steps=1, languages="de, fr", lowercase=False, store_bf16=True, dropout=0)
    name, *arguments = shlex.split(wanted.command())
    result = CliRunner().invoke(app, arguments)
    assert name == "diffcse-scale" and result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / "training_record.json").read_text())
    assert record["options"] == wanted.model_dump(mode="json")
    assert record["command"] == wanted.command()
    assert record["vocabulary"] == {"lowercase": False, "accents": True, "why": "--languages is de,fr"}


def test_an_output_that_holds_something_is_not_touched(options, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("keep")
    with pytest.raises(InputError, match=r"out already exists; choose another"):
        pretrain_generator(options())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]
    (tmp_path / "out" / "precious").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    pretrain_generator(options(steps=1, output=str(tmp_path / "link")))  # an empty folder is nobody's
    assert (tmp_path / "link").is_symlink() and (tmp_path / "out" / "model.safetensors").is_file()


def test_a_given_tokenizer_is_used_as_it_is(options, tmp_path):
    pretrain_generator(options(output=str(tmp_path / "first"), steps=1))
    pretrain_generator(options(tokenizer=str(tmp_path / "first"), steps=1))
    given, used = (AutoTokenizer.from_pretrained(tmp_path / name).get_vocab() for name in ("first", "out"))
    assert given == used


def test_bf16_storage_halves_the_file_and_loads_as_float32(options, tmp_path):
    pretrain_generator(options(output=str(tmp_path / "full")))
    pretrain_generator(options(store_bf16=True))
    full, half = (AutoModelForMaskedLM.from_pretrained(tmp_path / name) for name in ("full", "out"))
    assert half.dtype == torch.float32
    for one, other in zip(full.parameters(), half.parameters(), strict=True):
        assert torch.equal(one.bfloat16().float(), other)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "out")]
    assert sizes[1] < 0.55 * sizes[0]


@pytest.mark.parametrize("bf16", [False, True])
def test_the_umask_says_who_may_read_the_generator(options, tmp_path, bf16):
    before = os.umask(0o027)
    try:
        pretrain_generator(options(steps=1, store_bf16=bf16))
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "out").iterdir()} == {0o640}


def test_a_time_limit_ends_the_training(options):
    assert pretrain_generator(options(steps=100_000, seconds=0.5))["steps"] < 2000


def test_a_time_limit_is_for_one_process(options, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="seconds limits a single process only; give steps to train with several"):
        pretrain_generator(options(seconds=1))


def test_rare_characters_do_not_fill_the_vocabulary(options, tmp_path):
    with (tmp_path / "corpus.txt").open("a") as corpus:
        corpus.write("\n\u2603 \u4e2d \u03a9")
    pretrain_generator(options(steps=1, output=str(tmp_path / "most")))
    pretrain_generator(options(steps=1, output=str(tmp_path / "all"), character_coverage=1.0))
    most, every = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("most", "all"))
    assert most.tokenize("the \u2603") == ["the", "[UNK]"]
    assert every.tokenize("the \u2603") == ["the", "\u2603"]


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_loss_on_masked_tokens_is_the_models_own(family):
    torch.manual_seed(0)
    size = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"intermediate_size": 32, "max_position_embeddings": 20}
    model = BertForMaskedLM(BertConfig(**size)) if family == "bert" else RobertaForMaskedLM(RobertaConfig(**size))
    model.eval()
    ids = torch.randint(5, 50, (3, 7))
    labels = torch.where(torch.rand(3, 7) < 0.4, ids, -100)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = model(**inputs, labels=labels).loss
    logits = masked_logits(model, model, inputs, labels != -100)
    assert logits.shape == ((labels != -100).sum(), 50)
    loss = torch.nn.functional.cross_entropy(logits, labels[labels != -100])
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert model(**inputs).logits.shape == (3, 7, 50), "the hook is gone"


def test_a_batch_without_a_masked_token_is_no_disaster(options):
    record = pretrain_generator(options(masking_ratio=0.02, batch_size=1, steps=30, log_every=1))
    losses = [entry["loss"] for entry in record["loss"]]
    assert 0.0 in losses and all(map(math.isfinite, losses))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"heads": 3}, r"heads \(3\) must divide hidden \(32\)"),
        ({"max_length": 65}, r"max_length \(65\) is more than max_positions \(64\)"),
        ({"base": "embedded", "hidden": 64, "tokenizer": "x"}, "base brings its own size.*remove hidden, tokenizer"),
        ({"stepz": 3}, "stepz"),
        ({"tokenizer": "x", "languages": "de"}, "tokenizer brings its own vocabulary; remove languages"),
        ({"languages": "german"}, r"give codes of two or three small letters, as de or zh,ja, not 'german'"),
    ],
)
def test_options_that_contradict_are_refused(options, changed, message):
    with pytest.raises(ValidationError, match=message):
        options(**changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"held_out": 480}, r"has 500 sentences, but held_out \(480\) and one batch \(32\) need 512"),
        ({"files": "nowhere.txt"}, "nowhere.txt"),
        ({"base": "/nowhere/model"}, "/nowhere/model does not exist"),
        ({"base": "embedded", "max_length": 129}, "max_length = 129 is more than the 128 positions of embedded"),
    ],
)
def test_a_run_that_cannot_work_stops_and_writes_nothing(options, tmp_path, changed, message):
    with pytest.raises(InputError, match=message):
        pretrain_generator(options(**changed))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_model_that_has_diverged_is_not_written(options, tmp_path):
    with pytest.raises(NotFinite, match="not finite for the held-out sentences; lower learning_rate"):
        pretrain_generator(options(learning_rate=1e30, warmup=0))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_generator_that_cannot_be_written_at_once_is_kept_and_what_a_kill_left_is_not_shipped(
    options, tmp_path, monkeypatch, caplog
):
    write_files(tmp_path / ".out.partial", {"model-00001-of-00002.safetensors": b"of another model"})
    monkeypatch.setattr(module, "until_written", functools.partial(until_written, period=0))
    with FileEvents([tmp_path / ".out.partial"], fail(1, errno.ENOSPC, times=2), only="open"):
        pretrain_generator(options())
    assert "The trained generator cannot be written yet: " in caplog.text and "free disk space" in caplog.text
    assert load_file(tmp_path / "out" / "model.safetensors") and not (tmp_path / ".out.partial").exists()
    assert not list((tmp_path / "out").glob("model-0*"))
