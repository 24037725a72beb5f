"""The wheels and the source distribution hold what they promise, and work where there is no checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib import metadata
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
NOT_SOURCE = {"build", "dist", "runs"}
NOT_SHIPPED = {".gitignore", ".dockerignore", ".ci/run"}
PIP = [sys.executable, "-m", "pip"]
OFFLINE = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation"]  # setuptools is the one that torch brings

pytestmark = pytest.mark.slow


class Built(NamedTuple):
    kernels: Path  # the wheel of diffcse-kernels
    wheel: Path  # of the checkout
    sdist: Path  # of the checkout
    wheel_of_sdist: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Built in a copy of the checkout, where an earlier build has left a module that is no longer there."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    copytree(ROOT, source, ignore=lambda at, names: _not_source(Path(at), names))
    left_behind = source / "build" / "lib" / "diffcse_scale" / "left_behind.py"
    left_behind.parent.mkdir(parents=True)
    left_behind.touch()
    hook = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    _run([sys.executable, "-c", hook], source)
    (sdist,) = folder.glob("*.tar.gz")
    kernels = _wheel(source / "kernels", folder / "kernels_wheel")
    return Built(kernels, _wheel(source, folder / "wheel"), sdist, _wheel(sdist, folder / "wheel_of_sdist"))


def _not_source(folder: Path, names: list[str]) -> set[str]:
    generated = ignore_patterns("__pycache__", "*.egg-info")(str(folder), names)
    generated |= {"build"} if folder == ROOT / "kernels" else set()
    hidden = {name for name in names if name[0] == "." and name != ".github"}
    return generated | (hidden | NOT_SOURCE if folder == ROOT else set())


def _wheel(source: Path, folder: Path) -> Path:
    _run([*PIP, "wheel", *OFFLINE, "--wheel-dir", str(folder), str(source)], folder.parent)
    (wheel,) = folder.glob("*.whl")
    return wheel


def _run(command: list[str], folder: Path) -> str:
    """Output of a command that sees neither the checkout nor its environment's variables of Python."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def _contents(wheel: Path) -> dict[str, int]:
    """Name and checksum of every file."""
    with zipfile.ZipFile(wheel) as archive:
        return {file.filename: file.CRC for file in archive.infolist()}


def _names(sdist: Path) -> set[str]:
    with tarfile.open(sdist) as archive:
        return {file.name.partition("/")[2] for file in archive if file.isfile()}


def test_the_source_distribution_holds_every_file_of_the_repository(built: Built) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git repository")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = {name for name in listed.split("\0") if name and (ROOT / name).exists()}
    assert len(files) > 300
    assert files - _names(built.sdist) == NOT_SHIPPED


def test_the_wheel_of_the_source_distribution_is_that_of_the_checkout(built: Built) -> None:
    assert _contents(built.wheel_of_sdist) == _contents(built.wheel)


def test_the_wheels_hold_every_file_of_the_packages_and_no_other(built: Built) -> None:
    trainer = {
        "diffcse_scale/": "diffcse_scale/",
        "recipes/": "diffcse_scale/recipes/",
        "ds_configs/": "diffcse_scale/ds_configs/",
        "train.py": "diffcse_scale/train.py",
    }
    for wheel, places in ((built.wheel, trainer), (built.kernels, {"kernels/diffcse_kernels/": "diffcse_kernels/"})):
        expected = {
            place + name.removeprefix(folder)
            for name in _names(built.sdist)
            for folder, place in places.items()
            if name.startswith(folder)
        }
        found = {name for name in _contents(wheel) if ".dist-info/" not in name}
        assert found == expected


@pytest.fixture(scope="module", params=["wheel", "sdist"])
def installed(request: pytest.FixtureRequest, built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment that has only this project, and sees all other packages of this one."""
    others = [path for path in sys.path if path.endswith("-packages")]
    return _environment(tmp_path_factory.mktemp(request.param), others, built.kernels, getattr(built, request.param))


def _environment(folder: Path, others: list[str], *files: Path) -> Path:
    """The programs of a new environment that has `files`, and sees what lies in the folders `others`.

    A .pth file adds these to the path. Python does not read the .pth files in them, by which the checkout would be
    found.
    """
    environment = folder / "environment"
    venv.create(environment, symlinks=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text("\n".join(others))
    target = ["--python", str(environment / "bin" / "python")]
    _run([*PIP, *target, "install", *OFFLINE, "--ignore-installed", *map(str, files)], environment)
    return environment / "bin"


def _with_what_it_needs(name: str) -> set[str]:
    """The distributions without which `name` cannot be installed, itself included."""
    found, left = set(), [name]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            required = (line for line in metadata.requires(name) or [] if ";" not in line)
            left += [re.split(r"[^A-Za-z0-9._-]", line)[0] for line in required]
    return found


def test_the_installed_packages_are_used_and_not_the_checkout(installed: Path, tmp_path: Path) -> None:
    code = "import diffcse_kernels, diffcse_scale; print(diffcse_kernels.__file__, diffcse_scale.__file__)"
    found = _run([str(installed / "python"), "-c", code], tmp_path).split()
    assert all(Path(file).is_relative_to(installed.parent) for file in found), found


def test_help_recipes_and_benchmark_are_there(installed: Path, tmp_path: Path) -> None:
    program = str(installed / "diffcse-scale")
    assert "Launch train.py with DeepSpeed" in _run([program, "--help"], tmp_path)
    assert "bert-base-uncased" in _run([program, "recipe", "bert_base_sts"], tmp_path)
    benchmark = [str(installed / "python"), "-m", "diffcse_kernels.benchmark"]
    assert "usage" in _run([*benchmark, "--help"], tmp_path)


def test_the_quickstart_begins(installed: Path, tmp_path: Path) -> None:
    """Its first steps, with its development set; the model that comes out encodes."""
    train = [str(installed / "diffcse-scale"), "train", "--processes", "1", "max_steps=3", "data.limit=256"]
    output = _run([*train, "--output", "run"], tmp_path)
    assert (tmp_path / "run" / "result.json").is_file(), output
    (tmp_path / "text.txt").write_text("A sentence.\nAnother one.\n")
    encode = [str(installed / "diffcse-scale"), "encode", "--model", "run", "--input", "text.txt"]
    _run([*encode, "--output", "vectors"], tmp_path)
    assert (tmp_path / "vectors" / "_manifest.json").is_file()


def test_the_kernels_need_torch_alone(built: Built, tmp_path: Path) -> None:
    """Their README's examples run where there is nothing but torch and what torch needs."""
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in _with_what_it_needs("torch"):
        for place in {file.parts[0] for file in metadata.files(name) or []} - {"..", "__pycache__"}:
            if not (alone / place).exists():
                (alone / place).symlink_to(Path(str(metadata.distribution(name).locate_file(place))))
    programs = _environment(tmp_path, [str(alone)], built.kernels)
    missing = "import importlib.util as u; print(*map(u.find_spec, ('numpy', 'deepspeed', 'diffcse_scale')))"
    assert _run([str(programs / "python"), "-c", missing], tmp_path).split() == ["None"] * 3
    readme = (ROOT / "kernels" / "README.md").read_text(encoding="utf-8")
    examples = "".join(re.findall(r"```python\n(.*?)```", readme, re.DOTALL))
    assert re.search(r"^loss \d", _run([str(programs / "python"), "-c", examples], tmp_path), re.MULTILINE)


def test_the_trainer_asks_for_these_kernels(built: Built) -> None:
    version = built.kernels.name.split("-")[1]
    with zipfile.ZipFile(built.wheel) as archive:
        (about,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        assert f"Requires-Dist: diffcse-kernels=={version}" in archive.read(about).decode()
