"""The `diffcse-scale` program."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from typing import get_args

import pytest
from diffcse_kernels.benchmark import command as kernels

from diffcse_scale.cli.machine_commands import KernelsCommand
from diffcse_scale.engine.config_file import shipped_configs
from tests.support.command_line import diffcse_scale
from tests.support.launch import ROOT, environment


def test_help_of_the_module_run_as_a_program_names_every_command():
    command = [sys.executable, "-m", "diffcse_scale", "--help"]
    output = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for command in (
        "train",
        "evaluate",
        "encode",
        "search",
        "export",
        "report",
        "pretrain-generator",
        "benchmark",
        "doctor",
    ):
        assert command in output


def test_the_version_is_that_of_the_package():
    assert diffcse_scale("--version").stdout == f"diffcse-scale {version('diffcse-scale')}\n"


def test_the_help_of_train_shows_every_option_of_train_py():
    output = diffcse_scale("train", "--help").stdout
    assert "--processes" in output
    for option in ("--recipe", "--deepspeed_config", "--output", "--resume", "--auto-resume", "--replay", "--hook"):
        assert option in output
    assert "--hang-timeout" in output and "section.field=value" in output
    for name in shipped_configs():
        assert name in output


def test_every_shipped_recipe_has_a_line_in_the_list_that_fits_a_terminal():
    lines = diffcse_scale("recipe", "--list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == sorted(file.stem for file in (ROOT / "recipes").glob("*.yaml"))
    assert all(25 < len(line) < 80 for line in lines)


@pytest.mark.parametrize(
    ("command", "defaults"),
    [
        ("evaluate", ["sts"]),
        ("summarize", ["best.dev_spearman"]),
        ("plan", ["zero2", "80"]),
        ("benchmark step", ["diffcse-scale", "bert-base", "64", "32", "fp32", "0"]),
    ],
)
def test_help_shows_the_defaults_of_options_that_typer_does_not_know(command, defaults):
    """Rich takes a word in square brackets for markup and shows nothing."""
    lines = diffcse_scale(*command.split(), "--help").stdout.splitlines()
    shown = " ".join(" ".join(line.strip("│ ") for line in lines).split())
    for default in defaults:
        assert f"(default: {default})" in shown


def test_every_option_of_pretrain_generator_is_a_documented_field():
    from diffcse_scale.generator.pretrain_options import PretrainOptions

    output = diffcse_scale("pretrain-generator", "--help").stdout
    for name in PretrainOptions.model_fields:
        assert f"--{name.replace('_', '-')}" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "--model", "nowhere", "--data", "sts"], "does not exist"),
        (["pretrain-generator", "--files", "a.txt", "--output", "x", "--hidden", "10", "--heads", "3"], "must divide"),
        (["pretrain-generator", "--files", "nowhere.txt", "--output", "x"], "nowhere.txt"),
        (["benchmark", "kernels", "info-nce", "--only", "egar"], "did you mean eager?"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path, arguments, words):
    result = diffcse_scale(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith("error: ") and words in result.stderr
    assert "Traceback" not in result.stderr


def test_the_benchmarks_of_kernels_are_named_as_their_own_program_names_them():
    (commands,) = (action for action in kernels._parser()._actions if isinstance(action.choices, dict))
    assert tuple(commands.choices) == get_args(KernelsCommand)


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("sta", ["status"]),
        ("recipe bert_base_t", ["bert_base_transfer"]),
        ("plan --deepspeed_config zero3", ["zero3", "zero3_offload"]),
        ("train --pro", ["--processes"]),
        ("train max_steps=3 --re", ["--recipe", "--resume", "--replay"]),
        ("train --processes 2 --recipe bert_base_t", ["bert_base_transfer"]),
        ("train --deepspeed_config zero3", ["zero3", "zero3_offload"]),
        ("train --output bert", []),  # the shell's own: files
        ("sweep seed=1,2 -- --hang", ["--hang-timeout"]),
    ],
)
def test_a_shell_completes_commands_options_and_shipped_names(
    monkeypatch: pytest.MonkeyPatch, typed: str, found: list[str]
):
    for name, value in {"_DIFFCSE_SCALE_COMPLETE": "complete_bash", "COMP_WORDS": f"diffcse-scale {typed}"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split())))
    assert diffcse_scale().stdout.split() == found


@pytest.mark.parametrize(
    "arguments",
    [
        "diffcse_scale --help",
        pytest.param("train --dry-run --deepspeed_config zero0 --recipe quickstart", marks=pytest.mark.slow),
    ],
)
def test_streams_that_were_closed_from_the_start_are_no_error(arguments: str) -> None:
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-m", *arguments.split()]
    assert subprocess.run(command, cwd=ROOT, env=environment(), check=False).returncode == 0
