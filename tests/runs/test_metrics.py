"""Log lines, on a window of two steps worked by hand."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

from diffcse_scale.objective.objective import StepOutput
from diffcse_scale.objective.replaced_tokens import ReplacedTokens
from diffcse_scale.runs.metrics import Idleness, Window, memory_peaks


def _output(loss, contrastive, rtd, positive, negative, counts):
    statistics = {"contrastive": contrastive, "rtd": rtd, "positive_cosine": positive, "negative_cosine": negative}
    statistics |= dict(zip(ReplacedTokens.statistics, counts, strict=True))
    return StepOutput(
        torch.tensor(float(loss)), {name: torch.tensor(float(value)) for name, value in statistics.items()}
    )


def _window():
    window = Window()
    # real, replaced, right on replaced, right on kept
    window.add(_output(3.0, 2.0, 1.0, 0.9, 0.1, [100, 20, 10, 60]), sentences=8, real_tokens=100, positions=128)
    window.add(_output(2.0, 1.0, 1.0, 0.7, 0.3, [60, 0, 0, 58]), sentences=8, real_tokens=60, positions=72)
    return window


def test_losses_are_means_and_shares_are_ratios_of_sums():
    row = _window().read()
    assert (row["loss"], row["contrastive"], row["rtd"]) == (2.5, 1.5, 1.0)
    assert row["positive_cosine"] == pytest.approx(0.8)
    assert row["negative_cosine"] == pytest.approx(0.2)
    # a step without replacements does not make the window undefined
    assert row["rtd_recall_replaced"] == pytest.approx(10 / 20)
    assert row["rtd_recall_kept"] == pytest.approx((60 + 58) / (80 + 60))
    assert row["replaced_share"] == pytest.approx(20 / 160)
    assert row["padding_share"] == pytest.approx(1 - 160 / 200)
    assert row["sentences_per_second"] > 0


def test_reading_starts_a_new_window():
    window = _window()
    window.read()
    window.add(_output(7.0, 7.0, 0.0, 1.0, 0.0, [0, 0, 0, 0]), sentences=8, real_tokens=5, positions=5)
    row = window.read()
    assert row["loss"] == 7.0
    assert row["rtd_recall_replaced"] is None


def test_a_window_of_an_earlier_commit_which_kept_sums_by_position_goes_on():
    numbers = [3.0, 2.0, 1.0, 0.9, 0.1, [100.0, 20.0, 10.0, 60.0]]
    by_position = {"sums": numbers, "_steps": 1, "_sentences": 8, "_real_tokens": 100, "_positions": 128}
    window = Window()
    window.restore([by_position], torch.device("cpu"))
    window.add(_output(2.0, 1.0, 1.0, 0.7, 0.3, [60, 0, 0, 58]), sentences=8, real_tokens=60, positions=72)
    found, truth = window.read(), _window().read()
    computed = list(truth)[: list(truth).index("sentences_per_second")]
    assert {name: found[name] for name in computed} == {name: truth[name] for name in computed}
    assert found["padding_share"] == truth["padding_share"]


def test_a_window_goes_on_where_a_checkpoint_left_it():
    window = Window()
    window.restore(_window().state(), torch.device("cpu"))
    found, truth = window.read(), _window().read()
    assert list(found) == list(truth) and found["loss"] == truth["loss"] == 2.5


def test_seconds_are_told_apart_by_what_they_went_to(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def lasts(seconds):
        now[0] += seconds

    def batches():
        for seconds in (3.0, 1.0):
            lasts(seconds)
            yield seconds

    window = Window()
    for _ in window.waiting(batches()):
        window.add(_output(1.0, 1.0, 0.0, 1.0, 0.0, [0, 0, 0, 0]), sentences=8, real_tokens=5, positions=5)
        lasts(10.0)
        with window.paused():
            lasts(7.0)
            with window.checkpointing():
                lasts(2.0)
    row = window.read()
    assert (row["training_seconds"], row["waiting_seconds"], row["checkpoint_seconds"]) == (24.0, 4.0, 4.0)
    assert row["sentences_per_second"] == pytest.approx(16 / 24)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_noticed_however_early_in_the_window(bad):
    window = Window()
    window.add(_output(bad, 0, 0, 0, 0, [0, 0, 0, 0]), sentences=1, real_tokens=1, positions=1)
    window.add(_output(1.0, 0, 0, 0, 0, [0, 0, 0, 0]), sentences=1, real_tokens=1, positions=1)
    assert not window.finite()
    assert _window().finite()


@pytest.mark.parametrize(
    ("name", "idle", "at_work", "words"),
    [
        ("gradient_norm", 0.0, 1e-9, "the gradient norm was 0"),
        ("positive_cosine", 0.9996, 0.9994, "the cosine of positives was 1.000"),
    ],
)
def test_a_run_that_learns_nothing_is_told_so_once_after_some_lines_in_a_row(name, idle, at_work, words):
    idleness, row = Idleness(contrastive=True), {"gradient_norm": 1.0, "positive_cosine": 0.8}
    told = [
        idleness.warning({**row, name: value}) for value in (idle, idle, at_work, idle, idle, idle, idle, idle, idle)
    ]
    assert [number for number, text in enumerate(told) if text] == [5]
    assert words in told[5] and "model.dropout=0.1" in told[5]


def test_what_is_not_known_or_not_contrasted_is_no_sign_of_idleness():
    row = {"gradient_norm": float("nan"), "positive_cosine": 1.0}
    for contrastive in (False, True):
        idleness = Idleness(contrastive)
        assert any([idleness.warning(row) for _ in range(5)]) == contrastive


def test_an_accelerators_reserved_memory_stands_beside_the_allocated(monkeypatch):
    module = SimpleNamespace(max_memory_allocated=lambda device: 3e9, max_memory_reserved=lambda device: 4e9)
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    assert memory_peaks(torch.device("cuda")) == {"peak_memory_gb": 3.0, "peak_reserved_gb": 4.0}
    assert memory_peaks(torch.device("cpu")).keys() == {"peak_memory_gb"}
