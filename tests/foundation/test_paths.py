"""What users write for a path: `~` is a home, and what no file can be called is refused in a sentence."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffcse_scale.engine.config_file import load_deepspeed_config
from diffcse_scale.evaluation.tasks import load_sts
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.ownership import write_file
from diffcse_scale.foundation.paths import given_path
from diffcse_scale.model.backbone import resolve
from diffcse_scale.model_folder.layout import model_folder
from diffcse_scale.recipe import DataRecipe
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.runs.directory import RunDirectory
from diffcse_scale.runs.read import read_runs
from diffcse_scale.text.cache import cache_folder
from diffcse_scale.text.sources import check_names

TAKES_A_PATH: dict[str, Callable[[str], Any]] = {
    "data.files": lambda name: check_names(DataRecipe(files=name)),
    "a glob of data.files": lambda name: check_names(DataRecipe(files=name + "*.txt")),
    "data.cache_dir": lambda name: cache_folder(DataRecipe(files="a.txt", cache_dir=name)),
    "evaluation.data": load_sts,
    "a recipe": lambda name: load_recipe(name + ".yaml"),
    "a DeepSpeed configuration": load_deepspeed_config,
    "the output of a run": lambda name: RunDirectory.open(name, load_recipe("quickstart"), "new"),
    "a run": lambda name: read_runs([Path(name)]),
    "a model": model_folder,
    "a backbone": resolve,
    "a file that is written": lambda name: write_file(Path(name), "text"),
}
REFUSED = {
    "~nosuchuser/x": "~nosuchuser/x.*: there is no such user, or the user has no home folder; give the full path",
    "x" * 300: r"x{77}\.\.\. is too long: 30\d bytes where 255 are allowed; give a shorter name",
    "é" * 150: "is too long: 30. bytes where 255 are allowed",
    "deep/" * 1000 + "x": "is too long: 5,00. bytes where 4,095 are allowed",
}
# a recipe holds these in no field
NO_TEXT = {"n\0l": r"n(\\x00| )l.* contains a NUL", "b\udce9b\udce9": r"'b\\udce9b\\udce9.*' is not UTF-8; rename it"}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("place", TAKES_A_PATH)
def test_what_no_file_can_be_called_is_refused_wherever_a_path_is_taken(place: str, name: str) -> None:
    with pytest.raises(InputError, match=REFUSED[name]) as refusal:
        TAKES_A_PATH[place](name)
    assert len(str(refusal.value)) < 250


@pytest.mark.parametrize("name", NO_TEXT)
@pytest.mark.parametrize(
    "place", [place for place in TAKES_A_PATH if not place.endswith(("data.files", "data.cache_dir"))]
)
def test_a_path_is_text_without_nul(place: str, name: str) -> None:
    with pytest.raises(InputError, match=NO_TEXT[name]):
        TAKES_A_PATH[place](name)


# the places of TAKES_A_PATH that are read, and not searched or written
READ = ("data.files", "evaluation.data", "a recipe", "a DeepSpeed configuration")


@pytest.mark.parametrize("place", READ)
@pytest.mark.parametrize("linked", [False, True], ids=["named", "linked"])
def test_a_pipe_is_refused_wherever_a_file_is_read(place: str, linked: bool, tmp_path: Path) -> None:
    """A shell gives `<(command)` as a link to a pipe without a name; nothing may wait for its other end."""
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "link.yaml").symlink_to(tmp_path / "pipe.yaml")
    name = str(tmp_path / ("link" if linked else "pipe"))
    with pytest.raises(InputError, match=r"\.yaml'? is a pipe or device, which can be read only once; write its"):
        TAKES_A_PATH[place](name if place == "a recipe" else f"{name}.yaml")


def test_a_pipe_among_the_files_of_a_glob_is_refused(tmp_path: Path) -> None:
    """Passed over, its sentences would be missing without a word; folders that match hold no text of their own."""
    (tmp_path / "a.txt").write_text("a sentence\n")
    (tmp_path / "folder.txt").mkdir()
    place = TAKES_A_PATH["a glob of data.files"]
    place(f"{tmp_path}/")
    os.mkfifo(tmp_path / "b.txt")
    with pytest.raises(InputError, match=r"\*\.txt: .*/b\.txt is a pipe or device, which can be read only once"):
        place(f"{tmp_path}/")


def test_a_dash_is_standard_input_unless_it_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("quickstart", ["data.files=-", "evaluation.data=-"])
    with pytest.raises(InputError, match=r"^Corpus - is a pipe or device, which can be read only once; write its"):
        check_names(recipe.data)
    with pytest.raises(InputError, match=r"^Evaluation data - is a pipe or device, which can be read only once"):
        load_sts(str(recipe.evaluation.data))
    (tmp_path / "-").write_text("a sentence\n")
    check_names(recipe.data)


def test_the_home_of_a_user_takes_the_place_of_its_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert given_path("~/a") == tmp_path / "a" and given_path("~") == tmp_path
    assert given_path("~root/a").is_absolute() and given_path("a~b") == Path("a~b")
    run = RunDirectory.open("~/run", load_recipe("quickstart"), "new")
    assert run.path == tmp_path / "run" and run.path.is_dir() and not (tmp_path / "~").exists()
