"""`diffcse-scale sweep`: trains every combination of seeds and recipe fields on this machine, one run at a time."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from diffcse_scale.evaluation.summary import print_summary_of
from diffcse_scale.foundation.errors import InputError, quoted
from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.foundation.paths import given_path
from diffcse_scale.foundation.run_files import RESULT
from diffcse_scale.foundation.signals import exit_code_after, listening
from diffcse_scale.training.train_arguments import parse_arguments

BETWEEN = "--"  # separates fields with their values from train.py's arguments


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
        InputError: words that cannot be read, --push-to-hub, or two combinations with the same folder.
        SystemExit: train.py would refuse a combination; it prints why.
    """
    axes, arguments, output = _parted(words)
    if any(word.partition("=")[0] == "--push-to-hub" for word in arguments):
        raise InputError("--push-to-hub is for one run: every run of a sweep would replace the one before.")
    runs: dict[Path, list[str]] = {}
    for values in combinations(axes):
        run = Path(output) / ",".join(values).replace("/", "_")
        if run in runs:
            same = " and ".join(quoted(",".join(of_run)) for of_run in (runs[run], values))
            raise InputError(f"{same} would be one run folder, {run}; give values that differ, also with _ for each /.")
        runs[run] = values
    commands = {run: [*arguments, *values, "--auto-resume", "--output", str(run)] for run, values in runs.items()}
    for command in commands.values():
        parse_arguments(None, command)
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


def _parted(words: Sequence[str]) -> tuple[list[str], list[str], str]:
    """Split into fields with their values, train.py's arguments without --output, and the output folder.

    Raises:
        InputError: there is no `--`, no field, or a word before `--` that is not a field.
    """
    if BETWEEN not in words:
        raise InputError("-- is missing before train.py's arguments: `diffcse-scale sweep seed=1,2 -- --recipe NAME`.")
    at = list(words).index(BETWEEN)
    axes, rest = list(words[:at]), list(words[at + 1 :])
    if not axes or (odd := [word for word in axes if not all(word.partition("="))]):
        given = quoted(odd[0]) if axes else "Nothing"
        raise InputError(f"{given} is not field=value,value; give some before the --, such as seed=42,43.")
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
