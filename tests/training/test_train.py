"""Whole runs of train.py on two ranks: resume, repeat, and leave what the documentation promises."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

from tests.support.devices import ON_GPU, tolerance, two_ranks
from tests.support.launch import PROGRAMS, ROOT, TIMINGS, launch, launch_with_deepspeed, metrics

BFLOAT16 = 0.1  # of a loss after 12 steps, in which other tokens may have been drawn
ZERO2 = str(ROOT / "ds_configs" / "zero2.json")


@pytest.fixture(scope="module")
def finished(toy_world, tmp_path_factory):
    """A run of 12 steps with a checkpoint after step 6, and one of DeepSpeed's monitors."""
    folder = tmp_path_factory.mktemp("runs")
    run, config = folder / "finished", folder / "zero2.json"
    monitor = {"csv_monitor": {"enabled": True, "output_path": str(folder), "job_name": "monitor"}}
    config.write_text(json.dumps({**json.loads(Path(ZERO2).read_text()), **monitor}))
    result = launch("--deepspeed_config", str(config), "--recipe", str(toy_world / "toy.yaml"), "--output", str(run))
    assert result.returncode == 0, result.stdout
    return run, result.stdout


def assert_alike(rows, expected):
    """The same steps and names, and losses as two runs on a GPU have them."""
    assert [(row["step"], row.keys()) for row in rows] == [(row["step"], row.keys()) for row in expected]
    losses, others = ([row["loss"] for row in found if "loss" in row] for found in (rows, expected))
    assert losses == pytest.approx(others, rel=BFLOAT16)


@pytest.mark.device
def test_a_run_states_its_batch_and_leaves_its_files(finished):
    run, output = finished
    for words in ("global batch", "sentences per device", "negatives per anchor", "InfoNCE + 0.1 x RTD (sampled)"):
        assert words in output
    for name in ("recipe.yaml", "run.json", "metrics.jsonl", "curves.png", "result.json", "model/config.json"):
        assert (run / name).is_file(), name
    assert json.loads((run / "run.json").read_text())["plan"]["share"] == 16 // two_ranks()


def test_the_umask_says_who_may_read_the_files_of_a_run(finished):
    (run, _), umask = finished, os.umask(0)
    os.umask(umask)
    for file in run.rglob("*"):
        assert file.stat().st_mode & 0o666 == 0o666 & ~umask, file


@pytest.mark.device
def test_metrics_hold_every_number_a_log_line_promises(finished):
    rows = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    (last,) = [row for row in rows if row["step"] == 12 and "loss" in row]
    assert last["loss"] == pytest.approx(last["contrastive"] + 0.1 * last["rtd"], rel=tolerance(1e-5, 1e-2))
    assert 0 < last["replaced_share"] < 0.5 and 0 <= last["padding_share"] < 1
    assert last["gradient_norm"] > 0 and last["learning_rate"] == pytest.approx(1e-3 / 12)
    of_several = {"slowest_rank", "slowest_ratio"}
    assert {*last} & of_several == (of_several if two_ranks() == 2 else set())
    for name in ("positive_cosine", "negative_cosine", *TIMINGS - {"evaluation_seconds", *of_several}):
        assert isinstance(last[name], float)
    assert all(row["evaluation_seconds"] > 0 for row in rows if "dev_spearman" in row)


def test_deepspeeds_monitor_gets_the_same_numbers(finished):
    run, _ = finished
    (file,) = (run.parent / "monitor").glob("*loss.csv")
    written = [float(line.split(",")[1]) for line in file.read_text().splitlines()[1:]]
    assert written == pytest.approx([row["loss"] for row in metrics(run) if "loss" in row])


@pytest.mark.device
def test_the_exported_model_loads_in_both_libraries(finished):
    model = finished[0] / "model"
    vectors = SentenceTransformer(str(model), device="cpu").encode(["a dog runs", "two children play"])
    assert vectors.shape == (2, 32) and np.isfinite(vectors).all()
    assert AutoModel.from_pretrained(model).config.hidden_size == 32


@pytest.mark.device
def test_the_generator_is_in_no_checkpoint(finished):
    import torch

    (file,) = (finished[0] / "checkpoints" / "step-00000006").glob("*model_states.pt")
    saved = torch.load(file, weights_only=False)
    names = [*saved["module"], *(name for group in saved["param_shapes"] for name in group)]
    assert {name.split(".")[0] for name in names} == {"encoder", "projection", "discriminator", "rtd_head"}


@pytest.mark.device
def test_a_resumed_run_gives_the_same_numbers_bit_for_bit(finished, toy_world, tmp_path):
    run, _ = finished
    resumed = tmp_path / "resumed"
    shutil.copytree(run, resumed)
    (resumed / "result.json").unlink()
    shutil.rmtree(resumed / "model")
    recipe = str(toy_world / "toy.yaml")
    # each job may have a copy of the text of its own, elsewhere and of another time
    copies = [shutil.copyfile(toy_world / name, tmp_path / name) for name in ("corpus.txt", "pairs.tsv")]
    places = [f"{key}={copy}" for key, copy in zip(("data.files", "evaluation.data"), copies, strict=True)]
    result = launch("--deepspeed_config", ZERO2, "--recipe", recipe, "--output", str(resumed), "--resume", *places)
    assert result.returncode == 0, result.stdout
    assert "Resuming after step 6 of 12" in result.stdout
    if ON_GPU:
        assert_alike(metrics(resumed), metrics(run))
    else:
        assert metrics(resumed) == metrics(run)


@pytest.mark.slow
def test_lambda_that_follows_a_share_goes_on_where_it_was(toy_world, tmp_path):
    run, resumed, recipe = tmp_path / "run", tmp_path / "resumed", str(toy_world / "toy.yaml")
    asked = "objective.rtd_share=0.05", "objective.discriminator_rate=10", "objective.discriminator_warmup=2"
    result = launch("--deepspeed_config", ZERO2, "--recipe", recipe, "--output", str(run), "log_every=1", *asked)
    assert result.returncode == 0, result.stdout
    rows = [row for row in metrics(run) if "loss" in row]
    assert all((row["gradient_share"] is None) == (row["step"] <= 2) for row in rows)
    weights = [row["rtd_weight"] for row in rows]  # lambda follows every tenth step
    assert len(set(weights[:10])) == len(set(weights[10:])) == 1 and weights[9] != weights[10]
    # the loss of a row is that of its lambda
    assert [row["loss"] for row in rows] == pytest.approx(
        [row["contrastive"] + row["rtd_weight"] * row["rtd"] for row in rows], rel=1e-5
    )
    shutil.copytree(run, resumed)
    (resumed / "result.json").unlink()
    shutil.rmtree(resumed / "model")
    result = launch("--deepspeed_config", ZERO2, "--output", str(resumed), "--resume")
    assert result.returncode == 0, result.stdout
    assert metrics(resumed) == metrics(run)


@pytest.mark.device
@pytest.mark.slow
def test_a_second_run_from_the_start_gives_the_same_numbers_by_the_launcher(finished, toy_world, tmp_path):
    recipe = str(toy_world / "toy.yaml")
    result = launch_with_deepspeed("--deepspeed_config", ZERO2, "--recipe", recipe, "--output", str(tmp_path / "again"))
    assert result.returncode == 0, result.stdout
    if ON_GPU:
        return assert_alike(metrics(tmp_path / "again"), metrics(finished[0]))
    for mine, other in zip(metrics(tmp_path / "again"), metrics(finished[0]), strict=True):
        assert mine == pytest.approx(other, rel=1e-5, nan_ok=True)


def test_a_mistake_is_one_line_and_exit_code_2(finished, toy_world):
    run, _ = finished
    recipe = str(toy_world / "toy.yaml")
    result = launch("--recipe", recipe, "--output", str(run), "seed=2", ranks=1)
    assert "error: " + str(run) + " holds a run of another recipe" in result.stdout
    assert "seed: 2, not 1" in result.stdout
    assert "Traceback" not in result.stdout
    assert result.returncode == 2


@pytest.mark.device
def test_triples_with_hard_negatives_train_in_the_official_fidelity(toy_world, tmp_path):
    sentences = (toy_world / "corpus.txt").read_text().splitlines()
    rows = zip(sentences[0:90:3], sentences[1:90:3], sentences[2:90:3], strict=True)
    lines = ["anchor,positive,negative", *(",".join(f'"{cell}"' for cell in row) for row in rows)]
    (tmp_path / "triples.csv").write_text("\n".join(lines))
    result = launch(
        *("--recipe", str(toy_world / "toy.yaml"), "--output", str(tmp_path / "run"), "max_steps=2"),
        *(f"data.files={tmp_path}/triples.csv", "data.columns=[anchor, positive, negative]", "batch.sentences=8"),
        *("objective.fidelity=official", "objective.hard_negative_weight=1.0", "evaluation.data=null"),
        ranks=1,
    )
    assert result.returncode == 0, result.stdout
    assert "negatives per anchor │ 15" in result.stdout  # 7 other positives and 8 hard negatives
    assert [row["step"] for row in metrics(tmp_path / "run")] == [1, 2]


@pytest.mark.parametrize(("more", "code"), [(("--auto-resume",), 0), ((), 2)])
def test_a_process_leaves_its_group_before_python_ends(finished, toy_world, more, code):
    # gloo's threads abort a process that ends in their midst: an exit code of -6, now and then
    arguments = ["--recipe", str(toy_world / "toy.yaml"), "--output", str(finished[0]), *more]
    result = launch(*arguments, ranks=1, program=PROGRAMS / "leaving_program.py")
    assert result.returncode == code, result.stdout
    assert "group left: True" in result.stdout
