"""The study that decides `model.cudnn_attention`: its table and its sentence follow from what it measures."""

from __future__ import annotations

import pytest
import torch

from studies import attention_kernels
from studies.attention_kernels import DROPOUTS, attend, compare, verdict
from tests.support.devices import ON_GPU


def test_a_dropout_that_is_not_what_was_asked_for_shows_in_the_mean() -> None:
    torch.manual_seed(0)
    exact = attend(16, 0.125, torch.device("cpu"))
    assert exact == pytest.approx(1.0, abs=0.01)
    # kept values are divided by 1 - p: a kernel that rounds 0.1 to 2/16 gives 0.875 / 0.9
    assert abs(0.875 / 0.9 - 1) > 0.01


def test_each_dropout_is_measured_on_lengths_that_differ_and_on_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_kernels, "TOKENS", 32)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    faster = compare(torch.device("cpu"), lengths=(16, 8), rounds=1)
    torch.backends.cuda.enable_cudnn_sdp(before)
    assert {name: len(ratios) for name, ratios in faster.items()} == dict.fromkeys(faster, len(DROPOUTS))
    assert len(capsys.readouterr().out.splitlines()) == 1 + 2 * len(DROPOUTS)


def test_the_sentence_follows_from_the_lengths_that_differ() -> None:
    slow = verdict({"lengths that differ": [0.9, 0.8, 1.0], "one length": [2.0, 2.0, 1.0]})
    assert slow.startswith("Leave model.cudnn_attention false") and "1.00 times" in slow
    fast = verdict({"lengths that differ": [1.5, 1.3, 1.0], "one length": [2.0, 2.0, 1.0]})
    assert fast.startswith("Set model.cudnn_attention: true where dropout is 0 or 1/8:")


@pytest.mark.skipif(ON_GPU, reason="there is a GPU here")
def test_without_a_gpu_one_sentence_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert attention_kernels.main() == 2
    assert capsys.readouterr().err.startswith("error: cuDNN's attention needs a GPU")
