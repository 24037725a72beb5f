"""A run saved on 2 ranks at ZeRO-2 goes on at other world sizes and stages, as if it had never stopped.

The truth is the run that did not stop. There is no dropout, whose random numbers are a rank's own. Losses (0.9 at
first) agree to 1e-4: other shapes add gradients up in another order. The sentences of every step, their corruption
included, are the same exactly. `test_resharding.py` holds the state itself to the last bit, in all directions.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.devices import ON_GPU, tolerance
from tests.support.launch import PROGRAMS, ROOT, launch, metrics
from tests.support.stopped_run import stopped

pytestmark = [pytest.mark.slow, pytest.mark.device]
STEPS = 12


@pytest.fixture(scope="module")
def train(toy_world, tmp_path_factory):
    """Train or resume with a ZeRO stage on some ranks; returns the sentences of each step on all ranks together."""
    folder = tmp_path_factory.mktemp("shapes")

    def run(name: str, stage: int, ranks: int, *more: str) -> dict[int, list]:
        config = json.loads((ROOT / "ds_configs" / f"zero{stage}.json").read_text())
        if stage == 3:
            config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        (folder / f"zero{stage}.json").write_text(json.dumps(config))
        sentences = folder / f"sentences-{name}"
        sentences.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RECORD", str(sentences))
            result = launch(
                *("--deepspeed_config", str(folder / f"zero{stage}.json"), "--recipe", str(toy_world / "toy.yaml")),
                *("--output", str(folder / name), "model.dropout=0", "checkpoint_every=2", *more),
                ranks=ranks,
                program=PROGRAMS / "record_sentences.py",
            )
        assert result.returncode == 0, result.stdout
        lines = [json.loads(line) for file in sentences.iterdir() for line in file.read_text().splitlines()]
        return {step: sorted(line[1:] for line in lines if line[0] == step) for step in {line[0] for line in lines}}

    run.folder = folder
    return run


@pytest.fixture(scope="module")
def uninterrupted(train):
    """A finished run of 2 ranks at ZeRO-2, and the sentences of its steps."""
    return train.folder / "uninterrupted", train("uninterrupted", 2, 2)


def assert_same(run: Path, truth: Path) -> None:
    mine, other = ([row for row in metrics(folder) if "loss" in row] for folder in (run, truth))
    assert [row["step"] for row in mine] == list(range(1, STEPS + 1))
    assert [row["loss"] for row in mine] == pytest.approx(
        [row["loss"] for row in other], rel=0, abs=tolerance(1e-4, 0.1)
    )
    assert [row["learning_rate"] for row in mine] == [row["learning_rate"] for row in other]
    best, expected = (json.loads((folder / "result.json").read_text())["best"] for folder in (run, truth))
    if not ON_GPU:
        assert best["step"] == expected["step"]
        assert best["dev_spearman"] == pytest.approx(expected["dev_spearman"], abs=0.1)


@pytest.mark.parametrize(("ranks", "stage"), [(1, 3), (3, 1), (4, 1)])
def test_two_ranks_at_zero_2_go_on_in_another_shape(train, uninterrupted, ranks, stage):
    truth, expected = uninterrupted
    run = stopped(truth, f"on-{ranks}", 6)
    sentences = train(run.name, stage, ranks, "--resume")
    assert sentences == {step: expected[step] for step in range(6, STEPS)}
    assert_same(run, truth)
    record = json.loads((run / "run.json").read_text())
    assert record["plan"]["world_size"] == 2
    assert [entry["plan"]["world_size"] for entry in record["resumed"]] == [ranks]
    assert [entry["deepspeed_config"]["zero_optimization"]["stage"] for entry in record["resumed"]] == [stage]


def test_a_run_may_change_its_shape_again_and_again(train, uninterrupted):
    truth, expected = uninterrupted
    run = truth
    for step, stage, ranks in [(4, 3, 1), (6, 0, 2), (8, 2, 1), (10, 0, 1)]:
        run = stopped(run, f"after-{step}", step)
        sentences = train(run.name, stage, ranks, "--resume")
        assert sentences == {step: expected[step] for step in range(step, STEPS)}
    assert_same(run, truth)
    assert len(json.loads((run / "run.json").read_text())["resumed"]) == 4
