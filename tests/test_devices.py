"""The default tests leave GPUs alone; `make test-gpu` runs the trainer's on them, not only the kernels'."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from tests.support.devices import ON_GPU
from tests.support.launch import ROOT, environment

# pytest where torch says that it has a GPU: what would run is listed, and nothing runs
PRETENDED = """
import sys, pytest, torch
torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 1
sys.exit(pytest.main(sys.argv[1:]))
"""
# what CI runs on CPUs, and a GPU must do as well
TRAINER = {
    "tests/engine/test_zero_stages.py": "test_every_shipped_configuration_learns_the_same_in_chunks_and_at_once",
    "tests/training/test_chunking.py": "test_on_one_rank",
    "tests/training/test_train.py": "test_a_resumed_run_gives_the_same_numbers_bit_for_bit",
    "tests/export/test_trained_run.py": "test_vectors_agree_in_sentence_transformers_transformers_and_onnx",
    "tests/encoding/test_pipeline.py": "test_the_embeddings_are_those_of_sentence_transformers",
    "tests/evaluation/test_command.py": "test_the_json_report_says_what_was_measured_with_what",
    "tests/training/test_step.py": "test_a_batch_is_handed_out_when_the_next_one_is_edited",
}


def _pytest(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments, "-q", "-p", "no:cacheprovider", "--collect-only"]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True)


@pytest.mark.skipif(ON_GPU, reason="these are the tests on a GPU")
def test_the_default_tests_and_what_they_start_see_no_gpu() -> None:
    assert not torch.cuda.is_available() and torch.cuda.device_count() == 0
    for variables in (os.environ, environment()):
        assert (variables["DS_ACCELERATOR"], variables["CUDA_VISIBLE_DEVICES"]) == ("cpu", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "words"), [("cuda", "torch finds no GPU here"), ("gpu", "DIFFCSE_TEST_DEVICE is gpu; it may be")]
)
def test_a_device_that_is_not_there_is_refused_in_one_sentence(device: str, words: str) -> None:
    if device == "cuda" and ON_GPU:
        pytest.skip("there is one here")
    done = _pytest("-m", "pytest", "tests/test_devices.py", DIFFCSE_TEST_DEVICE=device)
    assert done.returncode == 4
    assert words in done.stderr and "Traceback" not in done.stderr + done.stdout


@pytest.mark.slow
def test_on_a_gpu_the_trainer_is_tested_too() -> None:
    done = _pytest(
        "-c", PRETENDED, "-m", "gpu", *TRAINER, "tests/kernels/test_info_nce_triton.py", DIFFCSE_TEST_DEVICE="cuda"
    )
    listed = done.stdout
    assert done.returncode == 0, listed + done.stderr
    for file, name in TRAINER.items():
        assert f"{file}::{name}" in listed
    assert "test_info_nce_triton.py::" in listed
    assert "test_process_leaves" not in listed and "umask" not in listed  # what is about files runs on CPUs
