"""A flipped bit in what all ranks hold alike is found, and the rank is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffcse_scale.distributed import rank
from diffcse_scale.foundation.environment import host_name
from diffcse_scale.foundation.errors import RunEnded
from diffcse_scale.foundation.exit_codes import ExitCode, Reason
from diffcse_scale.training.replicas import check_replicas, checksums
from diffcse_scale.training.trainer import Trainer
from tests.support.failing_hook import VARIABLE
from tests.support.launch import Ranks
from tests.support.ranks import run_ranks

HOOK = "tests.support.failing_hook:Fails"


def _compared() -> list[str]:
    """What is said of equal tensors, and of those of which rank 2 has a bit flipped."""
    said = []
    for flipped in (False, True):
        torch.manual_seed(0)
        tensors = {"weight": torch.randn(5, 3), "half": torch.randn(7).bfloat16(), "steps": torch.tensor(3)}
        if flipped and rank() == 2:
            tensors["half"].view(torch.int16)[4] ^= 1  # the least that can happen
        try:
            check_replicas(tensors, "after step 9")
            said.append("")
        except RunEnded as end:
            said.append(f"{end.exit_code:d} {end}")
    return said


def _stopped() -> tuple[str, list[int]]:
    """How a trainer leaves that is asked to stop, and what it keeps; rank 2 has a bit flipped."""
    trainer, kept = Trainer.__new__(Trainer), []
    trainer.model, trainer.generator, trainer.step = torch.nn.Linear(3, 2), None, 7  # type: ignore[assignment]
    trainer.state = dict  # type: ignore[method-assign]
    trainer.save_now = lambda step, state: kept.append(step)  # type: ignore[method-assign]
    for parameter in trainer.model.parameters():
        torch.nn.init.ones_(parameter)
    if rank() == 2:
        trainer.model.bias.data.view(torch.int32)[0] ^= 1
    try:
        return str(trainer._leave(Reason.USR1)), kept
    except RunEnded as end:
        return str(end), kept


def _both() -> tuple[list[str], tuple[str, list[int]]]:
    return _compared(), _stopped()


def test_one_flipped_bit_is_found_and_its_rank_named_on_every_rank(tmp_path):
    for (equal, flipped), (said, kept) in run_ranks(_both, 3, tmp_path):
        assert equal == ""
        assert flipped.startswith(
            f"2 The weights differ after step 9: half is not what the other ranks have on rank 2 on {host_name()}; "
        )
        # and before a run that is asked to stop keeps its last checkpoint
        assert said.startswith("The weights differ after step 7: bias is not what the other ranks have on rank 2 on ")
        assert kept == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.uint8, torch.bool])
def test_a_checksum_is_that_of_the_bytes(dtype):
    tensor = (torch.arange(12).reshape(3, 4) % 5).to(dtype).t()  # not contiguous
    width, values = tensor.element_size(), tensor.contiguous()
    raw = bytes(values.view(-1).view(torch.uint8).tolist())
    words = [raw[start : start + width] for start in range(0, len(raw), width)]
    signed = width > 1
    expected = sum(int.from_bytes(word, "little", signed=signed) for word in words)
    found = checksums([tensor, torch.zeros(0)])
    assert (found[0].item() - expected) % 2**64 == 0 and found[1] == 0


@pytest.mark.slow
def test_a_run_with_a_flipped_bit_ends_before_it_measures_or_keeps_what_it_has(toy_world: Path, tmp_path: Path):
    arguments = ("--recipe", str(toy_world / "toy.yaml"), "--output", str(tmp_path / "run"), "--hook", HOOK)
    whole = ("--deepspeed_config", "zero0")  # at ZeRO-1 and 2 the next step would mend it
    with Ranks(tmp_path / "said", *arguments, *whole, count=4, **{VARIABLE: "1 FLIP"}) as ranks:
        assert ranks.wait() == [ExitCode.MISTAKE] * 4, ranks.output()
    (line,) = [line for line in ranks.output().splitlines() if line.startswith("The weights differ")]
    assert (
        "after step 4: discriminator.backbone.embeddings.word_embeddings.weight is" in line
        and f"have on rank 1 on {host_name()};" in line
    )


@pytest.mark.slow
def test_a_run_with_a_slow_rank_says_which(toy_world: Path, tmp_path: Path):
    arguments = ("--recipe", str(toy_world / "toy.yaml"), "--output", str(tmp_path / "run"), "--hook", HOOK)
    with Ranks(tmp_path / "said", *arguments, "log_every=1", count=2, **{VARIABLE: "1 SLOW"}) as ranks:
        assert ranks.wait() == [ExitCode.FINISHED] * 2, ranks.output()
    assert ranks.output().count(f"Rank 1 on {host_name()} is slow: ") == 1
