"""`diffcse-scale sweep`: trains every combination of seeds and recipe fields on this machine, one run at a time."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from diffcse_scale.evaluation.summary import print_summary_of
from diffcse_scale.foundation.errors import InputError, brief, quoted
from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.foundation.paths import given_path
from diffcse_scale.foundation.run_files import RESULT
from diffcse_scale.foundation.signals import exit_code_after, listening
from diffcse_scale.training.train_arguments import parse_arguments

BETWEEN = "--"  # separates fields with their values from train.py's arguments
# train.py's options that make no sense in a sweep
REFUSED = {
    "--push-to-hub": "is for one run: every run of a sweep would replace the one before.",
    "--dry-run": "is for one run, and a sweep trains; give it to `diffcse-scale train`.",
    "--replay": "is for one run, and a sweep trains; use `diffcse-scale replay RUN`.",
    "--resume": "is for one run; leave it out, because a sweep with the --output of an earlier one continues its runs.",
}


def sweep(words: Sequence[str], processes: int | None) -> int:
    """Train all combinations that are not finished yet, and print a summary.

    If a run fails, the others are still trained. If a run is stopped, the sweep ends; the same command continues it.

    Args:
        words: `field=value,value` for each field, `--`, and train.py's arguments. `--output` is the folder of all runs,
            by default `runs/sweep-<time>`.
        processes: as for `diffcse-scale train`.

    Returns:
        0, the exit code of the run that was stopped, or the exit code of the first run that failed.

    Raises:
        InputError: words that cannot be read, an option for one run only, or two combinations with the same folder or
            the same recipe.
        SystemExit: train.py would refuse a combination; it prints why.
    """
    axes, arguments, output = _parted(words)
    for option in (word.partition("=")[0] for word in arguments):
        if option in REFUSED:
            raise InputError(f"{option} {REFUSED[option]}")
    runs: dict[Path, list[str]] = {}
    for values in combinations(axes):
        run = Path(output) / ",".join(values).replace("/", "_")
        if run in runs:
            same = _both(runs[run], values)
            raise InputError(f"{same} would be one run folder, {run}; give values that differ, also with _ for each /.")
        runs[run] = values
    commands = {run: [*arguments, *values, "--auto-resume", "--output", str(run)] for run, values in runs.items()}
    _check(runs, commands)
    failed = {}
    for number, (run, command) in enumerate(commands.items(), 1):
        print(f"Run {number} of {len(commands)}: {run}", flush=True)
        code, stopped = _train(command, processes)
        if stopped or code in (ExitCode.STOPPED, ExitCode.PREEMPTED):
            print("The sweep was stopped; the same command, with its --output, continues it.", file=sys.stderr)
            return code or ExitCode.STOPPED
        if not (given_path(run) / RESULT).is_file():
            failed[run] = code or ExitCode.FAILED
            print(f"failed with exit code {code}: {run}", file=sys.stderr)
    if len(failed) < len(runs):
        print_summary_of(list(runs))
    return next(iter(failed.values()), ExitCode.FINISHED)


def combinations(axes: Sequence[str]) -> list[list[str]]:
    """All choices of one value for each field, in the order of slurm/sweep.sbatch.

    >>> combinations(["seed=1,2", "objective.rtd_weight=0"])
    [['seed=1', 'objective.rtd_weight=0'], ['seed=2', 'objective.rtd_weight=0']]
    """
    chosen = [
        [f"{name}={value}" for value in values.split(",")] for name, _, values in (a.partition("=") for a in axes)
    ]
    return [list(reversed(values)) for values in itertools.product(*reversed(chosen))]


def _check(runs: Mapping[Path, list[str]], commands: Mapping[Path, list[str]]) -> None:
    """Let train.py's parser read all commands.

    Raises:
        InputError: two combinations are the same recipe, which would count twice in the summary.
        SystemExit: train.py would refuse a combination; it prints why.
    """
    recipes: dict[str, list[str]] = {}
    for run, command in commands.items():
        recipe = parse_arguments(None, command).recipe.model_dump_json(exclude={"name"})
        if recipe in recipes:
            raise InputError(f"{_both(recipes[recipe], runs[run])} are the same recipe; give values that differ.")
        recipes[recipe] = runs[run]


def _both(first: Sequence[str], second: Sequence[str]) -> str:
    return f"{quoted(','.join(first))} and {quoted(','.join(second))}"


def _parted(words: Sequence[str]) -> tuple[list[str], list[str], str]:
    """Split into fields with their values, train.py's arguments without --output, and the output folder.

    Raises:
        InputError: there is no `--`, no field, a word before `--` that is not a field, or a field given twice.
    """
    if BETWEEN not in words:
        raise InputError("-- is missing before train.py's arguments: `diffcse-scale sweep seed=1,2 -- --recipe NAME`.")
    at = list(words).index(BETWEEN)
    axes, rest = list(words[:at]), list(words[at + 1 :])
    if not axes or (odd := [word for word in axes if not all(word.partition("="))]):
        given = quoted(odd[0]) if axes else "Nothing"
        raise InputError(f"{given} is not field=value,value; give some before the --, such as seed=42,43.")
    names = [axis.partition("=")[0] for axis in axes]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{brief(twice[0])} is given twice; give all its values at once, as field=value,value.")
    output, arguments = f"runs/sweep-{time.strftime('%Y%m%d-%H%M%S')}", []
    while rest:
        word = rest.pop(0)
        if word == "--output" and rest:
            output = rest.pop(0)
        elif word.startswith("--output="):
            output = word.partition("=")[2]
        else:
            arguments.append(word)
    return axes, arguments, str(given_path(output))


def _train(arguments: list[str], processes: int | None) -> tuple[int, bool]:
    """Run train.py to its end; return its exit code, and whether this process was asked to stop meanwhile."""
    asked = False
    options = [] if processes is None else ["--processes", str(processes)]
    command = [sys.executable, "-m", "diffcse_scale", "train", *options, *arguments]
    with subprocess.Popen(command) as run:

        def stop(number: int, frame: FrameType | None) -> None:
            nonlocal asked
            asked = True
            if number != signal.SIGINT:  # a terminal sends SIGINT to both processes
                run.send_signal(number)

        with listening(stop):
            code = run.wait()
        return (exit_code_after(-code) if code < 0 else code), asked
