"""The command line of `encode` and `search`."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from diffcse_scale import cli
from diffcse_scale.encoding import load


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | None:
    """Exit code of `diffcse-scale` with some arguments."""
    monkeypatch.setattr(sys, "argv", ["diffcse-scale", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    code = ended.value.code
    return code if isinstance(code, int) else None


def test_encode_search_answers_queries_when_the_embeddings_are_there(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model_dir: Path,
    text_file: Path,
    sentences: list[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{sentences[31]}\n"))
    second = tmp_path / "second.txt"
    second.write_text("a dog\n")
    files = ["--input", text_file, "--input", second]
    options = ["--model", model_dir, "--output", tmp_path / "out", "--devices", "cpu", "--keep-text", "--search"]
    assert run(monkeypatch, "encode", *files, *options) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{tmp_path / 'out'}: 104 rows in 1 shards."
    assert said[1] == sentences[31]
    assert said[2].split(maxsplit=2) == ["1.0000", "31", sentences[31]]
    assert len(load(tmp_path / "out")) == 104
    assert run(monkeypatch, "search", tmp_path / "out", sentences[99], "--top", 1) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[1] == "99"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (["--dtype", "int4"], "dtype"),
        (["--keep-text", "--format", "npy"], "keep_text needs format parquet: .npy files hold numbers only"),
        (["--pooling", "median"], "There is no pooling 'median'; there are cls, mean, last, first_last_mean"),
        (["--window", "0"], "window: input should be greater than or equal to 1"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_encoded(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model_dir: Path,
    text_file: Path,
    tmp_path: Path,
    changes: list[str],
    complaint: str,
) -> None:
    options = ["--model", model_dir, "--input", text_file, "--output", tmp_path / "out", "--devices", "cpu"]
    assert run(monkeypatch, "encode", *options, *changes) == 2
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert not list(tmp_path.glob("out/embeddings*"))
