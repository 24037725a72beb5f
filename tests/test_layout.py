"""The repository's layout does no harm to its neighbours and ships what it promises."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


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


def test_only_one_module_names_collectives():
    for file in (ROOT / "diffcse_scale").rglob("*.py"):
        if file.name not in ("distributed.py",):
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"import torch\.distributed|deepspeed\.comm|\bdist\.", text), file


def test_a_training_rank_imports_no_library_of_what_comes_after_training():
    code = "import runpy, sys; runpy.run_path('train.py', run_name='not main'); print(*sys.modules)"
    late = {"sentence_transformers", "sklearn", "mteb", "onnx", "onnxruntime", "faiss"}
    assert late & set(_python(code).split()) == set()


def test_recipes_and_configurations_are_found_from_any_folder(tmp_path):
    code = (
        "from diffcse_scale.recipe import load_recipe; "
        "from diffcse_scale.training.engine import load_deepspeed_config; "
        "print(load_recipe('quickstart').name, load_deepspeed_config(None)['zero_optimization']['stage'])"
    )
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'kernels')!r}]; {code}"]
    output = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "quickstart 2" in output


@pytest.mark.slow
def test_an_installed_wheel_trains_without_the_repository(tmp_path):
    built = tmp_path / "built"
    shutil.copytree(ROOT, tmp_path / "source", ignore=shutil.ignore_patterns(".venv", ".git", "runs", "build"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--target", str(built), str(tmp_path / "source")], check=True)
    arguments = ["train", "--processes", "1", "max_steps=2", "data.limit=128", "evaluation.data=null"]
    code = f"import sys; sys.path.insert(0, {str(built)!r}); from diffcse_scale.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(built), "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-c", code, *arguments, "--output", str(tmp_path / "run")]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
