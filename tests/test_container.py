"""Dockerfile, conda environment and notebook: they name what the package needs, and work where their tools are."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.launch import environment
from tests.support.notebook import NOTEBOOK, SOURCE, notebook_of

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "Dockerfile"
CONDA = ROOT / "environment.yml"


def setup_argument(name: str) -> Any:
    (call,) = (node for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())) if _is_setup(node))
    (value,) = (keyword.value for keyword in call.keywords if keyword.arg == name)
    return ast.literal_eval(value)


def _is_setup(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setup"


def installs() -> Iterator[tuple[Path, str]]:
    yield DOCKERFILE, next(line for line in DOCKERFILE.read_text().splitlines() if "./kernels" in line)
    (pip,) = (entry["pip"] for entry in yaml.safe_load(CONDA.read_text())["dependencies"] if isinstance(entry, dict))
    yield CONDA, " ".join(pip)


def test_image_and_conda_environment_install_the_same_extras_and_the_tested_versions():
    for file, words in installs():
        assert "--constraint constraints.txt" in words and "./kernels" in words, file
    (image, conda) = (set(re.findall(r"\.\[([\w,]+)\]", words)[0].split(",")) for _, words in installs())
    assert image == conda <= set(setup_argument("extras_require"))


def test_their_python_is_one_that_the_package_takes():
    least = tuple(map(int, re.findall(r"\d+", setup_argument("python_requires"))))
    conda = next(
        entry for entry in yaml.safe_load(CONDA.read_text())["dependencies"] if str(entry).startswith("python=")
    )
    for version in (re.findall(r"^FROM python:([\d.]+)", DOCKERFILE.read_text(), re.MULTILINE)[0], conda[7:]):
        assert tuple(map(int, version.split("."))) >= least


def test_the_image_is_built_from_what_the_package_is_made_of_and_run_by_no_root():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"
    assert all((ROOT / name).exists() for name in kept)
    made_of = {"diffcse_scale", "kernels", "pyproject.toml", "setup.py", "train.py", "README.md", "constraints.txt"}
    assert kept == made_of | {*setup_argument("license_files"), *setup_argument("package_dir").values()}
    users = re.findall(r"^USER (\w+)", DOCKERFILE.read_text(), re.MULTILINE)
    assert users and users[-1] != "root"


def test_the_notebook_is_that_of_its_source():
    """If not: python -m tests.support.notebook."""
    assert json.loads(NOTEBOOK.read_text(encoding="utf-8")) == notebook_of(SOURCE)


RUN_CELLS = """
import json, sys
cells = json.load(open(sys.argv[1]))["cells"]
sys.argv = ["kernel", "-f", "connection.json"]
names = {}
for cell in cells:
    if cell["cell_type"] == "code":
        exec("".join(cell["source"]), names)
"""
RUN_NOTEBOOK = """
import sys, nbformat
from nbclient import NotebookClient
done = NotebookClient(nbformat.read(sys.argv[1], 4), timeout=600).execute()
print("".join(output.get("text", "") for cell in done.cells for output in cell.get("outputs", ())))
"""


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path: Path):
    """By Jupyter's own client where that is installed, else a cell after the other."""
    found = subprocess.run([sys.executable, "-c", "import nbclient, ipykernel"], capture_output=True).returncode == 0
    done = subprocess.run(
        [sys.executable, "-c", RUN_NOTEBOOK if found else RUN_CELLS, str(NOTEBOOK)],
        cwd=tmp_path,
        env={**environment(), "DIFFCSE_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"tensor\(|\[\[", done.stdout) and (tmp_path / "runs" / "notebook" / "result.json").is_file()


def works(*command: str) -> bool:
    return shutil.which(command[0]) is not None and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.slow
def test_the_image_is_built_and_answers():
    program = next((name for name in ("docker", "podman") if works(name, "info")), None)
    if program is None:
        pytest.skip("neither docker nor podman works here")
    subprocess.run([program, "build", "--tag", "diffcse-scale-test", str(ROOT)], check=True)
    run = [program, "run", "--rm", "diffcse-scale-test", "--version"]
    assert "diffcse-scale" in subprocess.run(run, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_the_conda_environment_is_made_and_answers(tmp_path: Path):
    program = next((name for name in ("conda", "mamba", "micromamba") if works(name, "--version")), None)
    if program is None:
        pytest.skip("no conda here")
    where = ["--prefix", str(tmp_path / "environment")]
    subprocess.run([program, "env", "create", "--yes", *where, "--file", str(CONDA)], check=True)
    run = [program, "run", *where, "diffcse-scale", "--version"]
    assert "diffcse-scale" in subprocess.run(run, check=True, capture_output=True, text=True).stdout
