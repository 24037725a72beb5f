"""The files of a run, cut, edited or of another program: a page of what there is, or one sentence."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diffcse_scale.evaluation.summary import as_json, print_summary_of, summarize
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.report.page import Looks, render
from diffcse_scale.runs.metrics_file import MetricsFile
from diffcse_scale.runs.read import read_runs
from diffcse_scale.runs.status import read_status, status_line
from tests.support.toy_run import write_run

OBJECTS = ("run.json", "result.json", "status.json", "evaluation/sts.json")
LINES = ("metrics.jsonl", "incarnations.jsonl")
STATUS = {"state": "training", "job": None, "restarts": 0, "step": 3, "steps": 12, "updated": 1.8e9, "message": "on"}
NO_OBJECTS = [b"", b"{", b"[]", b"7", b'"x"', b"null", b"\xff\xfe{}", b"[" * 100_000, b'{"a":' * 100_000, bytes(99)]
VALUES = [None, "x", 7, -3, 1e308, [], {}, [1], {"a": 1}, True, "\ud800", 10**30, [None]]


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(world, tmp_path_factory.mktemp("run") / "run")
    (folder / "status.json").write_text(json.dumps(STATUS))
    return folder


def told(run: Path) -> list[str]:
    """What each command says of it: InputErrors, and nothing where there is none."""
    found = []
    for command in (
        lambda: render(read_runs([run]), Looks()),
        lambda: status_line(read_status(run)),
        lambda: as_json(summarize([run]).groups),
        lambda: print_summary_of([run]),
    ):
        try:
            command()
        except InputError as error:
            found.append(str(error))
    return found


def told_with(run: Path, name: str, content: bytes) -> list[str]:
    before = (run / name).read_bytes()
    try:
        (run / name).write_bytes(content)
        return told(run)
    finally:
        (run / name).write_bytes(before)


def places(content: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in pairs:
        yield (*at, key)
        yield from places(value, (*at, key))


def changed(content: Any, at: tuple[Any, ...], *value: Any) -> Any:
    """With another value at a place, or without one."""
    content = copy.deepcopy(content)
    inner = content
    for key in at[:-1]:
        inner = inner[key]
    if value:
        inner[at[-1]] = value[0]
    else:
        del inner[at[-1]]
    return content


def test_the_run_itself_is_shown(run: Path) -> None:
    assert told(run) == []


@pytest.mark.parametrize("name", OBJECTS)
def test_what_is_no_object_is_one_sentence_with_the_files_name(run: Path, name: str) -> None:
    for content in NO_OBJECTS:
        found = told_with(run, name, content)
        assert found and all(f"{name} is not what this program writes (" in one for one in found), content


@pytest.mark.parametrize("seed", range(2))
def test_a_missing_key_is_shown_as_missing_and_another_kind_of_value_is_that_or_one_sentence(
    run: Path, seed: int
) -> None:
    draw = random.Random(seed)
    for name in (*OBJECTS, *LINES):
        lines = (run / name).read_text().splitlines()
        content = json.loads(lines[0]) if name in OBJECTS else [json.loads(line) for line in lines]
        all_places = list(places(content))
        for value in ((), (draw.choice(VALUES),)):
            at = draw.choice(all_places)
            edited = changed(content, at, *value)
            text = json.dumps(edited) if name in OBJECTS else "".join(json.dumps(row) + "\n" for row in edited)
            for sentence in told_with(run, name, text.encode()):
                assert len(sentence) < 500 and name in sentence


def test_an_empty_object_is_a_run_of_which_little_is_known(run: Path) -> None:
    for name in ("run.json", "result.json"):
        assert told_with(run, name, b"{}") == []
    assert told_with(run, "result.json", b'{"best": {"dev_spearman": NaN}, "steps": 1e999}') == []


def test_rows_around_a_damaged_one_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    bad = [b'{"step": 2, "lo', b"\xff", b"[]", b'{"loss": 1}', b'{"step": -1}', b'{"step": "x"}', b"[" * 100_000]
    file.write_bytes(b"\n".join([b'{"step": 1, "loss": 3}', *bad, b'{"step": 3, "loss": NaN, "own": "text"}', b""]))
    metrics = MetricsFile(file)
    assert list(metrics.rows()) == [{"step": 1, "loss": 3}, {"step": 3, "loss": None, "own": "text"}]
    assert metrics.series()["loss"].known.values.tolist() == [3.0]
    metrics.keep(lambda row: row["step"] < 9)
    assert [row["step"] for row in metrics.rows()] == [1, 3]
