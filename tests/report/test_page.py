"""The page: what it says is what the run folders say, it is whole in itself, and text of users stays text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from diffcse_scale.report import report
from tests.support.pages import Page
from tests.support.toy_run import rows, write_run


@pytest.fixture(scope="module")
def page(two_runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page.of(report(two_runs, tmp_path_factory.mktemp("page") / "report.html"))


def test_every_number_of_every_run_is_in_a_chart_with_the_other_runs(page):
    charts = page.charts()
    drawn = {"dev_spearman", "loss", "contrastive", "rtd", "learning_rate", "rtd_recall_kept", "an_own_number"}
    assert charts.keys() == drawn
    for name, form in (("loss", "{:.4f}"), ("dev_spearman", "{:.2f}"), ("rtd_recall_kept", "{:.1%}")):
        lines = [[(step, text) for step, _, _, text in line] for line in charts[name]]
        expected = [[(r["step"], form.format(r[name])) for r in rows(shift) if name in r] for shift in (0.0, 1.0)]
        assert lines == expected


def test_a_chart_puts_larger_numbers_higher_and_later_steps_to_the_right(page):
    (first, second) = page.charts()["loss"]
    assert [x for _, x, _, _ in first] == sorted(x for _, x, _, _ in first)
    assert [y for _, _, y, _ in first] == sorted(y for _, _, y, _ in first)  # the loss falls, pixels go down
    assert all(above[2] < below[2] for above, below in zip(second, first, strict=True))


def test_what_differs_between_the_recipes_is_marked_and_all_else_is_there_once(page):
    assert "objective.rtd_weight 0.1 0.25" in page.text and "seed 1 2" in page.text
    assert "masking_ratio: 0.3" in page.text  # in the whole recipe
    assert "global batch 16 sentences world size" in page.text
    assert "sharding ZeRO-2 precision float32 data fingerprint 0123456789abcdef" in page.text


def test_results_of_the_runs_stand_side_by_side(page):
    assert "untrained, cls 30.50 31.50" in page.text
    assert "untrained, mean 21.25 21.25" in page.text
    assert "trained, cls 45.68 46.68 of step 12 12" in page.text
    assert "45.68 development Spearman x 100, step 12 untrained: cls 30.50, mean 21.25" in page.text
    assert "RTD AUROC over words 0.713 0.713" in page.text


def test_evaluations_have_their_intervals_and_what_is_undefined_is_called_so(page):
    assert "STS12 test 3,108 55.25 52.75 to 57.50 56.25 53.75 to 58.50" in page.text
    assert "STS13 test undefined: all scores are equal 3,108 undefined undefined" in page.text
    assert "mean of the seven 56.25 57.25" in page.text
    assert "its own pooling, at most 32 tokens, sts, 2026-01-02" in page.text


def test_the_time_adds_up(page):
    # three log lines of 30 s, of which 3 s each waiting; two checkpoints; evaluations of 2 and 5 s; 200 s in all
    assert "1 min 21 s 81.8% 9.0 s 9.1% 7.0 s 7.1% 2.0 s 2.0% 1 min 39 s 3 min 20 s" in page.text


def test_nothing_is_fetched(page):
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "img", "base")
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "#")[0] == "#" or attributes[name] == "data:,", (tag, attributes)
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert not re.search(r"url\(|@import", "".join(page.styles))
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(", page.scripts[-1])


def test_text_of_users_stays_text(world, tmp_path):
    evil = '<script>alert("1")&amp;'
    run = write_run(world, tmp_path / evil, f"name='{evil}'")
    sentences = tmp_path / "sentences.txt"
    sentences.write_text("</script><script>alert(2)</script> a dog\n")
    harmless = Page.of(report([write_run(world, tmp_path / "run")], tmp_path / "harmless.html"))

    page = Page.of(report([run], tmp_path / "evil.html", sentences=sentences))

    count = [sum(tag == "script" for tag, _ in each.tags) for each in (page, harmless)]
    assert count[0] == count[1]
    assert evil in page.text and f"name: {evil}" in page.text
    assert "</script><script>alert(2)</script> a dog" in page.text


def test_one_run_needs_no_comparison(two_runs, tmp_path):
    page = Page.of(report(two_runs[:1], tmp_path / "report.html", models=False))
    assert "Where the recipes differ" not in page.text and "2 runs" not in page.text
    assert all(len(lines) == 1 for lines in page.charts().values())


def test_a_run_that_goes_on_has_a_page_of_what_there_is(world, tmp_path):
    run = write_run(world, tmp_path / "run", finished=False)
    page = Page.of(report([run], tmp_path / "report.html"))
    assert "not finished : training, step 12 of 12" in page.text
    assert "trained, cls 45.68" in page.text  # the best so far
    assert "Found" in page.text and "before training" in page.text


def test_a_run_that_has_just_begun_has_a_page_too(world, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text((world / "toy.yaml").read_text())
    page = Page.of(report([tmp_path / "run"], tmp_path / "report.html"))
    assert "not finished" in page.text and "Nothing has been measured yet" in page.text
    assert "There is no trained encoder yet" in page.text
