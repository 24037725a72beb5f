"""What docs/bad_input.md says was given: each row as a command line with its files, or the test that gives it."""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pyarrow.parquet

from diffcse_scale import DiffCSE
from diffcse_scale.engine.config_file import load_deepspeed_config, named
from diffcse_scale.engine.configuration import complete_config
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.training.train_arguments import parse_arguments
from tests.fuzz.folders import model_files
from tests.support.command_line import diffcse_scale
from tests.support.files import write_files, yaml_bomb

Maker = Callable[[Path], str]
Files = Mapping[str, str | bytes]


def typed(*arguments: str, files: Files | None = None, variables: Mapping[str, str] | None = None) -> Maker:
    """`diffcse-scale ARGUMENTS` in a folder with these files: the sentence that is printed."""

    def make(folder: Path) -> str:
        write_files(folder, files or {})
        before = dict(os.environ)
        os.environ.update(variables or {})
        try:
            done = diffcse_scale(*arguments, cwd=folder)
        finally:
            os.environ.clear()
            os.environ.update(before)
        assert done.returncode == 2, done
        return _sentence(done.stderr)

    return make


def trained(*arguments: str) -> Maker:
    """`train.py ARGUMENTS`."""

    def make(folder: Path) -> str:
        said = io.StringIO()
        with redirect_stderr(said), suppress(SystemExit):
            parse_arguments(None, arguments)
        return _sentence(said.getvalue())

    return make


def raised(action: Callable[[], Any]) -> Maker:
    """The sentence of an error of the Python interface."""

    def make(folder: Path) -> str:
        try:
            action()
        except InputError as error:
            return str(error)
        raise AssertionError("it was accepted")

    return make


def recipe(*overrides: str, files: Files | None = None) -> Maker:
    """With the quickstart recipe."""
    return typed("recipe", "quickstart", *overrides, files=files)


def prepared(*overrides: str, files: Files | None = None) -> Maker:
    """The corpus of the quickstart recipe with these changes."""
    return typed("prepare", "data.workers=1", *overrides, files=files)


def deepspeed(text: str) -> Maker:
    """A DeepSpeed configuration `mine.json`, as training reads it."""

    def make(folder: Path) -> str:
        file = folder / "mine.json"
        file.write_text(text)

        def read() -> None:
            complete_config(load_deepspeed_config(file), load_recipe("quickstart"), 1, named(file))

        return raised(read)(folder)

    return make


def configured(devices: int, *overrides: str) -> Maker:
    """The quickstart recipe with these changes, on so many devices."""
    return raised(
        lambda: complete_config(load_deepspeed_config(None), load_recipe("quickstart", overrides), devices, "it")
    )


def evaluated(name: str, rows: str) -> Maker:
    """A file of graded pairs, with the embedded model."""
    model = str(Path(__file__).parents[2] / "diffcse_scale" / "embedded" / "backbone")
    return typed("evaluate", "--model", model, "--pooling", "mean", "--data", name, files={name: rows})


def encoded(name: str, changes: Mapping[str, str | bytes | None]) -> Maker:
    """`encode` with a tiny model in the folder `name`, some of whose files are others, or missing."""

    def make(folder: Path) -> str:
        files = {f"{name}/{file}": content for file, content in {**model_files(), **changes}.items()}
        given = {file: content for file, content in files.items() if content is not None}
        command = ("encode", "--model", name, "--input", "a.txt", "--output", "out", "--devices", "cpu")
        return typed(*command, files={"a.txt": "one\ntwo\n", **given})(folder)

    return make


def _sentence(printed: str) -> str:
    (line,) = (line for line in printed.splitlines() if line.startswith("error: "))
    return line.removeprefix("error: ")


def _parquet(columns: dict[str, list[Any]], kind: pyarrow.DataType) -> bytes:
    sink = pyarrow.BufferOutputStream()
    table = pyarrow.table({name: pyarrow.array(values, kind) for name, values in columns.items()})
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue().to_pybytes()


SHEET = "".join(f"{number};Der Kunde {number} wartet.\n" for number in range(3))
TABLE = "id,question,answer\n" + "".join(f"{n},what is {n}?,it is {n}\n" for n in range(9))
DEEP = '{"text": "fine"}\n{"text": ' + "[" * 100_000 + "\n"
LENGTH_2 = json.dumps({"max_seq_length": 2})
POOLING_OF_WIDTH_7 = json.dumps({"embedding_dimension": 7, "pooling_mode": "mean"})
CHINESE = "老师在河边看书。\n学生在公园唱歌。\n"
PAIRS = "2.0\tone\ttwo\nx\tthree\tfour\n"


def texts(count: int, damaged: int) -> dict[str, bytes]:
    """Compressed files, one of which is cut."""
    whole = gzip.compress(b"a sentence of no meaning\n" * 50)
    return {f"{number}.txt.gz": whole[:30] if number == damaged else whole for number in range(count)}


def _link_to_nowhere(folder: Path) -> str:
    (folder / "a.txt").symlink_to("nowhere")
    return prepared("data.files=*.txt", files={"b.txt": "one\ntwo\n"})(folder)


def _link_that_goes_back(folder: Path) -> str:
    (folder / "data" / "a").mkdir(parents=True)
    (folder / "data" / "a" / "back").symlink_to("..")
    return prepared("data.files=data/**/*.txt", files={"data/b.txt": "one\ntwo\n"})(folder)


# the first cell of a row to what gives its answer; a string is the test that does
GIVEN: dict[str, Maker | str] = {
    "`objective.temperatur=0.1`": recipe("objective.temperatur=0.1"),
    "`objective.temperature=-1`": recipe("objective.temperature=-1"),
    "`--recipe bert_base_st`": typed("prepare", "--recipe", "bert_base_st"),
    "`data.files=nowhere.txt`": prepared("data.files=nowhere.txt"),
    "`data.files=two.txt`, which has two lines": "text/test_batches.py",
    "`batch.sentences=4` on 8 devices": "text/test_batches.py",
    "`batch.chunk=1` on 3 devices": "text/test_batches.py",
    "`data.files=table.csv` without `data.columns`": prepared("data.files=table.csv", files={"table.csv": TABLE}),
    "a semicolon table in which some rows have more fields": prepared(
        "data.files=sheet.csv", files={"sheet.csv": "text;id\none;1\ntwo;2\nthree;3;4\n"}
    ),
    "a CSV file whose first row may be a header or a sentence": prepared(
        "data.files=sheet.csv", files={"sheet.csv": SHEET}
    ),
    "a CSV file of `sentence1`, `sentence2` and `score`, without `data.columns`": prepared(
        "data.files=graded.csv", files={"graded.csv": b"sentence1,sentence2,score\na,b,0\nc,d,5\n"}
    ),
    "a JSON file of `query`, and of `pos` and `neg` in lists, without `data.columns`": prepared(
        "data.files=flag.jsonl", files={"flag.jsonl": '{"query": "a", "pos": ["b"], "neg": ["c", "d"]}\n'}
    ),
    "a CSV file of `anchor`, `positive`, `negative_1` and `negative_2`, without `data.columns`": prepared(
        "data.files=mined.csv", files={"mined.csv": b"anchor,positive,negative_1,negative_2\na,b,c,d\n"}
    ),
    "`'data.files=[pairs.csv,more.txt]'`, pairs beside sentences": prepared(
        "data.files=[pairs.csv,more.txt]", files={"pairs.csv": b"anchor,positive\na,b\n", "more.txt": b"c\n"}
    ),
    "the same with `data.columns=text`": prepared(
        "data.files=sheet.csv", "data.columns=text", files={"sheet.csv": SHEET}
    ),
    "a .tsv file that pandas wrote, whose text has quotation marks or line ends": prepared(
        "data.files=pandas.tsv", files={"pandas.tsv": 'id\ttext\n1\t"He said ""yes""."\n2\t"two\nlines"\n'}
    ),
    "a CSV file with a blank before each quotation mark": prepared(
        "data.files=blanks.csv", files={"blanks.csv": 'id, text\n1, "A dog runs."\n2, "It rains."\n'}
    ),
    "two CSV files that were put together with their headers": prepared(
        "data.files=both.csv", files={"both.csv": "id,text\n1,A dog runs.\nid,text\n1,It rains.\n"}
    ),
    "`data.separator=;` and `data.files=sheet.txt`": prepared(
        "data.files=sheet.txt", "data.separator=;", files={"sheet.txt": SHEET}
    ),
    "`data.separator=;;`": recipe("data.separator=;;"),
    "an integer column called text": prepared(
        "data.files=numbers.parquet", files={"numbers.parquet": _parquet({"text": [1, 2]}, pyarrow.int64())}
    ),
    "a JSON array that is cut off": prepared(
        "data.files=cut.json", files={"cut.json": '[{"text": "one"}, {"text": "tw'}
    ),
    "JSON whose rows are in a list beside other text, as SQuAD's": prepared(
        "data.files=squad.json", files={"squad.json": '{"version": "1", "data": [{"text": "one"}, {"text": "two"}]}'}
    ),
    "JSON lines that are called .txt": prepared(
        "data.files=lines.txt", files={"lines.txt": '{"text": "one"}\n{"text": "two"}\n'}
    ),
    "JSON nested 100,000 deep in a line": prepared("data.files=deep.jsonl", files={"deep.jsonl": DEEP}),
    "a Parquet file without rows": prepared(
        "data.files=none.parquet", files={"none.parquet": _parquet({"text": []}, pyarrow.string())}
    ),
    "one damaged file among many": prepared("data.files=*.txt.gz", files=texts(6, damaged=4)),
    "an lz4, zip, xz or 7z file that is called .txt": prepared(
        "data.files=packed.txt", files={"packed.txt": b"\x04\x22\x4d\x18" + bytes(range(200))}
    ),
    "the address of a page about a file, which is HTML": prepared(
        "data.files=corpus.txt", files={"corpus.txt": "<!DOCTYPE html>\n<html>\n"}
    ),
    "a file of a repository that was cloned without Git LFS": prepared(
        "data.files=corpus.txt", files={"corpus.txt": "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n"}
    ),
    "`data.files=corpus`, where corpus.txt is": prepared("data.files=corpus", files={"corpus.txt": "one\n"}),
    "`model.encoder=nobody/nothing`, without a network": trained("model.encoder=nobody/nothing"),
    "`data.files=nobody/nothing`, without a network": "text/test_names.py",
    "a link among the files of a glob that leads nowhere": _link_to_nowhere,
    "`data/**/*.txt` with a link that leads back": _link_that_goes_back,
    "`data.files=<(zcat a.txt.gz)`, and wherever a file is read": "foundation/test_paths.py",
    "`data.files=~nosuchuser/a.txt`, and wherever a path is taken": prepared("data.files=~nosuchuser/a.txt"),
    "a name of more than 255 bytes, there too": prepared(f"data.files={'x' * 300}.txt"),
    "`--output` with a name in Latin-1, and wherever else a path is taken": "foundation/test_paths.py",
    "bytes that are not UTF-8, with `data.strict=true`": prepared(
        "data.files=broken.txt", "data.strict=true", files={"broken.txt": b"one\ntwo \xff\nthree\n"}
    ),
    "text in Latin-1, GB18030 or another encoding": prepared(
        "data.files=german.txt",
        files={"german.txt": "Die Straße ist schön.\nDer Weg ist gut.\nEs könnte sein.\n".encode("cp1252")},
    ),
    "`evaluation.data=pairs.tsv` with a word for a score": evaluated("pairs.tsv", PAIRS),
    "pairs in JSON or Parquet with bytes that are not UTF-8": evaluated(
        "pairs.jsonl",
        '{"score": 1, "sentence1": "a", "sentence2": "b"}\n{"score": 2, "sentence1": "c \\ud83d", "sentence2": "d"}\n',
    ),
    "pairs in a .tsv file that pandas wrote, whose text has quotation marks": evaluated(
        "pairs.tsv", '1\t"He said ""yes""."\tHe agreed.\n0\tIt rains.\tA cat sleeps.\n'
    ),
    "`evaluation.data=nli.csv` with premise, hypothesis and label": evaluated(
        "nli.csv", "premise,hypothesis,label\na,b,0\nc,d,2\n"
    ),
    "a transfer task whose first row is a header": "evaluation/test_transfer.py",
    "a decoder without dropout, `model.lora={rank: 16}`": "training/test_views.py",
    "`model.generator=...` with another vocabulary": "training/test_two_tokenizers.py",
    "`objective.edits=4` before anything was prepared": "generator/test_editing.py",
    "Chinese text and an English vocabulary": prepared("data.files=zh.txt", files={"zh.txt": CHINESE}),
    "`evaluation.data=same.tsv`, of which all scores are equal, or with a single pair": "training/test_development.py",
    "`evaluation.data=zh.tsv`, with an English vocabulary": "training/test_development.py",
    "a home folder that cannot be written, as `HOME=/dev/null`": "text/test_cache.py",
    "`data.cache_dir=two.txt`, a file": prepared(
        "data.files=two.txt", "data.cache_dir=two.txt", files={"two.txt": "one\ntwo\n"}
    ),
    "a cache on a full disk, also where it fills up meanwhile": "text/test_cache.py",
    "a cache that may only be read, in which the corpus is not prepared": "text/test_prepared.py",
    "a cache that is deleted while the corpus is prepared": "text/test_prepared.py",
    "`objective.edits=3`, and a version is damaged": "generator/test_editing.py",
    "`--resume` with another corpus, other development pairs or models": "runs/test_directory.py",
    "`--resume` of an earlier version's run whose corpus has sentences with the tokens of another": (
        "runs/test_directory.py"
    ),
    "`--resume --recipe` of an earlier version's run, without `objective.false_negatives`": "runs/test_older_recipe.py",
    "`--resume` of a run whose `recipe.yaml` is cut, or a report on it": "runs/test_directory.py",
    "`--resume` of a run whose best encoder is damaged, or its last steps": "training/test_best_model.py",
    "a disk that is full, failing or read-only in the middle of a run, a quota that is reached": (
        "supervision/test_ending.py"
    ),
    "`--resume` of a run whose `checkpoints/` is gone": "runs/test_directory.py",
    "`--output other`, a folder of something else": "runs/test_directory.py",
    "`name=64`": recipe("name=64"),
    "`name=a/b`": recipe("name=a/b"),
    "`batch.sentences.x=3`": recipe("batch.sentences.x=3"),
    "`objective.hard_negative_weight=1` and `data.columns=[a,b]`": recipe(
        "objective.hard_negative_weight=1", "data.columns=[a,b]"
    ),
    "`objective.condition=other` and `batch.sentences=3` on 2 devices": configured(
        2, "objective.condition=other", "batch.sentences=3"
    ),
    "`optimizer.learning_rate=inf`": recipe("optimizer.learning_rate=inf"),
    "`optimizer.betas=[1,2]`": recipe("optimizer.betas=[1,2]"),
    "`seed=` and 30 nines": recipe("seed=" + "9" * 30),
    "a recipe of aliases of aliases": typed("recipe", "mine.yaml", files={"mine.yaml": yaml_bomb(9)}),
    "a recipe in Latin-1": typed("recipe", "mine.yaml", files={"mine.yaml": "name: café".encode("latin-1")}),
    '`--output ""`': typed("encode", "--model", "m", "--input", "a.txt", "--output", ""),
    "`plan --nodes x`": typed("plan", "--nodes", "x"),
    "`plan --assume efficiency=1`": typed("plan", "--assume", "efficiency=1"),
    "`--hang-timeout 0`": trained("--hang-timeout", "0"),
    "`--track wandbb`": trained("--track", "wandbb"),
    "`--track mlflow`, which is not installed": "training/test_tracking.py",
    "`--push-to-hub bob/mine`, which is somebody else's": "training/test_publishing.py",
    "`sweep seed=1,2 -- --push-to-hub me/mine`": typed("sweep", "seed=1,2", "--", "--push-to-hub", "me/mine"),
    "`sweep seed=1,01 -- ...`": "training/test_sweep.py",
    "`--outp runs/x`, an option cut short": trained("--outp", "runs/x"),
    "`RANK=x` in the environment": "foundation/test_launched.py",
    "no such file, as `--deepspeed_config zero4`": typed("plan", "--deepspeed_config", "zero4"),
    '`"zero_optimization": {"reduce_bucket_sise": 1}`': deepspeed('{"zero_optimization": {"reduce_bucket_sise": 1}}'),
    '`"zero_optimization": {"stage": "auto"}`': deepspeed('{"zero_optimization": {"stage": "auto"}}'),
    '`"fp16"` and `"bf16"`, both enabled': deepspeed(
        json.dumps({"fp16": {"enabled": True}, "bf16": {"enabled": True}})
    ),
    '`"steps_per_print": 0`': deepspeed('{"steps_per_print": 0}'),
    '`"steps_per_print": NaN`': deepspeed('{"steps_per_print": NaN}'),
    "brackets that do not end": deepspeed("[" * 100_000),
    '`"zero_optimization": {"stage": 2, "zero_hpz_partition_size": 8}`': deepspeed(
        '{"zero_optimization": {"stage": 2, "zero_hpz_partition_size": 8}}'
    ),
    '`"zero_optimization": {"stage": 3, "zero_quantized_weights": true}`, without GPUs': "engine/test_zero_plus.py",
    '`fit("one text", ...)`': raised(lambda: DiffCSE("quickstart").fit("one text", "run")),
    "`fit(pandas.DataFrame(...), ...)`": raised(
        lambda: DiffCSE("quickstart").fit(pd.DataFrame({"text": ["a"]}), "run")  # type: ignore[arg-type]
    ),
    '`fit(["a", None], ...)`': raised(lambda: DiffCSE("quickstart").fit(["a", None], "run")),  # type: ignore[list-item]
    '`DiffCSE("quickstart", "data.files=a.txt")`': raised(lambda: DiffCSE("quickstart", "data.files=a.txt")),
    '`"evaluation.data=embedded"` beside `development=`': "test_api.py",
    '`output=""`': raised(lambda: DiffCSE("quickstart").fit(["a", "b"], "")),
    "other sentences, and `output` is a finished run": "test_api.py",
    "no weights for a part of the network": "model_folder/test_load.py",
    "weights of a layer that its configuration does not have": "model_folder/test_load.py",
    "weights of another shape": "model_folder/test_load.py",
    "fewer embeddings than its tokenizer has ids": "model_folder/test_lengths_and_layouts.py",
    "a NaN among its weights": "model_folder/test_load.py",
    "weights that are cut, or none": encoded("cut", {"model.safetensors": b"\xff" * 30}),
    "a JSON file that is cut, nested without end, or not UTF-8": encoded("deep", {"config.json": "[" * 100_000}),
    "a `modules.json` of something else": encoded("other", {"modules.json": "3"}),
    "no `1_Pooling/config.json`, or settings of the wrong kind": encoded("wrong", {"1_Pooling/config.json": "{}"}),
    "modules that do not go together": encoded("width", {"1_Pooling/config.json": POOLING_OF_WIDTH_7}),
    "a pooling before the network in `modules.json`": "model_folder/test_load.py",
    "no pooling in `modules.json`": "model_folder/test_load.py",
    "a length of its own that leaves no room for words": encoded("none", {"sentence_bert_config.json": LENGTH_2}),
    '`"truncate_dim": 0`': encoded("none", {"config_sentence_transformers.json": '{"truncate_dim": 0}'}),
    "Python objects in `pytorch_model.bin`": "model_folder/test_load.py",
    "adapters alone, as an encoder to train": "model/test_starting_point.py",
    "fewer positions than a sentence may have tokens": "model_folder/test_lengths_and_layouts.py",
    "a vocabulary of SentencePiece (`spm.model`) and no `tokenizer.json`": "model_folder/test_damaged_files.py",
    "no tokenizer files": encoded("words", {"tokenizer.json": None, "tokenizer_config.json": None}),
    "a tokenizer without a post-processor, and `model.pooling=cls`": "model/test_fits.py",
    "a vocabulary without its unknown token": "text/test_what_tokens_lose.py",
    "BPE without an unknown token, and text of another script": "text/test_what_tokens_lose.py",
    'a BERT with `"is_decoder": true` in `config.json`': "model/test_backbone.py",
    "a module of its own in `modules.json`": "model_folder/test_load.py",
    "`auto_map` in `config.json` or `tokenizer_config.json`": "model_folder/test_load.py",
    "a link to another file of the machine (`export`)": "model_folder/test_copying.py",
    "`truncate_dim` in `config_sentence_transformers.json` (`export --normalize`, `--whiten`)": (
        "export/test_command.py"
    ),
    "`encode --keep-columns id`, a text file": "encoding/test_kept_columns.py",
    "`encode --keep-columns id`, and the file has `ids`": "encoding/test_kept_columns.py",
    "`encode --precision float16`, a model beyond its range": "encoding/test_finite.py",
    "`encode --dtype float16`, vectors beyond its range": "encoding/test_finite.py",
    "`search`, rows of an earlier version with NaN": "encoding/test_finite.py",
    "`search`, another byte in a shard": "encoding/test_damage.py",
    "`encode`, the same": "encoding/test_damage.py",
    "`search`, a cut `_manifest.json`": "encoding/test_damage.py",
    "`search`, and the model has moved": "encoding/test_search.py",
    '`search ... ""`; bytes that are no text': "encoding/test_damage.py",
    "`optimizer.learning_rate=1e30`, a short run": "training/test_nonfinite.py",
    "`evaluate`, embeddings with NaN": "evaluation/test_sts.py",
    "`evaluate --suite geometry`, one sentence again and again": "evaluation/test_geometry.py",
    "`evaluate --suite transfer`, labels that differ between files": "evaluation/test_transfer.py",
    "`report`, `status`, `summarize`, a cut `result.json`": "report/test_foreign_files.py",
}
