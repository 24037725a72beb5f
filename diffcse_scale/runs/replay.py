"""What a run that stopped at numbers that are not finite has left, to compute that step again."""

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
    """What the newest stop of a run at numbers that are not finite has left.

    Raises:
        InputError: there is none.
    """
    files = sorted((run / run_files.NONFINITE).glob("step-*.json"))
    if not files:
        raise InputError(f"{run} has nothing to replay: it did not stop because of NaN or infinity.")
    return read_object(files[-1], Dump)


def replay_arguments(run: Path) -> list[str]:
    """What train.py is to be called with to compute the step again, on as many ranks as the run had."""
    record = read_object(run / run_files.RECORD, Record)
    config = (record.get("resumed") or [record])[-1].get("deepspeed_config") or {}
    file = run / run_files.NONFINITE / "deepspeed.json"
    # what the recipe fills in is refused from a file
    write_durably(to_json({key: value for key, value in config.items() if key not in RECIPE_KEYS}), file)
    return ["--deepspeed_config", str(file), "--output", str(run), "--replay"]
