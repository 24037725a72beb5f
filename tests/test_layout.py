"""The repository's layout does no harm to its neighbours and ships what it promises."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.forks import Fork
from tests.support.launch import ROOT, environment


def _python(code: str, *paths: Path) -> str:
    """Output of `code` run from the repository's root, with `paths` on the module path after it."""
    setup = "import sys; " + "".join(f"sys.path.append({str(path)!r}); " for path in paths)
    return subprocess.run(
        [sys.executable, "-c", setup + code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_kernels_folder_is_no_package():
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert [path.name for path in (ROOT / "kernels").glob("*.py")] == []


def test_an_installed_kernels_package_is_found_before_the_folder(tmp_path):
    # Hugging Face's `kernels` stands in site-packages, after the working directory on the path
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("name = 'the installed one'")
    assert _python("import kernels; print(kernels.name)", tmp_path) == "the installed one"


def test_transformers_does_not_take_the_folder_for_hugging_faces_package():
    from importlib import metadata

    if "kernels" in {name.lower() for d in metadata.distributions() if (name := d.metadata["Name"])}:
        pytest.skip("Hugging Face's kernels package is installed here")
    code = "from transformers.utils import is_kernels_available; print(is_kernels_available())"
    assert _python(code) == "False"


def test_the_kernels_package_does_not_know_the_trainer():
    for file in (ROOT / "kernels" / "diffcse_kernels").rglob("*.py"):
        assert "diffcse_scale" not in file.read_text(encoding="utf-8"), file


def test_a_folder_of_tests_holds_tests():
    for file in (ROOT / "tests").rglob("*.py"):
        place = file.relative_to(ROOT / "tests").parts[0]
        assert (
            place in ("support", "soak", "fuzz", "crash_points")
            or file.name.startswith("test_")
            or file.name == "conftest.py"
        ), file
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"^from tests\.(\w+\.)*(test_|conftest)", text, re.MULTILINE), file


def test_only_one_module_of_a_package_names_collectives():
    for file in [*(ROOT / "diffcse_scale").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]:
        if file.name not in ("distributed.py", "rendezvous.py", "gather.py"):
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"import torch\.distributed|deepspeed\.comm|\bdist\.", text), file


def _modules_of_a_rank() -> None:
    runpy.run_path("train.py", run_name="not main")
    print(*sys.modules)


def test_a_training_rank_imports_no_library_of_what_comes_after_training(tmp_path):
    rank = Fork(_modules_of_a_rank, output=tmp_path / "modules.txt", environment=environment(), cwd=ROOT)
    assert rank.wait(100) == 0
    late = {"sentence_transformers", "sklearn", "mteb", "onnx", "onnxruntime", "faiss"}
    modules = set((tmp_path / "modules.txt").read_text().split())
    assert "diffcse_scale.training.trainer" in modules and not late & modules


def test_recipes_and_configurations_are_found_from_any_folder(tmp_path):
    code = (
        "from diffcse_scale.recipe_file import load_recipe; "
        "from diffcse_scale.engine.config_file import load_deepspeed_config; "
        "print(load_recipe('quickstart').name, load_deepspeed_config(None)['zero_optimization']['stage'])"
    )
    fork = Fork(exec, code, output=tmp_path / "output.txt", environment=environment(), cwd=tmp_path)
    assert fork.wait(100) == 0
    assert "quickstart 2" in (tmp_path / "output.txt").read_text()
