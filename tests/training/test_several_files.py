"""A whole ZeRO-3 run of a model of several weight files, killed and resumed, gives the model of one that was not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from diffcse_scale.foundation.exit_codes import ExitCode
from tests.support.failing_hook import FILE_BYTES, VARIABLE
from tests.support.launch import Ranks

HOOK = ("--hook", "tests.support.failing_hook:FailsWithSmallFiles")
SENTENCES = ["A man is playing a guitar.", "The cat sleeps."]


def trained(world: Path, run: Path, *added: str, **variables: str) -> list[int]:
    """Exit codes of two ranks at ZeRO-3."""
    arguments = ("--deepspeed_config", "zero3", "--recipe", str(world / "toy.yaml"), "--output", str(run), *added)
    with Ranks(run.parent / "said", *arguments, **variables) as ranks:
        return ranks.wait()


def weights(model: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in model.glob("*.safetensors") for name, value in load_file(file).items()}


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["0 KILL 9", "1 KILL 9"])
def test_a_killed_run_of_several_files_is_resumed_to_the_same_model(toy_world, tmp_path, killed):
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert trained(toy_world, whole) == [0, 0]
    assert [file.name for file in (whole / "model").glob("*.safetensors")] == ["model.safetensors"]
    lost = int(killed[0])
    codes = trained(toy_world, run, *HOOK, **{VARIABLE: killed})
    assert (codes[lost], codes[1 - lost]) == (-9, ExitCode.LOST)
    best = sorted((run / "best").iterdir())[-1]
    assert len(list(best.glob("model-*.safetensors"))) > 4  # what the kill leaves to the resumed run
    assert trained(toy_world, run, *HOOK, "--resume") == [0, 0]

    files = list((run / "model").glob("*.safetensors"))
    assert len(files) > 4 and (run / "model" / "model.safetensors.index.json").is_file()
    largest = max(value.nbytes for value in weights(run / "model").values())
    assert max(file.stat().st_size for file in files) < max(FILE_BYTES, largest) + 4096  # and its header
    expected, found = weights(whole / "model"), weights(run / "model")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    one, several = (
        SentenceTransformer(str(folder / "model"), device="cpu").encode(SENTENCES) for folder in (whole, run)
    )
    assert (one == several).all()
