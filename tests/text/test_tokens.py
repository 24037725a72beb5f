"""Tokens are those of the tokenizer, cut at the length, made once and shared by whoever asks."""

from __future__ import annotations

import gzip
import logging
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import normalizers
from transformers import AutoTokenizer, BertJapaneseTokenizer, PreTrainedTokenizerFast

import diffcse_scale.text.tokens
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.recipe import DataRecipe
from diffcse_scale.text.tokens import TokenizedCorpus, tokenize
from tests.support.text_material import WORDS, make_tokenizer, rows, sentence

MakeRecipe = Callable[..., DataRecipe]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(sentence(index) for index in range(60)))
    return path


@pytest.fixture
def forbid_work(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, reading text is an error."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the cache was not used")

    return lambda: monkeypatch.setattr(diffcse_scale.text.tokens, "read_corpus", refuse)


@pytest.mark.parametrize("max_length", [5, 9, 32])
def test_tokens_are_what_the_tokenizer_truncates_to(
    path: Path, recipe: MakeRecipe, tokenizer: PreTrainedTokenizerFast, max_length: int
) -> None:
    tokens = tokenize(recipe(path, max_length=max_length), [tokenizer])
    sentences = path.read_text().split("\n")
    assert rows(tokens) == tokenizer(sentences, truncation=True, max_length=max_length)["input_ids"]
    assert tokens.truncated == sum(len(text.split()) + 2 > max_length for text in sentences)
    assert tokens.lengths().tolist() == [len(row) for row in rows(tokens)]


@pytest.mark.parametrize("max_length", [3, 9])
def test_a_tokenizer_that_keeps_the_end_of_a_text_keeps_it_in_training(
    path: Path, recipe: MakeRecipe, max_length: int
) -> None:
    right, left = make_tokenizer(WORDS), make_tokenizer(WORDS)
    left.truncation_side = "left"
    begun, ended = (tokenize(recipe(path, max_length=max_length), [tokenizer]) for tokenizer in (right, left))
    expected = left(path.read_text().split("\n"), truncation=True, max_length=max_length)["input_ids"]
    assert rows(ended) == [ids for index, ids in enumerate(expected) if ids not in expected[:index]]
    assert rows(ended) != rows(begun)


@pytest.mark.parametrize("columns", [1, 3])
def test_the_longest_view_of_each_row_is_known(
    corpora: dict[int, TokenizedCorpus], tmp_path: Path, columns: int
) -> None:
    tokens = corpora[columns]
    expected = np.max([tokens.lengths(view) for view in range(tokens.views)], axis=0)
    assert tokens.longest().tolist() == expected.tolist()
    assert tokens.longest().dtype == np.uint8  # rows of at most 32 tokens
    assert isinstance(tokens.longest().base, np.memmap)  # all processes of a machine have it once
    earlier = shutil.copytree(tokens._folder, tmp_path / "earlier")
    (earlier / "longest_0.npy").unlink()
    assert TokenizedCorpus(earlier).longest().tolist() == expected.tolist()


def test_several_processes_give_the_same_as_one(
    tmp_path: Path, recipe: MakeRecipe, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = tmp_path / "long.txt"
    path.write_text("\n".join(sentence(index) for index in range(10_500)))
    one = tokenize(recipe(path, workers=1), [tokenizer])
    two = tokenize(recipe(path, workers=2, cache_dir=str(tmp_path / "other")), [tokenizer])
    assert rows(one) == rows(two) == tokenizer(path.read_text().split("\n"))["input_ids"]


def test_one_column_is_its_own_second_view_and_pairs_and_triples_have_theirs(
    corpora: dict[int, TokenizedCorpus], tokenizer: PreTrainedTokenizerFast
) -> None:
    assert [corpora[columns].views for columns in (1, 2, 3)] == [2, 2, 3]
    assert rows(corpora[1], 0) == rows(corpora[1], 1)
    for columns in (2, 3):
        for view in range(columns):
            sentences = [sentence(index + 101 * view) for index in range(101)]
            assert rows(corpora[columns], view) == tokenizer(sentences)["input_ids"]


def test_padded_rows_are_rows_filled_up(corpora: dict[int, TokenizedCorpus]) -> None:
    indices = np.array([100, 3, 3, 50])
    padded = corpora[2].padded(indices, 1, 20, -7)
    assert padded.dtype == np.int64
    expected = [row.tolist() + [-7] * (20 - len(row)) for row in corpora[2].rows(indices, 1)]
    assert padded.tolist() == expected


def test_sentences_without_a_token_are_left_out_and_counted(
    tmp_path: Path, recipe: MakeRecipe, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("w1\n\u200b\nw2\n")  # a zero-width space is no white space, but the tokenizer drops it
    tokens = tokenize(recipe(path), [tokenizer])
    assert rows(tokens) == [[2, 6, 3], [2, 7, 3]]
    assert tokens.without_tokens == 1


def test_truncation_is_reported_once_and_only_by_the_main_process(
    path: Path, recipe: MakeRecipe, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "diffcse_scale"):
        tokenize(recipe(path, max_length=13), [tokenizer], main=False)
        assert not caplog.records
        tokenize(recipe(path, max_length=13), [tokenizer])
    (record,) = caplog.records
    # of 60 sentences of 4 to 15 tokens each length is there 5 times
    dropped = "60 rows read, 60 kept; dropped: none; 10 sentences (16.7%) truncated to 13 tokens"
    assert record.message.endswith(f"{dropped}; 0% of the tokens unknown.")


def test_the_second_start_only_reads(
    path: Path, recipe: MakeRecipe, tokenizer: PreTrainedTokenizerFast, forbid_work: Callable[[], None]
) -> None:
    first = tokenize(recipe(path), [tokenizer])
    forbid_work()
    # truncation and padding are state that a call leaves in a tokenizer, not what it is
    tokenizer(["w1 w2 w3"], truncation=True, max_length=4, padding="max_length")
    second = tokenize(recipe(path), [tokenizer])
    assert second.fingerprint == first.fingerprint
    assert rows(second) == rows(first)
    assert second.report == first.report


@pytest.mark.parametrize("change", ["content", "same size", "length", "limit", "strict", "tokenizer"])
def test_the_cache_is_renewed_when_anything_changes(
    path: Path, recipe: MakeRecipe, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, change: str
) -> None:
    first = tokenize(recipe(path), [tokenizer])
    options = {"length": {"max_length": 6}, "limit": {"limit": 7}, "strict": {"strict": True}}.get(change, {})
    if change == "content":
        path.write_text("w1 w2\nw3 w4\n")
    if change == "same size":
        path.write_text(path.read_text().replace("w1 ", "w2 "))
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    other = make_tokenizer(WORDS[::-1]) if change == "tokenizer" else tokenizer
    second = tokenize(recipe(path, **options), [other])
    assert len(list((tmp_path / "cache").glob("tokens-*[!k]"))) == 2
    # the fingerprint is of the tokens alone
    assert (second.fingerprint != first.fingerprint) == (rows(second) != rows(first)) == (change != "strict")


def test_the_settings_of_a_tokenizer_in_python_belong_to_it(
    path: Path,
    recipe: MakeRecipe,
    tmp_path: Path,
    forbid_work: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither its vocabulary nor its representation says that it spells words in small letters."""
    path.write_text("W1 w2\nw3 W4\n")
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    for lower in (True, False):
        BertJapaneseTokenizer(
            str(vocabulary), do_lower_case=lower, word_tokenizer_type="basic", subword_tokenizer_type="wordpiece"
        ).save_pretrained(tmp_path / "model")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
        tokens = tokenize(recipe(path), [tokenizer])
        assert rows(tokens) == tokenizer(path.read_text().splitlines())["input_ids"]
    forbid_work()
    for offline in (True, False):  # text may be prepared with a network, and read where there is none
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        again = AutoTokenizer.from_pretrained(tmp_path / "model")
        assert again.init_kwargs["local_files_only"] == offline
        assert rows(tokenize(recipe(path), [again])) == rows(tokens)


def test_an_interrupted_start_is_begun_again(
    path: Path, recipe: MakeRecipe, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(diffcse_scale.text.tokens, "_write_column", _interrupt)
        tokenize(recipe(path), [tokenizer])
    assert len(tokenize(recipe(path), [tokenizer])) == 60


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_processes_that_start_at_once_share_one_preparation(path: Path, recipe: MakeRecipe, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    arguments = (recipe(path), results, tmp_path / "prepared")
    processes = [context.Process(target=_prepare, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert len({results.get() for _ in processes}) == 1
    assert (tmp_path / "prepared").read_text() == "once\n"


def _prepare(data: DataRecipe, results: multiprocessing.SimpleQueue[str], prepared: Path) -> None:
    write = diffcse_scale.text.tokens._write

    def counted(*arguments: object) -> None:
        with prepared.open("a") as lines:
            lines.write("once\n")
        write(*arguments)  # type: ignore[arg-type]

    diffcse_scale.text.tokens._write = counted
    results.put(str(rows(tokenize(data, [make_tokenizer(WORDS)]))))


def test_the_cache_may_be_named_by_the_environment(
    path: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFCSE_CACHE", str(tmp_path / "elsewhere"))
    tokenize(DataRecipe.model_validate({"files": str(path), "workers": 1}), [tokenizer])
    assert any((tmp_path / "elsewhere").glob("tokens-*"))


def test_a_length_that_special_tokens_fill_is_refused(
    path: Path, recipe: MakeRecipe, tokenizer: PreTrainedTokenizerFast
) -> None:
    data = recipe(path).model_copy(update={"max_length": 2})
    with pytest.raises(InputError, match="max_length = 2 leaves no room"):
        tokenize(data, [tokenizer])


@pytest.mark.realdata
def test_real_tokens_are_those_of_the_models_tokenizer(
    recipe: MakeRecipe, data_folder: Path, models_folder: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models_folder / "wiki-mini")
    (shard, *_) = sorted((data_folder / "corpus").glob("*.txt.gz"))
    with gzip.open(shard, "rt", encoding="utf-8") as lines:
        sentences = [line.rstrip("\n") for line, _ in zip(lines, range(20_000), strict=False)]
    (tmp_path / "head.txt").write_text("\n".join(sentences))
    tokens = tokenize(recipe(tmp_path / "head.txt", workers=2), [tokenizer])
    assert len(tokens) == 20_000
    for start in (0, 10_000, 19_900):
        expected = tokenizer(sentences[start : start + 100], truncation=True, max_length=32)["input_ids"]
        assert [row.tolist() for row in tokens.rows(np.arange(start, start + 100))] == expected


def test_a_row_in_which_one_of_two_tokenizers_finds_nothing_is_left_out_of_both_streams(
    tmp_path: Path, recipe: MakeRecipe, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("w1 w2\n\u200b\nw3\n", encoding="utf-8")
    blind = make_tokenizer(WORDS)
    blind.backend_tokenizer.normalizer = normalizers.Replace("w3", "")
    tokens = tokenize(recipe(path), [tokenizer, blind])
    assert len(tokens) == 1
    for stream in range(2):
        assert [ids.tolist() for ids in tokens.rows(np.arange(1), stream=stream)] == [[2, 6, 7, 3]]
