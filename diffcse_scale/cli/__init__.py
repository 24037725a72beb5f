"""The program `diffcse-scale`: each file here holds a family of commands. The training program itself is `train.py`.

A command checks the given names before it imports torch, because that import takes seconds.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from diffcse_scale.cli import machine_commands, model_commands, recipe_commands, run_commands
from diffcse_scale.foundation.command_ending import run_command
from diffcse_scale.foundation.output import open_closed_streams, quiet_deepspeed

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def options(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Train DiffCSE sentence embeddings, evaluate them, and use them. The training program itself is `train.py`."""
    if version:
        from importlib.metadata import version as version_of

        print(f"diffcse-scale {version_of('diffcse-scale')}")
        raise typer.Exit


for family in (run_commands, recipe_commands, model_commands, machine_commands):
    app.add_typer(family.commands)


def main() -> None:
    """Entry point. A user's mistake ends with one sentence and exit code 2."""
    open_closed_streams()
    quiet_deepspeed()
    sys.exit(run_command(app))
