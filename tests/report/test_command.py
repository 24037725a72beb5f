"""What is refused, in one sentence and before anything takes long; what is only missing is said in the page."""

from __future__ import annotations

import re
import shutil

import pytest
from typer.testing import CliRunner

from diffcse_scale.cli import app
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.report import report
from tests.support.command_line import diffcse_scale
from tests.support.pages import Page
from tests.support.toy_run import write_run


@pytest.mark.parametrize(
    ("folder", "words"),
    [("nowhere", "nowhere holds no run: recipe.yaml is not there"), (".", "holds no run")],
)
def test_a_folder_that_is_no_run_is_refused(tmp_path, folder, words):
    with pytest.raises(InputError, match=words):
        report([tmp_path / folder], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_the_command_line_passes_everything_on(two_runs, world, tmp_path):
    (tmp_path / "sentences.txt").write_text("a dog\n")
    options = [
        "--data",
        world / "pairs.tsv",
        "--sentences",
        tmp_path / "sentences.txt",
        "--output",
        tmp_path / "new" / "x",
    ]
    result = CliRunner().invoke(app, list(map(str, ["report", *two_runs, *options])))
    assert result.output == f"report: {tmp_path / 'new' / 'x'}\n"
    assert "a dog before training" in Page.of(tmp_path / "new" / "x").text
    assert isinstance(CliRunner().invoke(app, ["report", "nowhere"]).exception, InputError)


def test_another_file_is_not_written_over_and_an_earlier_report_is(two_runs, tmp_path):
    page = tmp_path / "report.html"
    page.write_text("<p>precious</p>")
    with pytest.raises(InputError, match="is not a page of diffcse-scale report about these runs, but a text file"):
        report(two_runs, page, models=False)
    assert page.read_text() == "<p>precious</p>"
    with pytest.raises(InputError, match="is a folder"):
        report(two_runs, tmp_path, models=False)
    report(two_runs[:1], page, models=False, overwrite=True)
    report(two_runs, page, models=False)
    assert "2 runs" in Page.of(page).text
    for others in (two_runs[:1], two_runs[1:]):  # a page about both says more
        with pytest.raises(InputError, match="is not a page of diffcse-scale report about these runs"):
            report(others, page, models=False)
    assert "2 runs" in Page.of(page).text
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("text", [None, "\n \n"])
def test_sentences_that_are_not_there_are_refused(two_runs, tmp_path, text):
    file = tmp_path / "sentences.txt"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=r"sentences\.txt .*give a text file with one sentence per line"):
        report(two_runs, tmp_path / "report.html", sentences=file)


def test_data_that_is_asked_for_and_not_there_is_refused(two_runs, tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        report(two_runs, tmp_path / "report.html", data=str(tmp_path / "nowhere"))


def test_where_the_recipes_data_is_gone_the_page_says_so_and_other_data_can_be_named(world, tmp_path):
    gone = tmp_path / "gone.tsv"
    run = write_run(world, tmp_path / "run", f"evaluation.data={gone}")
    without = Page.of(report([run], tmp_path / "without.html")).text
    assert "gone.tsv: no such file or folder" in without and "give another place with --data" in without
    page = Page.of(report([run], tmp_path / "with.html", data=str(world / "pairs.tsv"))).text
    assert "60 pairs; Spearman x 100: " in page and "no such file" not in page


def test_the_command_that_the_page_advises_works_as_it_stands(world, tmp_path):
    run = write_run(world, tmp_path / "run")
    shutil.rmtree(run / "evaluation")
    page = Page.of(report([run], tmp_path / "report.html", models=False)).text
    command = re.search(r"diffcse-scale (evaluate .*?) writes one", page)[1]
    arguments = command.replace("RUN", str(run)).replace("DATA", str(world / "pairs.tsv")).split()
    assert diffcse_scale(*arguments).returncode == 0
    assert "There is no evaluation of" not in Page.of(report([run], tmp_path / "report.html", models=False)).text


def test_a_base_that_is_gone_leaves_the_trained_encoder(world, tmp_path):
    run = write_run(world, tmp_path / "run", "model.checkpoint=null")
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(world / "model"), str(tmp_path / "gone")))
    page = Page.of(report([run], tmp_path / "report.html")).text
    assert "The untrained encoder cannot be read" in page and "The discriminator cannot be read" in page
    assert re.search(r"60 pairs; Spearman x 100: [-0-9.]+ after", page)


def test_without_detection_or_checkpoint_there_is_a_sentence_instead_of_tokens(world, tmp_path):
    simcse = write_run(world, tmp_path / "simcse", "objective.rtd_weight=0")
    light = write_run(world, tmp_path / "light")
    shutil.rmtree(light / "checkpoints")
    page = Page.of(report([simcse, light], tmp_path / "report.html"))
    assert "This run has no discriminator: objective.rtd_weight is 0" in page.text
    assert "The discriminator is in checkpoints only, and this run has none (checkpoint_every is 6" in page.text
    assert "Found" not in page.text
    assert len(page.charts()["rtd"]) == 1  # zeros of the run without detection are not drawn
