"""`diffcse-scale` in this process, which has imported what it needs."""

from __future__ import annotations

import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from typer import rich_utils

from diffcse_scale import cli


def diffcse_scale(*arguments: object, cwd: Path = Path()) -> subprocess.CompletedProcess[str]:
    """What `diffcse-scale ARGUMENTS` says in the folder `cwd`, and its exit code."""
    command = ["diffcse-scale", *map(str, arguments)]
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(io.StringIO()) as output,
        redirect_stderr(io.StringIO()) as errors,
    ):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", command)
        patch.setenv("COLUMNS", "200")
        patch.setattr(rich_utils, "MAX_WIDTH", 200)  # of help, whatever environment rich has met first
        with pytest.raises(SystemExit) as ended:
            cli.main()
    code = ended.value.code if isinstance(ended.value.code, int) else 1
    return subprocess.CompletedProcess(command, code, output.getvalue(), errors.getvalue())
