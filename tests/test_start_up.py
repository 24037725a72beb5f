"""Help and misspelt names are answered at once: before torch, which takes seconds, is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.recipe import DataRecipe
from diffcse_scale.text import remote
from diffcse_scale.text.sources import check_names
from tests.support.hand_made_run import write_run
from tests.support.launch import ROOT, environment

COMMANDS = ("status", "replay", "recipe", "prepare", "summarize", "sweep", "evaluate", "export", "plan", "report")
COMMANDS = (*COMMANDS, "pretrain-generator", "encode", "search", "train", "benchmark", "benchmark step", "doctor")
COMMANDS = (*COMMANDS, "benchmark kernels")
HELP = [[*command.split(), "--help"] for command in (*COMMANDS, "")]
# in a folder that holds a finished run called `mine` and nothing else
MISTAKES = {
    "recipe TYPO": "'TYPO' is not shipped",
    "prepare --recipe TYPO": "'TYPO' is not shipped",
    "prepare batch.sentence=3": "did you mean sentences?",
    "prepare data.files=nowhere.txt": "nowhere.txt: no such file",
    "train --recipe TYPO": "'TYPO' is not shipped",
    "train --deepspeed_config nowhere.json": "nowhere.json cannot be read",
    "train --recipes TYPO": "unrecognized arguments",
    "plan --recipe TYPO": "'TYPO' is not shipped",
    "plan batch.sentence=3": "did you mean sentences?",
    "plan --deepspeed_config nowhere.json": "nowhere.json cannot be read",
    "evaluate --model nowhere": "nowhere does not exist",
    "evaluate --model mine --suite TYPO": "There is no suite 'TYPO'",
    "evaluate --model mine --pooling TYPO": "There is no pooling 'TYPO'",
    "evaluate --model mine --data nowhere": "nowhere: no such file",
    "export --model nowhere --output x": "nowhere does not exist",
    "encode --model nowhere --input a.txt --output x": "nowhere does not exist",
    "encode --model mine --input nowhere.txt --output x": "nowhere.txt: no such file",
    "encode --model mine --input a.txt --output x --pooling TYPO": "There is no pooling 'TYPO'",
    "encode --model mine --input a.txt --output x --precision TYPO": "TYPO",
    "search nowhere question": "nowhere holds no embeddings",
    "search nowhere question --index TYPO": "There is no index 'TYPO'",
    "report nowhere": "holds no run",
    "status nowhere": "nowhere has no status.json",
    "replay nowhere": "nowhere holds no run",
    "replay nowhere --processes 2": "nowhere holds no run",
    "summarize nowhere": "No finished run to summarize in nowhere",
    "pretrain-generator --files nowhere.txt --output x": "nowhere.txt: no such file",
    "benchmark kernels TYPO": "'TYPO' is not one of",
    "benchmark step --implementation TYPO": "'TYPO' is not known",
    "benchmark step --precision TYPO": "'TYPO' is not known",
    "benchmark step --generator-precision TYPO": "'TYPO' is not known",
    "benchmark step --text nowhere.txt --tokenizer x": "nowhere.txt is not a file",
}
# each case in a fork of a process that has imported the command line, and of large libraries those that need no torch
PROGRAM = """
import contextlib, io, json, os, sys
import datasets, scipy.stats, sklearn.linear_model
from diffcse_scale import cli
assert "torch" not in sys.modules

for arguments in json.loads(sys.argv[1]):
    reader, writer = os.pipe()
    if os.fork() == 0:
        said, code = io.StringIO(), None
        sys.argv = ["diffcse-scale", *arguments]
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                cli.main()
            except SystemExit as end:
                code = end.code
        answer = {"code": code, "torch": "torch" in sys.modules, "said": said.getvalue()}
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as answer:
        print(answer.read())
    os.wait()
"""


def answers(cases: list[list[str]], folder: Path) -> list[dict[str, object]]:
    """What the command line does with each of the cases: exit code, whether torch was imported, what it says."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(cases)]
    variables = {**environment(), "COLUMNS": "200"}
    output = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in output.splitlines()]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """The answers to HELP and then to MISTAKES."""
    folder = tmp_path_factory.mktemp("start_up")
    write_run(folder / "mine")
    return answers([*HELP, *(case.split() for case in MISTAKES)], folder)


def test_help_needs_no_torch(found: list[dict[str, object]]) -> None:
    for arguments, answer in zip(HELP, found[: len(HELP)], strict=True):
        assert (answer["code"], answer["torch"]) == (0, False), arguments


def test_a_misspelt_name_needs_no_torch(found: list[dict[str, object]]) -> None:
    for (case, words), answer in zip(MISTAKES.items(), found[len(HELP) :], strict=True):
        assert (answer["code"], answer["torch"]) == (2, False), case
        assert words in str(answer["said"]), case


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["--help"], "usage: ", 0),
        (["--recipe", "TYPO"], "error: Recipe 'TYPO' is not shipped", 2),
        (["batch.sentence=3"], "did you mean sentences?", 2),
        (["--deepspeed_config", "nowhere.json"], "error: DeepSpeed configuration nowhere.json cannot be read", 2),
    ],
)
def test_training_tells_a_mistake_before_it_imports_torch(arguments: list[str], words: str, code: int) -> None:
    program = "import atexit, runpy, sys; atexit.register(lambda: print('torch' in sys.modules)); "
    program += "sys.argv[0] = 'train.py'; runpy.run_path('train.py', run_name='__main__')"
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert result.returncode == code
    assert words in result.stdout + result.stderr
    assert result.stdout.splitlines()[-1] == "False"


def test_names_on_this_machine_are_looked_at_and_remote_files_are_left_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at early, they would be copied into the default cache, and once more into the recipe's own."""
    monkeypatch.setattr(remote, "copy_files", lambda *_: pytest.fail("a remote file was copied"))
    check_names(DataRecipe(files=["memory://corpus/a.txt", "embedded"]))
    with pytest.raises(InputError, match=r"nowhere\.txt: no such file"):
        check_names(DataRecipe(files=["memory://corpus/a.txt", str(tmp_path / "nowhere.txt")]))
