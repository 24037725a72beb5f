"""Every code block of README and docs runs, or a comment before it says why it does not; its commands exist.

Where a block is only parsed, its commands are held against the parsers of the programs: an option that has gone, or a
script, a recipe or a target of make, is noticed.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import typer.main
import yaml

from diffcse_scale.cli import app
from diffcse_scale.engine.config_file import load_deepspeed_config
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.training import train_arguments
from tests.support.code_blocks import PAGES, REASONS, Block, code_blocks, commands, parsed
from tests.support.command_line import diffcse_scale
from tests.support.launch import ROOT, environment

BLOCKS = [block for page in PAGES for block in code_blocks(page)]
SCRIPTS = {"train": "train", "prepare": "prepare", "doctor": "doctor", "evaluate": "evaluate", "sweep": "sweep"}
SHELL = {"source", "export", "git", "cd", "eval", "hf", "$EDITOR", "pip"}  # programs of others, and of the shell
EXTRAS = re.findall(r'^ {8}"(\w+)": \[', (ROOT / "setup.py").read_text(encoding="utf-8"), flags=re.MULTILINE)


def name(block: Block) -> str:
    return f"{block.page.relative_to(ROOT)}:{block.line}"


def wrong_with(program: str, arguments: list[str]) -> str:
    """What the real parser says against a command; nothing if it takes it."""
    if program in ("diffcse-scale", "deepspeed"):
        return _wrong_with_ours(*arguments)
    if program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        return " ".join(t for t in arguments if not re.search(rf"^{t}:", makefile, flags=re.MULTILINE))
    if program in ("sbatch", "bash"):
        script = next(number for number, word in enumerate(arguments) if word.endswith(".sbatch"))
        if not (ROOT / arguments[script]).is_file():
            return f"there is no {arguments[script]}"
        stem, rest = Path(arguments[script]).stem, arguments[script + 1 :]
        if stem == "benchmark":
            return _wrong_with_module("diffcse_kernels.benchmark", rest)
        return _wrong_with_ours(SCRIPTS[stem], *rest)
    if program == "python" and arguments[0] == "-m":
        if arguments[1] == "diffcse_scale":
            return _wrong_with_ours(*arguments[2:])
        return _wrong_with_module(arguments[1], arguments[2:])
    if program == "python":
        return _wrong_with_module(arguments[0].removesuffix(".py").replace("/", "."), arguments[1:])
    if program.startswith("tests/"):
        return "" if arguments[0] in (ROOT / program).read_text(encoding="utf-8") else f"no {arguments[0]}"
    return "" if program in SHELL else f"{program} is not known"


def _wrong_with_ours(command: str, *arguments: str) -> str:
    if command == "train":
        options = [word for word in re.sub(r"--processes \d+ ?", "", " ".join(arguments)).split() if word != "..."]
        try:
            found = train_arguments._parser(None).parse_intermixed_args(options)
        except (SystemExit, InputError):
            return "train does not take this"
        if found.recipe and found.recipe != "mine.yaml":
            free = [word for word in found.overrides if "YOUR" not in word and "FOLDER" not in word]
            load_recipe(found.recipe, free)
        return ""
    programs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    if command not in programs:
        return f"there is no command {command}"
    parser = programs[command]
    known = {option for parameter in parser.params for option in parameter.opts}
    if "..." in arguments:
        return " ".join(word for word in arguments if word.startswith("--") and word not in known)
    try:
        parser.make_context(command, list(arguments))
    except Exception as error:
        return f"{command}: {getattr(error, 'message', error)}"
    return ""


def _wrong_with_module(module: str, arguments: list[str]) -> str:
    """Options of a study, or a benchmark, are looked for in its own words."""
    place = ROOT / ("kernels" if module.startswith("diffcse_kernels") else "") / module.replace(".", "/")
    files = [*place.glob("*.py")] if place.is_dir() else [place.with_suffix(".py")]
    if not all(file.is_file() for file in files) or not files:
        return f"there is no {module}"
    words = "".join(file.read_text(encoding="utf-8") for file in files)
    asked = [word for word in arguments if word.startswith("--")]
    return " ".join(o for o in asked if o not in words and o[2:].replace("-", "_") not in words)


def test_what_does_not_run_gives_one_of_the_reasons():
    assert [name(block) for block in BLOCKS if block.left_out and block.reason not in REASONS] == []
    assert sorted(REASONS - {block.reason for block in BLOCKS}) == []


def test_what_is_a_list_of_files_names_files():
    lists = [block for block in BLOCKS if block.reason == "a list of files"]
    for block in lists:
        for line in block.text.splitlines():
            for pattern in re.split(r", ", re.split(r" {2,}| (?=the )", line)[0]):
                assert list(ROOT.glob(pattern.rstrip("/"))), f"{name(block)}: {pattern}"


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.left_out == "only parsed"], ids=name)
def test_the_commands_of_a_block_that_does_not_run_are_taken(block: Block):
    shell = 0
    for line in commands(block):
        if block.kind == "shell" and not line[0].startswith(("DiffCSE", "train", "$")):
            assert wrong_with(line[0], line[1:]) == "", line
            shell += 1
    assert shell


def test_an_option_that_has_gone_is_noticed():
    for command in (
        ["diffcse-scale", "encode", "--modell", "m", "--input", "a", "--output", "b"],
        ["diffcse-scale", "encoded"],
        ["diffcse-scale", "train", "--recipee", "quickstart"],
        ["sbatch", "slurm/evaluate.sbatch", "--modell", "m"],
        ["sbatch", "slurm/absent.sbatch"],
        ["make", "absent"],
        ["python", "-m", "studies.absent"],
        ["python", "-m", "studies.step_times", "--absent"],
        ["absent"],
    ):
        assert wrong_with(command[0], command[1:]) != "", command


@pytest.fixture(scope="module")
def world(toy_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what pages speak of: runs, a corpus, tables, the recipe mine.yaml."""
    from tests.support.toy_run import write_run

    folder = tmp_path_factory.mktemp("reader")
    (folder / "runs").mkdir()
    write_run(toy_world, folder / "runs" / "mine")
    write_run(toy_world, folder / "runs" / "other", "seed=2", shift=1.0)
    shutil.copy(toy_world / "corpus.txt", folder)
    rows = (toy_world / "corpus.txt").read_text().splitlines()
    titles = ["Paris" if number % 2 else "Rome" for number in range(len(rows))]
    pd.DataFrame({"id": range(len(rows)), "title": titles, "text": rows}).to_parquet(folder / "big.parquet")
    pairs = [line.split("\t") for line in (toy_world / "pairs.tsv").read_text().splitlines()]
    pd.DataFrame(pairs, columns=["score", "sentence1", "sentence2"]).to_csv(folder / "pairs.csv", index=False)
    return folder


# what a block takes for granted, by a word of it: the command that makes it
BEFORE = {
    "duckdb": "encode --model runs/mine --input big.parquet --column text --keep-columns id,title --output embeddings",
    "onnxruntime": "export --model runs/mine --output exported --onnx",
}
# pages whose blocks are about runs and models, or take minutes
SLOW = {"README", "docs/encode", "docs/evaluation", "docs/export", "docs/report", "docs/serving", "docs/python"}
SLOW |= {"docs/kernels"}


def _pages_that_run() -> Iterator[Any]:
    for page in PAGES:
        if any(not block.left_out for block in code_blocks(page)):
            called = str(page.relative_to(ROOT).with_suffix(""))
            yield pytest.param(page, called in SLOW, marks=[pytest.mark.slow] * (called in SLOW), id=called)


@pytest.mark.parametrize(("page", "with_runs"), _pages_that_run())
def test_the_blocks_of_a_page_run(
    page: Path, with_runs: bool, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Every block in a folder of its own, with the names that the blocks of Python before it have made."""
    for variable, value in {**environment(), "DIFFCSE_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(variable, value)
    names: dict[str, Any] = {"queries": torch.eye(8, requires_grad=True), "keys": torch.eye(8)}
    for block in code_blocks(page):
        if not block.left_out:
            folder = tmp_path / str(block.line)
            folder.mkdir()
            if with_runs:
                shutil.copytree(request.getfixturevalue("world"), folder, dirs_exist_ok=True)
            for word, command in BEFORE.items():
                if word in block.text:
                    made = diffcse_scale(*command.split(), cwd=folder)
                    assert made.returncode == 0, made.stderr
            with chdir(folder):
                _run(block, names)


def _run(block: Block, names: dict[str, Any]) -> None:
    if block.kind == "python":
        if "(model" in block.text and "model" not in names:
            from diffcse_scale.model_folder.load import load_model

            names["model"] = load_model("runs/mine", device="cpu")[0]
        exec(compile(block.text, name(block), "exec"), names)
    elif block.kind == "overrides":
        for line in block.text.splitlines():
            load_recipe("quickstart", [line.split()[0]])
    elif block.kind == "recipe":
        recipe = yaml.safe_load(ROOT.joinpath("recipes", "bert_base_sts.yaml").read_text(encoding="utf-8"))
        for section, values in parsed(block).items():  # type: ignore[attr-defined]
            recipe[section] |= values
        Path("mine.yaml").write_text(yaml.safe_dump(recipe))
        load_recipe("mine.yaml")
    elif block.kind == "json":
        Path("mine.json").write_text(block.text)
        load_deepspeed_config("mine.json")
    else:
        for program, *arguments in commands(block):
            if program == "pip":  # it is here, or the next command fails
                assert re.findall(r"\[(\w+)\]", " ".join(arguments))[0] in EXTRAS
                continue
            assert program == "diffcse-scale", block
            done = diffcse_scale(*arguments, cwd=Path())
            assert done.returncode == 0, f"{name(block)}: {arguments}\n{done.stderr}"
