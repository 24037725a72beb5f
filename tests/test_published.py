"""What a published project has: one version, a citation, a list of changes, and workflows that run the Makefile."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffcse_kernels
import pytest
import yaml

import diffcse_scale

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CITATION = ROOT / "CITATION.cff"


def commands(workflow: str) -> list[str]:
    """What a workflow runs, a line each, without `#` and what follows."""
    jobs: dict[str, Any] = yaml.safe_load(workflow)["jobs"]
    return [line for job in jobs.values() for step in job["steps"] for line in step.get("run", "").splitlines()]


def targets(workflow: str) -> list[str]:
    """Targets of make that a workflow names."""
    return [target for line in commands(workflow) for target in re.findall(r"^make (?:PYTHON=\S+ )?([\w-]+)", line)]


def unknown_targets(workflow: str, makefile: str) -> list[str]:
    return [target for target in targets(workflow) if not re.search(rf"^{target}:", makefile, re.MULTILINE)]


def schema_complaints(schema: str, *files: Path) -> str:
    """Of the JSON schema that check-jsonschema carries; nothing is fetched."""
    if find_spec("check_jsonschema") is None:
        pytest.skip("check-jsonschema, of the extra `dev`, is not here")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_setup_takes_each_version_from_the_one_place_where_it_is_written():
    command = [sys.executable, "setup.py", "--version"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.split()[-1] == diffcse_scale.__version__
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert diffcse_scale.__version__ not in text and diffcse_kernels.__version__ not in text


def test_citation_and_changes_are_of_this_version():
    assert yaml.safe_load(CITATION.read_text(encoding="utf-8"))["version"] == diffcse_scale.__version__
    for page, version in (
        (ROOT / "CHANGELOG.md", diffcse_scale.__version__),
        (ROOT / "kernels" / "CHANGELOG.md", diffcse_kernels.__version__),
    ):
        newest = re.search(r"^## (\S+)", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert newest is not None and newest[1] == version, page


def test_the_citation_is_valid_and_names_the_paper():
    assert schema_complaints("citation-file-format", CITATION) == ""
    (paper,) = yaml.safe_load(CITATION.read_text(encoding="utf-8"))["references"]
    assert paper["identifiers"][0]["value"] == "arXiv:2204.10298" and len(paper["authors"]) == 10


def test_workflows_are_valid():
    assert [file.name for file in WORKFLOWS] == ["publish.yml", "test.yml"]
    assert schema_complaints("github-workflows", *WORKFLOWS) == ""


def test_a_workflow_with_a_mistake_is_noticed(tmp_path: Path):
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(WORKFLOWS[1].read_text(encoding="utf-8").replace("runs-on:", "run-on:", 1))
    assert "run-on" in schema_complaints("github-workflows", wrong)


def test_every_target_that_a_workflow_names_is_one_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {file.name: unknown_targets(file.read_text(encoding="utf-8"), makefile) for file in WORKFLOWS} == {
        "publish.yml": [],
        "test.yml": [],
    }
    assert unknown_targets("jobs: {a: {steps: [{run: make docs}, {run: make doc}]}}", makefile) == ["doc"]


def test_what_is_tested_and_published_is_what_the_makefile_makes():
    publish, test = (targets(file.read_text(encoding="utf-8")) for file in WORKFLOWS)
    assert {"install", "lint", "test", "docs", "test-slow"} <= set(test)
    assert publish.index("test") < publish.index("dist") and "docs" in publish


def test_publishing_needs_no_secret_and_gives_rights_to_the_jobs_that_use_them():
    text = WORKFLOWS[0].read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert "secrets." not in text and "password" not in text and workflow["permissions"] == {"contents": "read"}
    rights = {name: job.get("permissions", {}) for name, job in workflow["jobs"].items()}
    assert rights == {
        "build": {},
        "wheels": {"id-token": "write"},
        "site": {"pages": "write", "id-token": "write"},
    }


def test_the_tested_pythons_are_those_that_the_constraints_are_for():
    jobs = yaml.safe_load(WORKFLOWS[1].read_text(encoding="utf-8"))["jobs"]
    first = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()[0]
    assert jobs["default"]["strategy"]["matrix"]["python"] == re.findall(r"3\.\d+", first)
