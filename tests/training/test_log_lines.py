"""Log lines: at most 80 columns, whatever the numbers are."""

from __future__ import annotations

import pytest

from diffcse_scale.runs.metric_table import METRICS
from diffcse_scale.training.log_lines import TITLES_EVERY, LogLines

ROW = {
    "loss": 0.1123,
    "contrastive": 0.0871,
    "rtd": 0.5029,
    "positive_cosine": 0.757,
    "gradient_norm": 1.073,
    "learning_rate": 1.67e-5,
    "sentences_per_second": 150.4,
    "peak_memory_gb": 1.234,
}


def test_numbers_stand_under_their_titles_with_the_time_that_is_left():
    titles, line = LogLines(300).add(20, ROW, seconds_left=754.0).splitlines()
    assert titles.split() == ["step", "loss", "InfoNCE", "RTD", "|g|", "lr", "sent/s", "GB", "left"]
    assert line.split() == ["20/300", "0.1123", "0.0871", "0.5029", "1.073", "1.7e-05", "150", "1.23", "12:34"]
    ends = [
        [at for at in range(1, len(text) + 1) if not text[at : at + 1].strip() and text[at - 1] != " "]
        for text in (titles, line)
    ]
    assert ends[0] == ends[1]


def test_titles_come_again_and_what_was_not_counted_is_a_dash():
    lines = LogLines(300)
    told = [lines.add(step, {**ROW, "rtd": None}, seconds_left=None).splitlines() for step in range(2 * TITLES_EVERY)]
    assert [len(text) for text in told] == 2 * [2, *[1] * (TITLES_EVERY - 1)]
    assert told[1][0].split()[3] == "-" == told[1][0].split()[-1]


@pytest.mark.parametrize(
    "value", [0.0, 99.99999, 1e6, 1.5e300, -1.5e-300, -1e300, float("nan"), float("-inf")], ids=str
)
def test_no_number_makes_a_line_of_a_long_run_longer_than_a_terminal(value: float):
    row = dict.fromkeys(METRICS, value)
    text = LogLines(9_999_999).add(9_999_999, row, seconds_left=359_999.0)
    assert max(map(len, text.splitlines())) <= 80, text
