"""A cache that has no place is told in one sentence, by every command that needs it, before anything is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.recipe import DataRecipe
from diffcse_scale.text import cache
from diffcse_scale.text.cache import cache_folder, writing
from diffcse_scale.text.prepared import prepared
from diffcse_scale.training.train_arguments import parse_arguments
from tests.support.command_line import diffcse_scale
from tests.support.small_disk import small_disk


def refused(why: str, action: Callable[[], object]) -> None:
    with pytest.raises(InputError, match=rf"^The cache .* cannot be written \({why}\); set DIFFCSE_CACHE, or data\.c"):
        action()


@pytest.mark.parametrize(
    ("home", "why"), [("/dev/null", "not a directory"), ("/proc/nowhere", "no such file or directory")]
)
def test_a_home_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, home: str, why: str) -> None:
    monkeypatch.delenv("DIFFCSE_CACHE", raising=False)
    monkeypatch.setenv("HOME", home)
    refused(why, cache_folder)


def test_a_cache_that_is_a_file_and_a_home_that_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused("it is a file", lambda: cache_folder(DataRecipe(files=["x"], cache_dir=str(tmp_path / "file"))))
    nobody = DataRecipe(files=["x"], cache_dir="~nobody-of-this-name/cache")
    with pytest.raises(InputError, match=r"^The cache folder ~nobody.*no such user.*DIFFCSE_CACHE, or data\.cache_dir"):
        cache_folder(nobody)


def test_a_disk_that_is_full_from_the_start_and_one_that_fills_up(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as mounted:
        if not mounted:
            pytest.skip("this user may not mount")
        data = DataRecipe(files=["x"], cache_dir=str(tmp_path / "disk"))
        folder = cache_folder(data)
        with pytest.raises(InputError, match="no space left on device"), writing(folder):
            (folder / "made").write_bytes(bytes(1 << 20))
        cache.try_to_write.cache_clear()  # another process
        refused("no space left on device", lambda: prepared(folder / "more", folder, Path.read_bytes, Path.mkdir))
        assert cache_folder(data) == folder  # what is there may be all that is wanted


def test_every_command_that_needs_it_says_so_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before what is missing, too, is looked for: none of these has a corpus."""
    monkeypatch.setenv("DIFFCSE_CACHE", "/dev/null/cache")
    (tmp_path / "config.json").write_text("{}")
    for command in (
        ("prepare", "data.files=missing.txt"),
        ("pretrain-generator", "--files", "missing.txt", "--output", tmp_path / "out"),
        ("encode", "--model", tmp_path, "--input", "missing.txt", "--output", tmp_path / "out"),
    ):
        ended = diffcse_scale(*command)
        assert ended.returncode == 2, command
        assert "error: The cache /dev/null/cache cannot be written (not a directory)" in " ".join(ended.stderr.split())
    with pytest.raises(SystemExit, match="2"):
        parse_arguments(None, ["data.files=missing.txt"])
    assert "error: The cache /dev/null/cache cannot be written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
