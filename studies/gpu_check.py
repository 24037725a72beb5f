"""The first ten minutes on a machine with GPUs, unattended: what works, and how fast is the step?

    make gpu-check                     # or: python -m studies.gpu_check
    python -m studies.gpu_check --only doctor,crossovers

Each step's output goes to a log in runs/gpu-check/<time>/. If a step fails or takes too long, the others still run.
`summary.json` there has device, versions, commands, seconds and exit codes; `steps.jsonl` has the benchmark's rows.
docs/first_gpu_hour.md says what each step should show, and what comes next.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffcse_scale.foundation.devices import device_error
from diffcse_scale.foundation.environment import environment
from diffcse_scale.foundation.errors import either

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "runs" / "gpu-check"
# a step that takes longer hangs, or compiles without end
LONGEST = 600.0
TIMED_OUT = 124  # the exit code of `timeout`


@dataclass(frozen=True)
class Step:
    """A named command; its program is this Python."""

    name: str
    arguments: tuple[str, ...]

    @property
    def command(self) -> list[str]:
        """The command line, to be run from the repository's root."""
        return [sys.executable, *self.arguments]


def steps(devices: int, folder: Path) -> list[Step]:
    """Steps for a machine with `devices` devices, with files in `folder`; what the others depend on comes first."""
    cli = ("-m", "diffcse_scale")
    found = [
        Step("doctor", (*cli, "doctor", "--ranks", str(devices), "--json", str(folder / "doctor.json"))),
        Step("kernels", ("-m", "pytest", "-q", "-m", "gpu", "tests/kernels")),
        Step("crossovers", ("-m", "diffcse_kernels.benchmark", "crossovers")),
        Step("attention", ("-m", "studies.attention_kernels")),
    ]
    for stage in range(4):
        for chunk in ("null", "8"):
            name = f"train-zero{stage}{'' if chunk == 'null' else '-chunked'}"
            run = ("--deepspeed_config", f"ds_configs/zero{stage}.json", "--output", str(folder / name))
            sizes = (f"batch.sentences={16 * devices}", f"batch.chunk={chunk}")
            short = ("max_steps=20", "log_every=5", "data.limit=4000", *sizes)
            found.append(Step(name, (*cli, "train", "--processes", str(devices), *run, *short)))
    for name, more in (("step", ()), ("step-compiled", ("--compile",))):
        rows = ("--json", str(folder / "steps.jsonl"), "--steps", "20", "--zero-stage", "0")
        sizes = ("--sentences", "64", "--sentences", "512", "--precision", "bf16", "--generator-precision", "bf16")
        found.append(Step(name, (*cli, "benchmark", "step", *sizes, *rows, *more)))
    return found


def run(step: Step, log: Path, longest: float = LONGEST) -> dict[str, Any]:
    """Run a step to its end, or for `longest` seconds; its output goes to `log`."""
    start = time.monotonic()
    variables = {"DIFFCSE_TEST_DEVICE": "cuda", "TOKENIZERS_PARALLELISM": "false"}
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    with (
        log.open("w", encoding="utf-8") as file,
        subprocess.Popen(
            step.command,
            cwd=ROOT,
            env={**os.environ, **variables, "PYTHONPATH": path},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            code = process.wait(longest)
        except subprocess.TimeoutExpired:
            code = TIMED_OUT
        finally:
            if process.poll() is None:  # also after Ctrl-C
                os.killpg(process.pid, signal.SIGKILL)  # including the ranks that it started
    return {"name": step.name, "command": step.command[1:], "seconds": time.monotonic() - start, "exit_code": code}


def check(chosen: Sequence[Step], folder: Path, longest: float = LONGEST) -> int:
    """Run the steps one after another and print one line for each.

    Returns:
        Number of failed steps.
    """
    folder.mkdir(parents=True)
    results: list[dict[str, Any]] = []
    record = {"environment": environment(), "steps": results}
    for number, step in enumerate(chosen, start=1):
        print(f"{number}/{len(chosen)}  {step.name:<22}", end="", flush=True)
        log = folder / f"{number:02}-{step.name}.log"
        result = run(step, log, longest)
        results.append(result)
        code = result["exit_code"]
        words = {0: "ok", TIMED_OUT: f"not done within {longest:.0f} s"}.get(code, f"failed, exit code {code}")
        print(f"{result['seconds']:6.0f} s  {words}{'' if code == 0 else f': see {log}'}", flush=True)
        (folder / "summary.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    failed = sum(result["exit_code"] != 0 for result in results)
    print(f"{len(results) - failed} ok, {failed} failed; logs, rows and summary.json: {folder}")
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns 0, 1 if a step failed, or 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="NAME,NAME", help="Run only these steps.")
    options = parser.parse_args(arguments)
    if (error := device_error()) is not None:
        print(
            f"error: gpu-check needs a GPU, and torch can use none here ({error}); see `diffcse-scale doctor`.",
            file=sys.stderr,
        )
        return 2
    folder = FOLDER / time.strftime("%Y%m%d-%H%M%S")
    known = steps(torch.cuda.device_count(), folder)
    names = [step.name for step in known]
    asked = options.only.split(",") if options.only else names
    if unknown := sorted(set(asked) - set(names)):
        print(f"error: There is no step {unknown[0]!r}; there are {either(names)}.", file=sys.stderr)
        return 2
    return min(1, check([step for step in known if step.name in asked], folder))


if __name__ == "__main__":
    sys.exit(main())
