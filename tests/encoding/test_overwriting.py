"""`encode --output` takes over nothing that `encode` did not write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from diffcse_scale.encoding import EncodeOptions, encode, load
from diffcse_scale.encoding.folder_manifest import MANIFEST
from diffcse_scale.foundation.errors import InputError
from tests.support.files import contents, write_files

Options = Callable[..., EncodeOptions]


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder of a web application."""
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / MANIFEST).write_text('{"name": "My application", "icons": []}')
    (folder / "_shards.jsonl").write_text('{"shard": "theirs"}\n')
    (folder / ".download.partial").write_text("half")
    return folder


def test_a_folder_with_a_foreign_manifest_is_refused_and_left_as_it_is(
    options: Options, text_file: Path, foreign: Path
) -> None:
    before = contents(foreign)
    with pytest.raises(InputError, match=r"web holds other files \(_manifest\.json\); .*--overwrite"):
        encode(options(text_file, output=str(foreign)), progress=False)
    with pytest.raises(InputError, match="holds no embeddings"):
        load(foreign)
    assert contents(foreign) == before


def test_with_overwrite_other_files_stay_and_are_named(
    options: Options, text_file: Path, foreign: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encode(options(text_file, output=str(foreign), overwrite=True), progress=False)
    assert len(load(foreign)) == 103
    assert (foreign / ".download.partial").read_text() == "half"
    assert f"Kept unchanged in {foreign}: .download.partial." in caplog.text


def test_other_work_is_replaced_with_overwrite_and_the_same_work_goes_on(options: Options, text_file: Path) -> None:
    first, other = options(text_file), options(text_file, window=64, overwrite=True)
    encode(first, progress=False)
    with pytest.raises(InputError, match=r"was begun with window 16, not 64; .*--overwrite to start over"):
        encode(options(text_file, window=64), progress=False)
    encode(other, progress=False)
    assert sorted(name for name in contents(other.output) if name.startswith("emb")) == [
        "embeddings-00000.parquet",
        "embeddings-00001.parquet",
    ]
    assert encode(other, progress=False).startswith("Nothing to do")


def test_a_folder_of_an_earlier_version_goes_on(options: Options, text_file: Path) -> None:
    chosen = options(text_file)
    encode(chosen, progress=False)
    manifest = Path(chosen.output) / MANIFEST
    facts = json.loads(manifest.read_text())
    assert facts.pop("written_by") == "diffcse-scale encode"
    manifest.write_text(json.dumps(facts))
    assert encode(chosen, progress=False).startswith("Nothing to do")


def test_what_is_read_is_never_written_over(options: Options, text_file: Path, model_dir: Path) -> None:
    own = options(text_file)
    encode(own, progress=False)
    shard = Path(own.output) / "embeddings-00000.parquet"
    with_text = options(text_file, keep_text=True, overwrite=True)
    encode(with_text, progress=False)
    before = contents(own.output)
    for output in (own.output, str(model_dir), str(model_dir / "embeddings")):
        with pytest.raises(InputError, match="contains the input or is part of it"):
            encode(options(shard, column="text", output=output, overwrite=True), progress=False)
    assert contents(own.output) == before and not (model_dir / "embeddings").exists()


def test_a_run_and_a_file_are_no_places_for_embeddings(options: Options, text_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("recipe.yaml", "run.json"):
        (run / name).write_text("{}")
    for output, message in ((run / "model", "belongs to the run"), (text_file, "is not a folder")):
        with pytest.raises(InputError, match=message):
            encode(options(text_file, output=str(output), overwrite=True), progress=False)
    encode(options(text_file, output=str(run / "embeddings")), progress=False)


def test_what_a_kill_left_half_written_is_no_other_file(options: Options, text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    half = {"_manifest.json.tmp": "{", "_shards.jsonl.tmp": "", ".embeddings-00000.parquet.77.partial": "PAR1"}
    write_files(out, {**half, "notes.tmp": "mine"})
    with pytest.raises(InputError, match=r"killed holds other files \(notes\.tmp\)"):
        encode(options(text_file, output=str(out)), progress=False)
    (out / "notes.tmp").unlink()
    encode(options(text_file, output=str(out)), progress=False)
    assert len(load(out)) == 103 and not set(half) & set(contents(out))
