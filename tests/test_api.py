"""`DiffCSE(...).fit(...)`: what a notebook gives it reaches the trainer; mistakes come back in one sentence.

That it trains is shown in test_examples.py; here no training begins.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

from diffcse_scale import DiffCSE, api
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.text.cache import fingerprint
from tests.support.launch import environment


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**environment(), "DIFFCSE_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def arguments(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the trainer would have been given."""
    given: list[list[str]] = []
    monkeypatch.setattr(api, "_train", given.append)
    monkeypatch.setattr("diffcse_scale.model_folder.load.load_model", lambda folder: (folder, ""))
    return given


def data_of(command: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in command if word.startswith(("data.", "evaluation.")))


@pytest.mark.parametrize(
    ("sentences", "expected"),
    [
        (["a dog", "a cat\nover two lines"], [{"text": "a dog"}, {"text": "a cat\nover two lines"}]),
        ([("a", "b")], [{"text": "a", "positive": "b"}]),
        ([("a", "b", "c")], [{"text": "a", "positive": "b", "hard_negative": "c"}]),
    ],
)
def test_the_corpus_is_what_was_given(sentences: Any, expected: Any, arguments: list[list[str]], tmp_path: Path):
    DiffCSE("quickstart").fit(sentences, tmp_path / "run")
    recipe = load_recipe("quickstart", [f"{name}={value}" for name, value in data_of(arguments[0]).items()])
    (file,) = recipe.data.files
    assert [json.loads(line) for line in Path(file).read_text().splitlines()] == expected
    assert recipe.data.columns == list(expected[0])
    assert recipe.evaluation.data is None


def test_the_same_list_is_the_same_corpus_and_another_is_not(arguments: list[list[str]], tmp_path: Path):
    for sentences in (["a", "b"], iter(["a", "b"]), ["b", "a"]):
        DiffCSE("quickstart").fit(sentences, tmp_path / "run")
    assert arguments[0] == arguments[1] != arguments[2]


def test_the_corpus_has_the_name_that_a_list_of_its_rows_always_had(arguments: list[list[str]], tmp_path: Path):
    DiffCSE("quickstart").fit(["a", '\u00e4 "b"'], tmp_path / "run")
    expected = fingerprint([{"text": "a"}, {"text": '\u00e4 "b"'}])
    assert Path(data_of(arguments[0])["data.files"]).name == f"{expected}.jsonl"
    assert [file.name for file in (tmp_path / "cache" / "from_python").iterdir()] == [f"{expected}.jsonl"]


def test_a_kept_corpus_that_was_damaged_is_written_again(arguments: list[list[str]], tmp_path: Path):
    for _ in range(2):
        DiffCSE("quickstart").fit(["a", "b"], tmp_path / "run")
        (kept,) = (tmp_path / "cache" / "from_python").iterdir()
        assert kept.read_text() == '{"text": "a"}\n{"text": "b"}\n'
        kept.write_bytes(bytes(10))


def test_development_pairs_are_one_to_a_line(arguments: list[list[str]], tmp_path: Path):
    pairs: Any = [(1.5, "a\tb", "c\nd"), (2, "e", "f"), (np.float32(0.5), "g", "h")]
    DiffCSE("quickstart").fit(["a", "b"], tmp_path / "run", development=pairs)
    assert Path(data_of(arguments[0])["evaluation.data"]).read_text() == "1.5\ta b\tc d\n2\te\tf\n0.5\tg\th\n"


def test_overrides_come_last(arguments: list[list[str]], tmp_path: Path):
    DiffCSE("quickstart", "evaluation.data=mine.tsv").fit(["a", "b"], tmp_path / "run", processes=2)
    assert data_of(arguments[0])["evaluation.data"] == "mine.tsv"
    assert arguments[0][arguments[0].index("--processes") + 1] == "2"


@pytest.mark.parametrize(
    ("sentences", "words"),
    [([], "empty list"), (["a", ("b", "c")], "Row 1 of the corpus"), ([("a", "b", "c", "d")], "Row 0"), ([3], "Row 0")],
)
def test_a_wrong_list_is_refused_before_anything_starts(
    sentences: Any, words: str, arguments: list[list[str]], tmp_path: Path
):
    with pytest.raises(InputError, match=words):
        DiffCSE("quickstart").fit(sentences, tmp_path / "run")
    assert not arguments


@pytest.mark.parametrize(
    ("sentences", "development", "refused"),
    [
        (["a", "b"], [(1, "a", "b"), (2, "c", "d")], None),
        (["a", "c"], [(1, "a", "b"), (2, "c", "d")], "has finished training with another corpus; give another output"),
        (["a", "b"], [(3, "a", "b"), (2, "c", "d")], "with other development pairs"),
        (["a", "b"], None, "with other development pairs"),
    ],
)
def test_the_model_of_a_finished_run_is_not_that_of_other_text(
    sentences: Any, development: Any, refused: str | None, arguments: list[list[str]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    DiffCSE("quickstart").fit(["a", "b"], run, [(1, "a", "b"), (2, "c", "d")])
    recipe = load_recipe("quickstart", [f"{name}={value}" for name, value in data_of(arguments[0]).items()])
    run.mkdir()
    (run / "recipe.yaml").write_text(json.dumps(recipe.model_dump(mode="json")))  # JSON is YAML
    (run / "result.json").write_text("{}")
    with nullcontext() if refused is None else pytest.raises(InputError, match=refused):
        DiffCSE("quickstart").fit(sentences, run, development)
    assert len(arguments) == (2 if refused is None else 1)


def test_a_wrong_field_is_told_at_once():
    with pytest.raises(InputError, match="temperatur"):
        DiffCSE("quickstart", "objective.temperatur=0.1")


@pytest.mark.slow
def test_what_the_trainer_refuses_comes_back_in_its_words(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    with pytest.raises(InputError, match="2 sentences") as refused:
        DiffCSE("quickstart").fit(["a dog", "a cat"], tmp_path / "run", processes=1)
    assert "\n" not in str(refused.value)
    assert json.dumps(str(refused.value))[1:-1] in capfd.readouterr().out


def test_hooks_are_handed_to_the_process_that_trains(arguments: list[list[str]], tmp_path: Path):
    DiffCSE("quickstart", hooks=["mine:One", "mine:Two"]).fit(["a", "b"], tmp_path / "run")
    assert " --hook mine:One --hook mine:Two " in " ".join(arguments[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sentences": "one text"}, "The corpus is 'one text'; give a list of sentences"),
        ({"sentences": {"a": "b"}}, "The corpus is {'a': 'b'}"),
        ({"sentences": None}, "The corpus is None"),
        ({"sentences": ["a", 7]}, "Row 1 of the corpus is"),
        ({"sentences": {"a", "b"}}, "The corpus is {"),
        ({"sentences": bytearray(b"ab")}, "The corpus is bytearray"),
        ({"sentences": ["a", None]}, "Row 1 of the corpus is None"),
        ({"sentences": ["a", float("nan")]}, "Row 1 of the corpus is nan"),
        ({"sentences": ["a", b"b"]}, "Row 1 of the corpus is b'b'"),
        ({"sentences": ["a", "\ud800"]}, "Row 1 of the corpus is ['\\ud800'], with half of a surrogate pair"),
        ({"sentences": iter([])}, "The corpus is an empty list"),
        ({"sentences": [["x" * 10_000] * 4]}, "Row 0 of the corpus is ['xxx"),
        ({"sentences": pd.DataFrame({"text": ["a", "b"]})}, "The corpus is a table, DataFrame; give a column of it"),
        ({"sentences": datasets.Dataset.from_dict({"text": ["a"]})}, "The corpus is a table, Dataset"),
        ({"development": pd.DataFrame({"a": [1.0], "b": ["x"], "c": ["y"]})}, "development is a table, DataFrame"),
        ({"development": [(1.0, "a", "\ud800"), (2.0, "b", "c")]}, "Row 0 of development is"),
        ({"output": ""}, "output is ''; give a path"),
        ({"output": None}, "output is None; give a path"),
        ({"deepspeed_config": {"zero_optimization": {}}}, "deepspeed_config is {'zero_optimization': {}}; give a path"),
        ({"processes": True}, "processes is True"),
        ({"processes": 0}, "processes is 0"),
        ({"processes": "two"}, "processes is 'two'"),
        ({"development": "pairs.tsv"}, "development is 'pairs.tsv'; give triples"),
        ({"development": [(1.0, "a", "b"), ("a", "b", 2.0)]}, "Row 1 of development is"),
        ({"development": [(float("nan"), "a", "b")]}, "Row 0 of development is"),
        ({"development": [(1.0, "a", "b")]}, "development has 1 pairs"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_corpus_is_refused_before_anything_trains(
    options: dict[str, Any], words: str, arguments: list[list[str]], tmp_path: Path
):
    with pytest.raises(InputError) as error:
        DiffCSE("quickstart").fit(**{"sentences": ["a", "b"], "output": tmp_path / "run", **options})
    assert words in str(error.value) and arguments == []
    assert len(str(error.value)) < 250 and not list((tmp_path / "cache").rglob("*.partial"))


def test_a_column_of_a_table_is_a_corpus(arguments: list[list[str]], tmp_path: Path):
    table = {"text": ["a dog", "a cat"]}
    for column in (pd.Series(table["text"]), np.array(table["text"]), datasets.Dataset.from_dict(table)["text"]):
        DiffCSE("quickstart").fit(column, tmp_path / "run")
    assert arguments[0] == arguments[1] == arguments[2]


@pytest.mark.parametrize("override", ["data.files=mine.txt", "data.columns=[text]", "data={files: [mine.txt]}"])
def test_a_corpus_beside_the_one_that_is_given_is_refused(override: str):
    with pytest.raises(InputError, match="contradicts the corpus that `fit` is given"):
        DiffCSE("quickstart", override)


@pytest.mark.parametrize("override", ["evaluation.data=embedded", "evaluation.data=null", "evaluation={every: 1}"])
def test_development_pairs_beside_those_that_are_given_are_refused(
    override: str, arguments: list[list[str]], tmp_path: Path
):
    with pytest.raises(InputError, match="contradicts the development pairs that `fit` is given; remove it"):
        DiffCSE("quickstart", override).fit(["a", "b"], tmp_path / "run", [(1, "a", "b"), (2, "c", "d")])
    assert arguments == []


def test_that_a_call_goes_on_is_said_only_where_there_is_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The program that trains is one that fails: what is said of its end is `_train`'s."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    (tmp_path / "checkpoints" / "step-00000010.partial-1f2e3d4c").mkdir(parents=True)
    (tmp_path / "checkpoints" / "latest").write_text("none")
    with pytest.raises(RuntimeError, match=r"exit code 1; its output says why\.$"):
        api._train(["--output", str(tmp_path)])
    (tmp_path / "checkpoints" / "step-00000010").mkdir()
    with pytest.raises(RuntimeError, match="the same call continues from its last checkpoint"):
        api._train(["--output", str(tmp_path)])


@pytest.mark.parametrize("overrides", [(["seed=1"],), ({"seed": 1},)], ids=str)
def test_overrides_are_words(overrides: Any):
    with pytest.raises(InputError, match="overrides is "):
        DiffCSE("quickstart", *overrides)
    with pytest.raises(InputError, match="recipe is None; give a name"):
        DiffCSE(None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="hooks is None"):
        DiffCSE("quickstart", hooks=None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="hooks is 'mine:Tell'"):
        DiffCSE("quickstart", hooks="mine:Tell")
