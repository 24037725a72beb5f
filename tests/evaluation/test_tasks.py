"""Reading the tasks: the folder form, a user's own file, and the columns of the Hub's data sets."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from datasets import Dataset

from diffcse_scale.evaluation import STS_TASKS, load_sts, read_pairs
from diffcse_scale.evaluation.tasks import STSTask, pairs_from_rows
from diffcse_scale.foundation.errors import InputError

ROW = "2.5\ta dog runs\ta cat sleeps\n"


def write(folder: Path, name: str, text: str | bytes = ROW) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_the_table_holds_the_seven_test_sets_and_two_dev_sets() -> None:
    tests = [task.name for task in STS_TASKS if task.split == "test"]
    assert tests == ["STS12", "STS13", "STS14", "STS15", "STS16", "STS-B test", "SICK-R test"]
    assert [task.name for task in STS_TASKS if task.split == "dev"] == ["STS-B dev", "SICK-R trial"]


def test_every_subset_of_a_year_is_in_its_task(tmp_path: Path) -> None:
    write(tmp_path, "STS13/OnWN.tsv", "1\tone\ttwo\n2\tthree\tfour\n")
    write(tmp_path, "STS13/FNWN.tsv", "3\tfive\tsix\n")
    (task,) = load_sts(tmp_path)
    assert (task.name, task.split, task.standard_pairs) == ("STS13", "test", 1500)
    assert task.pairs == [(3.0, "five", "six"), (1.0, "one", "two"), (2.0, "three", "four")]


def test_training_pairs_are_never_read(tmp_path: Path) -> None:
    write(tmp_path, "STSB/train.tsv")
    write(tmp_path, "STSB/dev.tsv")
    write(tmp_path, "SICK/test.entailment.txt", "NEUTRAL\n")
    assert [task.name for task in load_sts(tmp_path)] == ["STS-B dev"]


def test_a_named_task_that_is_missing_is_named(tmp_path: Path) -> None:
    write(tmp_path, "STSB/test.tsv")
    with pytest.raises(InputError, match=r"has no STS-B dev: .*STSB/dev\.tsv does not exist"):
        load_sts(tmp_path, ["STS-B dev"])


def test_a_folder_without_any_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds none of the tasks; expected are STSB/dev\.tsv"):
        load_sts(tmp_path)


def test_data_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        load_sts(tmp_path / "nowhere")


def test_an_unknown_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no evaluation task 'STS17'; there are STS-B dev"):
        load_sts(tmp_path, ["STS17"])


def test_one_file_of_pairs_is_a_task_of_its_own(tmp_path: Path) -> None:
    (task,) = load_sts(write(tmp_path, "captions.tsv"))
    assert (task.name, task.split, task.pairs) == ("captions", "own", [(2.5, "a dog runs", "a cat sleeps")])


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("1.0\tonly one sentence", "has 2 tab-separated fields"),
        ("1.0\tone\ttwo\tthree", "has 4 tab-separated fields"),
        ("", "has 1 tab-separated fields"),
        ("score\tone\ttwo", "score 'score' is not a finite number"),
        ("nan\tone\ttwo", "score 'nan' is not a finite number"),
        ("1_0\tone\ttwo", "score '1_0' is not a finite number"),
        ("9" * 5000 + "\tone\ttwo", "is not a finite number"),
        ("1.0\t \ttwo", "a sentence is empty"),
        (b"1.0\tone\ttw\xff", "is not UTF-8 at byte 11"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path: Path, row: str | bytes, complaint: str) -> None:
    row = row if isinstance(row, bytes) else row.encode()
    file = write(tmp_path, "pairs.tsv", ROW.encode() + row + b"\n" + ROW.encode())
    with pytest.raises(InputError) as caught:
        read_pairs(file)
    assert f"{file}, line 2" in str(caught.value)
    assert complaint in str(caught.value)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pairs\.tsv is empty"):
        read_pairs(write(tmp_path, "pairs.tsv", ""))


@pytest.mark.parametrize(
    ("content", "seems"),
    [
        (gzip.compress(b"1\tone\ttwo\n", mtime=0), "gzip"),
        (b"PAR1\x15\x04", "Parquet"),
        ("1\tone\ttwo\n".encode("utf-16"), "UTF-16"),
        ("1\tone\ttwo\n".encode("utf-16-le"), "binary data"),
    ],
)
def test_a_file_that_holds_no_text_is_refused(tmp_path: Path, content: bytes, seems: str) -> None:
    with pytest.raises(InputError, match=rf"pairs\.tsv seems to be {seems}; expected are lines of score"):
        read_pairs(write(tmp_path, "pairs.tsv", content))


def test_windows_line_ends_a_byte_order_mark_and_unicode_separators_are_text(tmp_path: Path) -> None:
    file = write(tmp_path, "pairs.tsv", b"\xef\xbb\xbf1\tone\ttwo\r\n2\tthree\xe2\x80\xa8\tfour")
    assert read_pairs(file) == [(1.0, "one", "two"), (2.0, "three\u2028", "four")]


MTEB_COLUMNS = {"split": "test", "sentence1": "a", "sentence2": "b", "score": 3.5}
SICK_COLUMNS = {"id": "1", "sentence_A": "a", "sentence_B": "b", "label": 1, "relatedness_score": 3.5}


@pytest.mark.parametrize("task", STS_TASKS, ids=lambda task: task.name)
def test_columns_of_a_hub_data_set_become_graded_pairs(task: STSTask) -> None:
    row = SICK_COLUMNS if task.name.startswith("SICK") else MTEB_COLUMNS
    assert pairs_from_rows(Dataset.from_list([row]), task.hub) == [(3.5, "a", "b")]


def test_a_hub_data_set_without_the_columns_is_refused() -> None:
    dataset = Dataset.from_dict({"score": [1.0], "text1": ["a"], "text2": ["b"]})
    with pytest.raises(InputError, match=r"mteb/sts12-sts \(test\), row 0 has no column 'sentence1', only score"):
        pairs_from_rows(dataset, STS_TASKS[2].hub)
