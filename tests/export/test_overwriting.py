"""`export` replaces what it wrote itself and nothing else: no other model, not its source, not what others added."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from diffcse_scale.export import export_sentence_transformer
from diffcse_scale.export.command import ExportOptions, export_model
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.ownership import MARK
from tests.support.hand_made_run import write_run
from tests.support.tiny_models import tiny_bert, tiny_tokenizer

MEANT = ExportOptions(overwrite=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def of_another_tool(tmp_path: Path) -> Path:
    """What the trainer of sentence-transformers leaves: a model with checkpoints beside it."""
    folder = tmp_path / "theirs"
    export_sentence_transformer(tiny_bert(), tiny_tokenizer(), "mean", 8, folder)
    (folder / MARK).unlink()
    about = {"__version__": {"sentence_transformers": "5.7", "transformers": "5.1", "pytorch": "2.9"}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(about))
    (folder / "checkpoint-500").mkdir()
    (folder / "checkpoint-500" / "model.safetensors").write_text("days of work")
    return folder


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("output", ["other", "other/model", "other/best/step-00000100", "link", "unfinished/model"])
def test_a_run_keeps_its_folders_for_itself(run: Path, tmp_path: Path, output: str, overwrite: bool) -> None:
    other = write_run(tmp_path / "other")
    (tmp_path / "link").symlink_to(other / "model")
    shutil.copytree(other, tmp_path / "unfinished", ignore=shutil.ignore_patterns("model"))
    before = contents(tmp_path)

    with pytest.raises(InputError, match="belongs to the run in"):
        export_model(run, tmp_path / output, ExportOptions(overwrite=overwrite))

    assert contents(tmp_path) == before


def test_another_place_in_a_run_is_free(run: Path) -> None:
    export_model(run, run / "exported", ExportOptions())
    export_model(run, run / "exported", ExportOptions(normalize=True))


def test_a_model_of_another_tool_is_refused_and_its_checkpoints_stay_with_overwrite(
    run: Path, of_another_tool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(of_another_tool)
    with pytest.raises(InputError, match=r"theirs exists and was not written by .*a model of another program.*--over"):
        export_model(run, of_another_tool, ExportOptions())
    assert contents(of_another_tool) == before

    export_model(run, of_another_tool, MEANT)
    after = contents(of_another_tool)
    assert after["checkpoint-500/model.safetensors"] == b"days of work"
    assert after["model.safetensors"] == (run / "model" / "model.safetensors").read_bytes()
    assert f"Kept unchanged in {of_another_tool}: checkpoint-500" in capsys.readouterr().out


def test_what_was_added_to_an_earlier_export_stays_and_what_was_changed_in_it_needs_overwrite(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    export_model(run, out, ExportOptions(projection=True, normalize=True))
    (out / ".git").mkdir()
    for name in (".git/HEAD", "notes.txt", "1_Pooling/notes.txt"):
        (out / name).write_text("mine")

    export_model(run, out, ExportOptions())

    assert {name for name, content in contents(out).items() if content == b"mine"} == {
        ".git/HEAD", "notes.txt", "1_Pooling/notes.txt"
    }  # fmt: skip
    assert not list(out.glob("*_Dense")) and not list(out.glob("*_Normalize"))
    assert f"Kept unchanged in {out}: .git, 1_Pooling/notes.txt, notes.txt" in capsys.readouterr().out

    (out / "README.md").write_text("# My own words\n")
    with pytest.raises(InputError, match=r"README\.md is not as diffcse-scale export wrote it; .*--overwrite"):
        export_model(run, out, ExportOptions())
    export_model(run, out, MEANT)
    assert "My own words" not in (out / "README.md").read_text()


def test_an_export_of_an_earlier_version_is_known_without_a_mark(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_model(run, out, ExportOptions(normalize=True))
    (out / MARK).unlink()
    (out / "notes.txt").write_text("mine")

    export_model(run, out, ExportOptions())

    assert (out / "notes.txt").read_text() == "mine" and not (out / "2_Normalize").exists()


@pytest.mark.parametrize("output", ["model", "model/exported", ".", "link"])
def test_the_model_that_is_exported_is_never_written_to(run: Path, tmp_path: Path, output: str) -> None:
    (tmp_path / "lone").mkdir()
    source = (run / "model").rename(tmp_path / "lone" / "model")
    (tmp_path / "lone" / "link").symlink_to(source)
    before = contents(tmp_path)

    with pytest.raises(InputError, match="which is the input; give another folder"):
        export_model(source, tmp_path / "lone" / output, MEANT)

    assert contents(tmp_path) == before


def test_the_function_does_not_replace_what_it_did_not_write_either(of_another_tool: Path) -> None:
    with pytest.raises(InputError, match="was not written by export_sentence_transformer"):
        export_sentence_transformer(tiny_bert(), tiny_tokenizer(), "mean", 8, of_another_tool)
    assert (of_another_tool / "checkpoint-500").is_dir()


def test_of_a_link_the_folder_that_it_names_is_written_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "mine")
    (tmp_path / "link").symlink_to("not/there/yet")
    (tmp_path / "absent").symlink_to(tmp_path / "nowhere" / ".." / "beside")  # which the system does not follow
    for link, folder in (("link", "not/there/yet"), ("link", "not/there/yet"), ("absent", "beside")):
        export_model(run, tmp_path / link, ExportOptions())
        assert (tmp_path / link).is_symlink() and (tmp_path / folder / "modules.json").is_file()
        assert f"Written: {tmp_path / folder} (Transformer" in capsys.readouterr().out
    (tmp_path / "loop").symlink_to("loop")
    for output in ("loop", "loop/below"):
        with pytest.raises(InputError, match=r"loop is not a folder; give another name"):
            export_model(run, tmp_path / output, ExportOptions())
