"""What a run leaves when it stops at numbers that are not finite, for computing that step again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffcse_scale.engine.config_file import RECIPE_KEYS
from diffcse_scale.foundation import run_files
from diffcse_scale.foundation.durable import write_durably
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.objects import read_object
from diffcse_scale.foundation.strict_json import to_json
from diffcse_scale.runs.records import Dump, Record


def newest_dump(run: Path) -> dict[str, Any]:
    """The newest file that a run has written on stopping at numbers that are not finite.

    Raises:
        InputError: there is no run, or no such file.
    """
    if not (run / run_files.RECIPE).is_file():
        raise InputError(f"{run} holds no run: {run_files.RECIPE} is not there; give the folder that training wrote.")
    files = sorted((run / run_files.NONFINITE).glob("step-*.json"))
    if not files:
        raise InputError(f"{run} has nothing to replay: it did not stop because of NaN or infinity.")
    return read_object(files[-1], Dump)


def replay_arguments(run: Path) -> list[str]:
    """The arguments of train.py for computing the step again, on as many ranks as the run had."""
    record = read_object(run / run_files.RECORD, Record)
    config = (record.get("resumed") or [record])[-1].get("deepspeed_config") or {}
    file = run / run_files.NONFINITE / "deepspeed.json"
    # leave out the keys that the recipe fills in, because they are refused in a file
    write_durably(to_json({key: value for key, value in config.items() if key not in RECIPE_KEYS}), file)
    return ["--deepspeed_config", str(file), "--output", str(run), "--replay"]
