"""Shared by all tests: one thread, no network, and where the optional data lies."""

from __future__ import annotations

import os

# set before torch or transformers are imported: thread counts change the low bits of sums
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # without a GPU the Triton kernels run in Triton's interpreter, which reads this when triton is first imported
    os.environ.setdefault("TRITON_INTERPRET", "1")
torch.set_num_threads(1)


def _folder(variable: str) -> Path:
    if variable not in os.environ:
        pytest.skip(f"{variable} is not set: it names a folder of real data that the project does not carry")
    return Path(os.environ[variable])


@pytest.fixture
def data_folder() -> Path:
    """Real corpora and evaluation sets."""
    return _folder("DIFFCSE_DATA")


@pytest.fixture
def models_folder() -> Path:
    """Small pretrained models."""
    return _folder("DIFFCSE_MODELS")
