"""Log lines, on a window of two steps worked by hand."""

from __future__ import annotations

import time

import pytest
import torch

from diffcse_scale.model.diffcse import StepOutput
from diffcse_scale.training.metrics import Window, console_line


def _output(loss, contrastive, rtd, positive, negative, counts):
    values = [torch.tensor(float(value)) for value in (loss, contrastive, rtd, positive, negative)]
    return StepOutput(*values, torch.tensor(counts, dtype=torch.float32))


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


def test_the_console_line_has_units_and_leaves_out_what_was_not_counted():
    row = {**_window().read(), "rtd_recall_replaced": None, "learning_rate": 1e-4, "gradient_norm": 1.0}
    line = console_line(7, 100, row)
    assert line.startswith("step   7/100  loss 2.5000  contrastive 1.5000")
    assert "recall replaced" not in line
    assert "lr 1.00e-04" in line and "sentences/s" in line and "padding 20.0%" in line
