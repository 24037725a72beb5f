"""The options of `diffcse-scale doctor`, in their own file so that `--help` need not import torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import ConfigDict, Field

from diffcse_scale.recipe import Section


class DoctorOptions(Section):
    """What to check besides the machine itself."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    ranks: int | None = Field(None, ge=1, description="Also start this many processes here and time an all-reduce.")
    output: Path = Field(Path("runs"), description="The folder that runs will be written to.")
    seconds: float = Field(60.0, gt=0, description="Seconds to wait for the ranks to meet and for an all-reduce.")
    json_file: Path | None = Field(None, alias="json", description="Also write the table to this file.")
    overwrite: bool = Field(False, description="Replace the file of --json, whatever it is.")
