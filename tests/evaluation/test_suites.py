"""Which suites there are, and where each finds its data."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest

from diffcse_scale.cli.model_commands import evaluate
from diffcse_scale.evaluation.scores import Results
from diffcse_scale.evaluation.suites import SUITES, Subject, load_suites
from diffcse_scale.foundation.errors import InputError
from tests.support.launch import ROOT

PAIRS = "4\ta dog runs\ta cat runs\n1\ta dog runs\ta horse sleeps\n3\tdog eats\tdog sleeps\n"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with a part for sts and one for transfer."""
    for name, text in {
        "sts/STSB/dev.tsv": PAIRS,
        "sts/STS12/MSRpar.tsv": PAIRS,
        "transfer/CR/all.tsv": "".join(f"{i % 2}\tsentence {i}\n" for i in range(60)),
    }.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def measure(suite: str, data: Path) -> Results:
    """With an encoder that knows lengths and vowels."""

    def encode(sentences: list[str]) -> np.ndarray:
        return np.array([[len(sentence), *map(sentence.count, "aeiou")] for sentence in sentences], dtype=np.float32)

    (loaded,) = load_suites([suite], data)
    return loaded.measure(Subject(None, encode, {}))  # type: ignore[arg-type]  # only mteb asks for the model


@pytest.mark.parametrize(
    ("suite", "part", "names"),
    [
        ("sts", "sts", ["STS-B dev", "STS12"]),
        ("sts:STS12", "sts", ["STS12"]),
        ("geometry", "sts", ["alignment", "uniformity", "mean cosine", "first component"]),
        ("transfer", "transfer", ["CR"]),
    ],
)
def test_a_suite_finds_its_part_of_a_folder_or_takes_it_alone(
    data: Path, suite: str, part: str, names: list[str]
) -> None:
    whole, alone = measure(suite, data), measure(suite, data / part)
    assert [score.name for score in whole.scores] == names
    assert whole == alone


def test_geometry_of_a_file_of_pairs(data: Path) -> None:
    results = measure("geometry", data / "sts/STSB/dev.tsv")
    assert {score.group for score in results.scores} == {"dev"}  # the file's name without .tsv


def test_suites_come_in_one_order_and_a_part_is_told_from_the_whole(data: Path) -> None:
    suites = load_suites(["geometry", "transfer:CR", "sts"], data)
    assert [(suite.name, suite.part) for suite in suites] == [("sts", False), ("transfer", True), ("geometry", False)]


@pytest.mark.parametrize(
    ("suites", "complaint"),
    [
        (["stss"], "no suite 'stss'; there are sts, transfer, geometry, edits and mteb:TASK,TASK"),
        (["sts", "sts:STS12"], "Suite sts is given twice"),
        (["sts:STS99"], "no evaluation task 'STS99'"),
        (["sts:STS13"], r"has no STS13: .*STS13/\*\.tsv does not exist"),
        (["transfer:CoLA"], "no transfer task 'CoLA'"),
        (["geometry:STS12"], "geometry has no tasks to choose from"),
        (["edits:colour"], "Suite edits has no 'colour'; there are detail, number"),
        (["mteb"], "mteb needs the names of tasks"),
    ],
)
def test_a_suite_that_cannot_be_measured_is_refused(data: Path, suites: list[str], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        load_suites(suites, data)


def test_every_suite_but_mteb_needs_data() -> None:
    with pytest.raises(InputError, match="Suite transfer needs --data"):
        load_suites(["mteb:STSBenchmark", "transfer"], None)


def test_transfer_is_read_from_folders_only() -> None:
    with pytest.raises(InputError, match="Transfer tasks are read from a folder, but hub is not one"):
        load_suites(["transfer"], "hub")


def test_mteb_reads_a_local_copy_and_asks_for_one_where_it_cannot_download(data: Path) -> None:
    pytest.importorskip("mteb", reason="the extra eval")
    copy = data / "mteb" / "STSBenchmark"
    with pytest.raises(InputError, match=r"STSBenchmark cannot be loaded: .*put a copy into .*/mteb/STSBenchmark"):
        load_suites(["mteb:STSBenchmark"], data)
    copy.mkdir(parents=True)
    rows = [line.split("\t") for line in PAIRS.splitlines()]
    lines = [json.dumps({"score": float(score), "sentence1": a, "sentence2": b}) for score, a, b in rows]
    (copy / "test.jsonl").write_text("\n".join(lines))
    assert [suite.name for suite in load_suites(["mteb:STSBenchmark"], data)] == ["mteb"]
    with pytest.raises(InputError, match=r"no such task: 'STSBenchmrk' not found\. Did you mean: 'STSBenchmark'"):
        load_suites(["mteb:STSBenchmrk"], data)


def test_help_and_docs_list_the_suites_of_the_table() -> None:
    help_text = inspect.get_annotations(evaluate, eval_str=True)["suite"].__metadata__[0].help
    *first, last = (suite.usage for suite in SUITES.values())
    assert help_text.startswith(f"{', '.join(first)} or {last} (")
    docs = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert all(f"\n| `{suite.usage}`" in docs for suite in SUITES.values())
