"""The code blocks of a page, indented or fenced, and whether a comment before one says that it does not run."""

from __future__ import annotations

import ast
import json
import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.support.launch import ROOT

# the reasons that there are; the comment before a block is <!-- not run: REASON --> or <!-- only parsed: REASON -->
REASONS = {
    "output",  # it is what a command prints or writes
    "a list of files",
    "a file's content",
    "installs software",
    "needs another program",
    "needs a SLURM cluster",
    "needs a GPU",
    "needs evaluation data",
    "needs a run of its own",
    "downloads a model from the Hub",
    "trains or measures for a long time",
    "asks at the terminal",
}
PAGES = sorted(
    [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("ds_configs/*.md"), *ROOT.glob("kernels/*.md")]
)
COMMENT = re.compile(r"^ *<!-- (not run|only parsed): (.*) -->$")


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        page: where it stands.
        line: its first line there, from 1 on.
        text: without indentation and fences.
        left_out: "not run", "only parsed" or, where it runs, nothing.
        reason: for that.
    """

    page: Path
    line: int
    text: str
    left_out: str = ""
    reason: str = ""

    @property
    def kind(self) -> str:
        """What its text is: "python", "json", "recipe", "overrides" or "shell"."""
        words = self.text.lstrip()
        if words.startswith("{"):
            return "json"
        if all(re.match(r"[a-z]\w*\.\w+=", line) for line in self.text.splitlines()):
            return "overrides"
        if re.match(r"(model|data|batch|objective|optimizer|evaluation):\n", words):
            return "recipe"
        try:
            ast.parse(self.text)
        except SyntaxError:
            return "shell"
        return "python"


def code_blocks(page: Path) -> Iterator[Block]:
    """Those of a page, from top to bottom. Code of a list's item has four spaces more than its text."""
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        line, last = lines[number], number
        said = next((text for text in reversed(lines[:number]) if text.strip()), "")
        if line.startswith("```"):
            last = lines.index("```", number + 1)
            found = lines[number + 1 : last]
        elif (line.startswith("    ") and not COMMENT.match(line)) and not lines[number - 1].strip():
            while last + 1 < len(lines) and re.match(r" {4}(?! *<!--)|\s*$", lines[last + 1]):
                last += 1
            found = lines[number : last + 1]
        else:
            number += 1
            continue
        words = COMMENT.match(said)
        yield Block(page, number + 1, textwrap.dedent("\n".join(found)).strip("\n"), *(words.groups() if words else ()))
        number = last + 1


def commands(block: Block) -> Iterator[list[str]]:
    """The commands of a block of shell, without what is set before them; its comments and pipes end them."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(re.sub(r"(^| )#.*", "", line).replace("(", " ").replace(")", " "))
        words = words[: min((words.index(end) for end in (">", "<", "|", "&&") if end in words), default=None)]
        while words and re.match(r"[A-Za-z_]+=", words[0]):
            words = words[1:]
        if words:
            yield [re.sub(r"^\.venv/bin/", "", words[0]), *words[1:]]


def parsed(block: Block) -> object:
    """A block of JSON or YAML."""
    return json.loads(block.text) if block.kind == "json" else yaml.safe_load(block.text)
