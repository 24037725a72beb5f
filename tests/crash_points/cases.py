"""The programs that are crashed, what they work on, and what must be true after every crash."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from diffcse_scale.checkpoints.manifest import checkpoint_name
from diffcse_scale.foundation.run_files import RESULT
from tests.crash_points.promises import RUN
from tests.support.launch import ROOT, TIMINGS, metrics
from tests.support.toy_run import write_run
from tests.support.toy_world import write_toy_world

TRAIN, COMMAND = ROOT / "train.py", ROOT / "diffcse_scale" / "__main__.py"
OLD, NEW = "a", "b"  # runs whose models are exported one over the other
EMBEDDINGS, MODEL, CACHE = "embeddings", "model", "cache"

Contents = dict[str, str]  # what a program has made, by name, in a form that can be compared


@dataclass(frozen=True)
class Case:
    """A program and its work.

    Attributes:
        program: the file that is run.
        arguments: from the world and the folder of the work.
        contents: what it has made, to be compared bit for bit with the uninterrupted one's.
        begin: makes what lies in the folder of the work before; from the world.
        ranks: processes.
        promise: in `PROMISES`.
        kept: what must be true of the folder after a crash, before anything is run again; sentences of what is not.
        resumed: what must be true of the output of the next run.
    """

    program: Path
    arguments: Callable[[Path, Path], list[str]]
    contents: Callable[[Path], Contents]
    begin: Callable[[Path, Path], None] = lambda world, work: None
    ranks: int = 1
    promise: str = "nothing"
    kept: Callable[[Path, Path, str], Iterator[str]] = lambda world, work, promised: iter(())
    resumed: Callable[[str, str], Iterator[str]] = lambda output, promised: iter(())


def write_world(world: Path) -> None:
    """A toy world with two runs and a prepared cache's recipe."""
    world.mkdir(parents=True)
    recipe = {**write_toy_world(world), "max_steps": 6, "checkpoint_every": 2, "keep_checkpoints": 1}
    recipe["evaluation"] |= {"every": 3}
    (world / "toy.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    for name in (OLD, NEW):
        write_run(world, world / name, f"seed={ord(name)}")


def _training(world: Path, work: Path) -> list[str]:
    configuration = str(ROOT / "ds_configs" / "zero2.json")
    recipe = ["--recipe", str(world / "toy.yaml"), "--deepspeed_config", configuration]
    return [*recipe, "--output", str(work / RUN), "--auto-resume"]


def _trained(work: Path) -> Contents:
    """Model, numbers on the way and result; without how long it took, and without the card, which says so."""
    run = work / RUN
    result = json.loads((run / RESULT).read_text(encoding="utf-8"))
    result = {name: value for name, value in result.items() if name not in TIMINGS}
    rows = {f"row {number}": json.dumps(row, sort_keys=True) for number, row in enumerate(metrics(run))}
    return {**rows, RESULT: json.dumps(result, sort_keys=True), **_files(run / "model")}


def _goes_on_from(output: str, promised: str) -> Iterator[str]:
    """No step is trained again that the run had said is safe."""
    if "has finished" in output:
        return
    found = re.search(r"Resuming after step (\d+) of", output)
    begun = checkpoint_name(int(found[1]) if found else 0)
    if begun < promised:
        yield f"{promised} was promised, and it went on from {begun}"


def _encoding(world: Path, work: Path) -> list[str]:
    sentences = ["--model", str(world / OLD), "--input", str(world / "corpus.txt")]
    return ["encode", *sentences, "--output", str(work / EMBEDDINGS), "--window", "150", "--devices", "cpu"]


def _exporting(run: str) -> Callable[[Path, Path], list[str]]:
    return lambda world, work: ["export", "--model", str(world / run), "--output", str(work / MODEL)]


def _exported_before(world: Path, work: Path) -> None:
    from diffcse_scale.cli import app

    app(_exporting(OLD)(world, work), standalone_mode=False)


def _one_whole_model(world: Path, work: Path, promised: str) -> Iterator[str]:
    """Under the name is the old model or the new one."""
    weights = work / MODEL / "model.safetensors"
    whole = [(world / run / "model" / "model.safetensors").read_bytes() for run in (OLD, NEW)]
    if not weights.is_file() or weights.read_bytes() not in whole:
        yield f"there is no whole model at {weights.name}"


def _preparing(world: Path, work: Path) -> list[str]:
    return ["prepare", "--recipe", str(world / "toy.yaml"), f"data.cache_dir={work / CACHE}"]


def _files(folder: Path, *names: str) -> Contents:
    files = [file for name in names or ("*",) for file in folder.rglob(name) if file.is_file()]
    left_out = ("README.md", ".diffcse-scale.json", ".lock")  # with a date, its digest, and nothing in it
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.name not in left_out
    }


def _training_case(ranks: int) -> Case:
    return Case(TRAIN, _training, _trained, ranks=ranks, promise="checkpoint", resumed=_goes_on_from)


CASES = {
    "training, 1 rank": _training_case(1),
    "training, 2 ranks": _training_case(2),
    "encode": Case(COMMAND, _encoding, lambda work: _files(work / EMBEDDINGS)),
    "export over an export": Case(
        COMMAND, _exporting(NEW), lambda work: _files(work / MODEL), _exported_before, kept=_one_whole_model
    ),
    "cache": Case(COMMAND, _preparing, lambda work: _files(work / CACHE, "ids_*.npy", "offsets_*.npy")),
}
