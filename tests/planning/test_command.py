"""`diffcse-scale plan`: tables, JSON, and answers that agree with each other."""

from __future__ import annotations

import json

import pytest

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.planning.command import plan
from tests.support.command_line import diffcse_scale


@pytest.fixture(scope="module")
def planned(recipe_file, tmp_path_factory):
    file = tmp_path_factory.mktemp("plan") / "plan.json"
    file.write_text('{"recipe": "soup"}')
    options = ["--nodes", 2, "--gpus-per-node", 2, "--gpu-memory", 1, "--cpu", "--json", file, "--overwrite"]
    result = diffcse_scale("plan", "--recipe", recipe_file, *options, "batch.chunk=4", "batch.sentences=64")
    assert result.returncode == 0, result.stderr
    return result.stdout, json.loads(file.read_text())


def test_the_table_names_what_takes_memory(planned):
    output, _ = planned
    for words in ("weights", "optimizer", "gradients", "activations", "embeddings", "generator", "It fits."):
        assert words in output


def test_overrides_and_devices_reach_the_plan(planned):
    _, report = planned
    assert (report["devices"], report["share"], report["chunk"]) == (4, 16, 4)
    assert report["memory"]["peak"] == pytest.approx(sum(report["memory"]["at_peak"].values()))
    assert report["memory"]["peak"] == next(s["peak"] for s in report["stages"] if s["stage"] == 2)


@pytest.mark.slow
def test_reserved_memory_stands_beside_the_tensors_and_says_whether_it_fits(planned, recipe_file, capsys):
    _, on_cpu = planned
    assert on_cpu["memory"]["reserved"] == on_cpu["memory"]["peak"]
    on_gpu = plan(str(recipe_file), None, device_memory=1.0)
    assert "reserved with it" in capsys.readouterr().out
    assert on_gpu["memory"]["peak"] < on_gpu["memory"]["reserved"] <= on_gpu["device_bytes"] and on_gpu["fits"]
    little = plan(str(recipe_file), None, device_memory=on_gpu["memory"]["peak"] / 0.93 / 2**30)
    assert little["memory"]["peak"] < little["device_bytes"] < little["memory"]["reserved"] and not little["fits"]


def test_the_cheapest_stage_sends_least_of_those_that_fit(planned):
    _, report = planned
    fitting = [stage for stage in report["stages"] if stage["fits"]]
    assert report["cheapest_stage"] == min(fitting, key=lambda stage: stage["sent"])["stage"]


@pytest.mark.slow
def test_the_largest_batch_is_about_the_last_that_fits(planned, recipe_file):
    """Not too large, and at most 20% too small, where it is thousands of times the recipe's own: that is planned along
    lines, and a plan of just these sizes is exact."""
    _, report = planned
    for factor, fits in ((0.97, True), (1.2, False)):
        sentences = int(report["largest_batch"] * factor) // 4 * 4
        overrides = ("batch.chunk=4", f"batch.sentences={sentences}")
        assert plan(str(recipe_file), None, overrides, 2, 2, 1.0, on_cpu=True)["fits"] is fits


@pytest.mark.slow
def test_the_file_of_json_is_replaced_where_it_is_a_plan_or_the_user_means_it(planned, recipe_file, tmp_path):
    file, options = tmp_path / "notes.json", {"devices_per_node": 2, "on_cpu": True}
    file.write_text('{"recipe": "soup"}')
    with pytest.raises(InputError, match=r"notes\.json exists and is not a plan of .*another JSON file; .*--overwrite"):
        plan(str(recipe_file), None, json_file=file, **options)
    assert file.read_text() == '{"recipe": "soup"}'
    with pytest.raises(InputError, match="is part of the input"):
        plan(str(recipe_file), None, json_file=recipe_file, overwrite=True, **options)

    written = dict(planned[1])  # in the place of the same soup
    assert written.pop("written_by") == "diffcse-scale plan"
    file.write_text(json.dumps(written))  # as an earlier version wrote it
    plan(str(recipe_file), None, json_file=file, **options)
    assert "written_by" in json.loads(file.read_text())


@pytest.mark.slow
def test_what_cannot_fit_is_said(recipe_file, capsys):
    report = plan(str(recipe_file), None, (), 1, 2, 0.001, on_cpu=True)
    assert not report["fits"] and report["cheapest_stage"] is None and report["largest_chunk"] is None
    assert "It does not fit." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipe", "quickstrat"], "did you mean quickstart?"),
        (["--deepspeed_config", "nowhere.json"], "nowhere.json"),
        (["--gpus-per-node", "65"], "batch.sentences = 64 is fewer than the 65 devices"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, words):
    result = diffcse_scale("plan", *arguments)
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith("error: ") and words in result.stderr


@pytest.mark.slow
def test_a_hard_negative_that_a_corpus_has_by_itself_is_planned_for(recipe_file, tmp_path):
    corpus = tmp_path / "triples.csv"
    corpus.write_text("anchor,positive,negative\na,b,c\n")
    changes = f"data.files={corpus}", "objective.rtd_weight=0"
    found, named = plan(str(recipe_file), None, changes), plan(str(recipe_file), None, (*changes, "data.columns=1,2,3"))
    pairs = plan(str(recipe_file), None, (*changes, "data.columns=1,2"))
    assert found["memory"] == named["memory"] and found["memory"]["peak"] > pairs["memory"]["peak"]
