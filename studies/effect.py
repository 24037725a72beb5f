"""Does replaced-token detection help, and does it help through z? Arms with common random numbers.

    python -m studies.effect run embedded          # world (i): gates, one factor at a time, then the confirmation
    python -m studies.effect run scratch           # world (ii): $DIFFCSE_MODELS/wiki-scratch on $DIFFCSE_DATA
    python -m studies.effect report                # tables of the existing rows

docs/results/effect.md says what was decided before the first run. Each run is one process of one thread. After each run
a row is added to docs/results/effect.jsonl. Existing rows are not made again, so the same command continues where it
stopped. `--workers 2` makes two runs at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from scipy import stats

from diffcse_scale.embedded.grammar import graded_pairs
from diffcse_scale.evaluation.sensitivity import MEAN as EDITS_MEAN
from diffcse_scale.evaluation.sensitivity import evaluate_edits, load_edits
from diffcse_scale.evaluation.sts import MEAN, evaluate_sts, spearman
from diffcse_scale.evaluation.tasks import load_sts
from diffcse_scale.foundation.environment import environment
from diffcse_scale.model_folder.load import load_model
from studies.wiki_mini import read

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "docs" / "results" / "effect.jsonl"
SEEDS = (1, 2, 3)
FRESH_SEEDS = tuple(range(101, 111))
SCRATCH_SEEDS = (1, 2, 3, 4, 5)
TEST_PAIRS = 1500  # of the embedded world; none is a development pair
WRITING = Lock()
CLAIMED_GAIN = 0.005  # nats per word, gate 1
ARMS = {
    "0": ["objective.rtd_weight=0"],
    "own": ["objective.condition=own"],
    "other": ["objective.condition=other"],
}


@dataclass(frozen=True)
class Setting:
    """The settings that all arms of a comparison share."""

    name: str
    world: str
    overrides: tuple[str, ...] = ()
    arms: tuple[str, ...] = ("own", "other")


@dataclass(frozen=True)
class Run:
    """One arm of a setting with one seed."""

    setting: Setting
    arm: str
    seed: int
    added: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        return f"{self.setting.world}/{self.setting.name}/{self.arm}/seed{self.seed}"

    def overrides(self) -> list[str]:
        """Overrides of the world's recipe; the arm's own come last."""
        return [
            *COMMON[self.setting.world],
            *self.setting.overrides,
            *self.added,
            *ARMS.get(self.arm, []),
            f"seed={self.seed}",
        ]


# as rows keep it; `train` puts folders in the place of variables
COMMON = {
    # the centre: quickstart at lambda 1
    "embedded": ["optimizer.clip=0", "objective.rtd_weight=1", "checkpoint_every=1000000"],
    "scratch": [
        *("optimizer.clip=0", "objective.rtd_weight=1", "checkpoint_every=500"),
        *("model.encoder=$DIFFCSE_MODELS/wiki-scratch", "model.generator=$DIFFCSE_MODELS/wiki-scratch"),
        *("model.pooling=mean", "model.projection=none", "data.limit=200000"),
        *("data.files=$DIFFCSE_DATA/corpus/*.txt.gz", "evaluation.data=$DIFFCSE_DATA/sts", "evaluation.max_length=64"),
        *("batch.sentences=32", "data.max_length=16", "max_steps=2000", "evaluation.every=200"),
    ],
}
ALL = ("0", "own", "other")
RATES = ("3e-5", "1e-4", "3e-4")  # learning rates for the pilot of world (ii), at lambda 0
# one factor at a time around the centre; arm 0 is left out if a factor (lambda, masking, warm-up) cannot change it
FACTORS = [
    Setting("centre", "embedded", arms=ALL),
    *(Setting(f"lambda {value}", "embedded", (f"objective.rtd_weight={value}",)) for value in (0.1, 0.3, 3, 10)),
    *(Setting(f"masking {value}", "embedded", (f"objective.masking_ratio={value}",)) for value in (0.15, 0.5, 0.7)),
    Setting("warm-up 100", "embedded", ("objective.discriminator_warmup=100",)),
    Setting("first token", "embedded", ("model.pooling=cls",), ALL),
    Setting("projection", "embedded", ("model.projection=batchnorm",), ALL),
    *(Setting(f"epochs {value}", "embedded", (f"epochs={value}",), ALL) for value in (3, 10)),
]
DISCRIMINATOR_RATES = ("10", "30")  # objective.discriminator_rate, for gate 1 of world (ii) once more
JOINT_RATES = ("10", "3")  # the same for the pilots of the third plan, the preferred one first
SLOWER = 3  # by which the arms' encoder learns more slowly than in these pilots; their discriminator does not
# poolings and projections for the third plan of world (ii), at lambda 0; the better one is the setting of its arms
POOLED = [
    Setting("first token", "scratch", ("model.pooling=cls",), ALL),
    Setting("first token, projection", "scratch", ("model.pooling=cls", "model.projection=batchnorm"), ALL),
]
SCRATCH_STEPS = 2000  # in which RTD reaches the encoder; the warm-up comes before them
PILOT = [
    Run(Setting(f"pilot {rate}", "scratch", (f"optimizer.learning_rate={rate}", "max_steps=500")), "0", 0)
    for rate in RATES
]
POOLED_PILOT = [
    Run(
        Setting(f"pilot {one.name}", "scratch", one.overrides),
        "0",
        0,
        ("optimizer.learning_rate=3e-5", "max_steps=1000"),
    )
    for one in POOLED
]


def embedded_runs() -> list[Run]:
    """World (i): gate 0, then one setting after another with all seeds; the settings of several epochs come last."""
    centre = FACTORS[0]
    detached = Run(centre, "detached", SEEDS[0], ("objective.condition=detached",))
    return [detached, *(Run(setting, arm, seed) for setting in FACTORS for seed in SEEDS for arm in setting.arms)]


def best_rate(found: dict[str, dict[str, Any]]) -> str:
    """The learning rate for world (ii): the pilot's best on STS-B dev."""
    return max(RATES, key=lambda rate: found[PILOT[RATES.index(rate)].name]["best"]["dev_spearman"])


def scratch_gates(found: dict[str, dict[str, Any]]) -> list[Run]:
    """Gate 1 of world (ii): at the pilot's learning rate, then with higher ones for the discriminator."""
    return [frozen("scratch", best_rate(found), own) for own in ("1", *DISCRIMINATOR_RATES)]


def best_pooling(found: dict[str, dict[str, Any]]) -> Setting:
    """Pooling and projection for the arms: the better pilot's on STS-B dev."""
    scores = [found[pilot.name]["best"]["dev_spearman"] for pilot in POOLED_PILOT]
    return POOLED[int(np.argmax(scores))]


def joint_pilots(found: dict[str, dict[str, Any]]) -> list[Run]:
    """Does the discriminator keep its use of z while InfoNCE trains the encoder? No schedule lowers the rate here."""
    pooled = best_pooling(found)
    steps = ("optimizer.schedule=constant", "max_steps=1000", "objective.discriminator_warmup=1000")
    rate = f"optimizer.learning_rate={best_rate(found)}"
    runs = []
    for own in JOINT_RATES:
        overrides = (*pooled.overrides, rate, f"objective.discriminator_rate={own}")
        runs.append(
            Run(Setting(f"pilot with InfoNCE, discriminator rate {own}", "scratch", overrides), "own", 0, steps)
        )
    return runs


def lasting_gain(row: dict[str, Any]) -> int | None:
    """Step of the evaluation from which on the discriminator used z to the end; None if it did not at the end."""
    below = [step for step, *_, gain in row["curve"] if gain < CLAIMED_GAIN]
    return next((step for step, *_ in row["curve"] if step > max(below, default=-1)), None)


def scratch_runs(found: dict[str, dict[str, Any]]) -> list[Run]:
    """World (ii): all arms get the pooling, the learning rates and the warm-up that the pilots found."""
    rows = {own: found[run.name] for own, run in zip(JOINT_RATES, joint_pilots(found), strict=True)}
    used = [own for own in JOINT_RATES if lasting_gain(rows[own]) is not None]
    own = used[0] if used else max(JOINT_RATES, key=lambda own: rows[own]["curve"][-1][-1])
    warmup = lasting_gain(rows[own]) or 0
    added = (
        f"optimizer.learning_rate={float(best_rate(found)) / SLOWER:g}",
        f"objective.discriminator_rate={int(own) * SLOWER}",
        *(f"objective.discriminator_warmup={warmup}", f"max_steps={SCRATCH_STEPS + warmup}"),
    )
    setting = best_pooling(found)
    return [Run(setting, arm, seed, added) for seed in SCRATCH_SEEDS for arm in setting.arms]


def frozen(world: str, rate: str = "3e-4", own: str = "1") -> Run:
    """Gate 1: 2,000 steps of RTD alone without a gradient to the encoder, so only the discriminator learns.

    Its learning rate is `own` times `rate`.
    """
    alone = ("objective.contrastive_weight=0", "objective.condition=detached", f"optimizer.learning_rate={rate}")
    higher = (f"objective.discriminator_rate={own}",) if own != "1" else ()
    name = f"gate 1, discriminator rate {own}" if own != "1" else "gate 1"
    return Run(Setting(name, world), "frozen encoder", SEEDS[0], ("epochs=10", "max_steps=2000", *alone, *higher))


def first_gain(row: dict[str, Any]) -> int | None:
    """Step of the first evaluation at which the discriminator used z; None if it never did."""
    return next((point[0] for point in row["curve"] if (point[4] or 0) >= CLAIMED_GAIN), None)


def confirmation(found: dict[str, dict[str, Any]]) -> list[Run]:
    """The setting with the largest own - other, on ten fresh seeds; nothing until all settings have their rows."""
    means = {}
    for setting in FACTORS:
        gains = differences(found, setting, "own", "other", SEEDS, "test")
        if len(gains) < len(SEEDS):
            return []
        means[setting] = float(np.mean(gains))
    best = max(means, key=lambda setting: means[setting])
    return [Run(best, arm, seed) for seed in FRESH_SEEDS for arm in ALL]


def differences(
    found: dict[str, dict[str, Any]], setting: Setting, one: str, other: str, seeds: tuple[int, ...], measure: str
) -> list[float]:
    """One arm's number minus another's, for each seed that has both."""
    pairs = [[found.get(Run(setting, arm, seed).name) for arm in (one, other)] for seed in seeds]
    return [first[measure] - second[measure] for first, second in pairs if first and second]


def make(run: Run, runs: Path) -> None:
    """Train, measure and add the row, unless the row exists."""
    if run.name in read(ROWS):
        return
    folder = runs / run.name.replace("/", "-").replace(" ", "_").replace(",", "")
    print(run.name, flush=True)
    train(folder, "quickstart", run.overrides()).check_returncode()
    add(ROWS, run.name, row_of(run, folder))


def train(folder: Path, recipe: str, overrides: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Start or continue a run, in one process of one thread; its output is appended to a log beside its folder."""
    command = [sys.executable, str(ROOT / "train.py"), "--deepspeed_config", "zero0", "--recipe", recipe]
    command += map(os.path.expandvars, overrides)
    command += ["--output", str(folder), "--auto-resume"]
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        return subprocess.run(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})


def add(rows: Path, name: str, row: dict[str, Any]) -> None:
    """Add the row of a run; several threads may do so at once."""
    with WRITING, rows.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"name": name, **row, "environment": environment()}) + "\n")


def row_of(run: Run, folder: Path) -> dict[str, Any]:
    """The row of a finished run."""
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    evaluations = [row for row in metrics if "dev_spearman" in row]
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    keys = ("dev_spearman", "dev_rtd_auroc", "dev_rtd_skill", "dev_rtd_z_gain")
    met = ("step", "gradient_share", "gradient_cosine")
    shares = [[row[key] for key in met] for row in metrics if "gradient_share" in row]
    return {
        "overrides": run.overrides(),
        "best": result["best"],
        "last": evaluations[-1]["dev_spearman"],
        "area": float(np.mean([row["dev_spearman"] for row in evaluations])),
        **measures(folder / "model", run.setting.world),
        "curve": [[row["step"], *(row.get(key) for key in keys)] for row in evaluations],
        "gradients": shares,
        "seconds": sum(row.get("training_seconds", 0) + row.get("evaluation_seconds", 0) for row in metrics),
    }


def measures(folder: Path, world: str) -> dict[str, Any]:
    """Test score and sensitivity to each kind of edit, for the checkpoint chosen on the development pairs."""
    model, _ = load_model(folder)

    def encode(sentences: list[str]) -> np.ndarray:
        return np.asarray(model.encode(sentences, batch_size=64, show_progress_bar=False))

    edits = evaluate_edits(encode, load_edits(None))
    found: dict[str, Any] = {
        "edits": {score.name: score.value for score in edits.scores},
        "edits_mean": edits[EDITS_MEAN].value,
    }
    if world == "embedded":
        return {"test": spearman(encode, graded_pairs(TEST_PAIRS, seed=1)), **found}
    results = evaluate_sts(encode, load_sts(Path(os.environ["DIFFCSE_DATA"]) / "sts"))
    return {"test": results[MEAN].value, "tasks": {score.name: score.value for score in results.scores}, **found}


def interval(values: list[float]) -> str:
    """Mean and 95% interval of Student's t."""
    if len(values) < 2:
        return "-"
    mean, half = np.mean(values), stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"


def report() -> None:
    """Print Markdown tables."""
    found = read(ROWS)
    settings = [(setting, SEEDS) for setting in FACTORS]
    settings += [(setting, FRESH_SEEDS) for setting in FACTORS] + [(setting, SCRATCH_SEEDS) for setting in POOLED]
    for measure in ("test", "last", "area", "edits_mean"):
        print(f"\n| setting, {measure} | seeds | own - other | own - 0 | other - 0 |\n|---|---|---|---|---|")
        for setting, seeds in settings:
            pairs = (("own", "other"), ("own", "0"), ("other", "0"))
            base = setting if "0" in setting.arms or seeds is FRESH_SEEDS else FACTORS[0]
            cells = []
            for one, other in pairs:
                if other == "0" and base is not setting:
                    cells.append(interval(_against(found, setting, base, one, seeds, measure)))
                else:
                    cells.append(interval(differences(found, setting, one, other, seeds, measure)))
            count = len(differences(found, setting, "own", "other", seeds, measure))
            if count:
                print(f"| {setting.world}: {setting.name} | {count} | {' | '.join(cells)} |")
    print("\n| gate | step | z gain |\n|---|---|---|")
    for name, row in found.items():
        if "gate 1" in name:
            step = "never" if (first := first_gain(row)) is None else first
            print(f"| {name} | {step} | {max(point[4] or 0 for point in row['curve']):.4f} |")


def _against(
    found: dict[str, dict[str, Any]], setting: Setting, base: Setting, arm: str, seeds: tuple[int, ...], measure: str
) -> list[float]:
    """An arm of a setting minus lambda 0 of the centre, for settings that cannot change lambda 0."""
    pairs = [(found.get(Run(setting, arm, seed).name), found.get(Run(base, "0", seed).name)) for seed in seeds]
    return [first[measure] - second[measure] for first, second in pairs if first and second]


STAGES: dict[str, list[Callable[[dict[str, dict[str, Any]]], list[Run]]]] = {
    "embedded": [lambda _: [frozen("embedded")], lambda _: embedded_runs(), confirmation],
    "scratch": [lambda _: [*PILOT, *POOLED_PILOT], scratch_gates, joint_pilots, scratch_runs],
}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("world", choices=("embedded", "scratch"))
    run.add_argument("--runs", type=Path, default=Path("runs/effect"))
    run.add_argument("--workers", type=int, default=1)
    commands.add_parser("report")
    arguments = parser.parse_args()
    if arguments.command == "report":
        return report()
    if arguments.world == "scratch" and not {"DIFFCSE_MODELS", "DIFFCSE_DATA"} <= os.environ.keys():
        parser.error("world scratch needs DIFFCSE_MODELS and DIFFCSE_DATA; set both to folders of real data")
    torch.set_num_threads(1)  # two threads that encode beside the runs wait for each other: 95 s instead of 9 s
    arguments.runs.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(arguments.workers) as pool:
        for stage in STAGES[arguments.world]:  # a stage may need the rows of the stage before
            list(pool.map(lambda one: make(one, arguments.runs), stage(read(ROWS))))
    return None


if __name__ == "__main__":
    main()
