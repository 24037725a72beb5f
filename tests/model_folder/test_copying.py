"""An export has the content of its model and of nothing else."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from diffcse_scale.export.command import ExportOptions, export_model
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model_folder.copying import copy_files, own_files


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret").write_text("secret")
    return tmp_path / "elsewhere" / "secret"


def small_snapshot(cache: Path, repository: str = "models--me--model") -> Path:
    """A snapshot of the Hub's cache with one file."""
    snapshot, blobs = cache / repository / "snapshots" / "abc", cache / repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1f").write_text(repository)
    (snapshot / "notes.md").symlink_to("../../blobs/1f")
    return snapshot


LINKS: dict[str, Callable[[Path, Path], object]] = {
    "to a file elsewhere": lambda folder, secret: (folder / "notes.txt").symlink_to(secret),
    "to a folder elsewhere": lambda folder, secret: (folder / "notes").symlink_to(secret.parent),
    "in a folder below": lambda folder, secret: (folder / "1_Pooling" / "notes").symlink_to(secret),
    "in the place of a file of the model": lambda folder, secret: (folder / "vocab.txt").symlink_to(secret),
    "to nothing": lambda folder, secret: (folder / "notes.txt").symlink_to("absent"),
    "over a link": lambda folder, secret: (folder / ".a").symlink_to(secret) or (folder / "a").symlink_to(".a"),
}


@pytest.mark.parametrize("link", LINKS)
def test_a_link_that_leads_out_of_the_model_is_refused(run: Path, secret: Path, tmp_path: Path, link: str) -> None:
    LINKS[link](run / "model", secret)
    with pytest.raises(InputError, match=r"is a link to .*, which is not part of the model; replace it with a file"):
        export_model(run, tmp_path / "out", ExportOptions())
    assert not list(tmp_path.glob("*out*"))


def test_the_picture_of_a_run_is_not_followed_out_of_it(run: Path, secret: Path, tmp_path: Path) -> None:
    (run / "curves.png").unlink()
    (run / "curves.png").symlink_to(secret)
    with pytest.raises(InputError, match=r"curves\.png is a link to"):
        export_model(run, tmp_path / "out", ExportOptions())
    assert not list(tmp_path.glob("*out*"))


def test_what_is_neither_file_nor_folder_is_refused(run: Path, tmp_path: Path) -> None:
    os.mkfifo(run / "model" / "pipe")
    with pytest.raises(InputError, match="pipe is no file"):
        export_model(run, tmp_path / "out", ExportOptions())


def test_a_link_inside_the_model_and_one_to_the_model_are_followed(run: Path, tmp_path: Path) -> None:
    (run / "model" / "same.json").symlink_to("config.json")
    (tmp_path / "link").symlink_to(run / "model")
    copy_files(own_files(tmp_path / "link"), tmp_path / "copy")
    assert (tmp_path / "copy" / "same.json").read_text() == (run / "model" / "config.json").read_text()
    assert not [path for path in (tmp_path / "copy").rglob("*") if path.is_symlink()]


def test_a_snapshot_is_copied_from_the_blobs_of_its_own_repository(secret: Path, tmp_path: Path) -> None:
    snapshot, other = (small_snapshot(tmp_path / "hub", name) for name in ("models--me--model", "models--me--private"))
    copy_files(own_files(snapshot), tmp_path / "copy")
    assert (tmp_path / "copy" / "notes.md").read_text() == "models--me--model"

    (snapshot.parents[1] / "blobs" / "2f").symlink_to(secret)
    for target in (other.parents[1] / "blobs" / "1f", snapshot.parents[1] / "blobs" / "2f", secret):
        (snapshot / "more").unlink(missing_ok=True)
        (snapshot / "more").symlink_to(target)
        with pytest.raises(InputError, match=f"is a link to {re.escape(str(target.resolve()))}"):
            own_files(snapshot)


def test_blobs_that_lie_elsewhere_are_not_those_of_the_repository(secret: Path, tmp_path: Path) -> None:
    snapshot = small_snapshot(tmp_path / "hub")
    blobs = snapshot.parents[1] / "blobs"
    (blobs / "1f").unlink()
    blobs.rmdir()
    blobs.symlink_to(secret.parent)
    (snapshot / "notes.md").unlink()
    (snapshot / "notes.md").symlink_to("../../blobs/secret")
    with pytest.raises(InputError, match="which is not part of the model"):
        own_files(snapshot)


def test_what_is_left_out_is_not_looked_at(run: Path, secret: Path) -> None:
    (run / "model" / ".git").symlink_to(secret)
    assert Path("config.json") in own_files(run / "model", [".*"])
