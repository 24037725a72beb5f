"""DiffCSE from Python, for notebooks: a list of sentences in, a `SentenceTransformer` out."""

from __future__ import annotations

import codecs
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffcse_scale.errors import InputError
from diffcse_scale.exit_codes import ExitCode

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

COLUMNS = ("text", "positive", "hard_negative")


class DiffCSE:
    """A recipe that waits for its text.

        model = DiffCSE("bert_base_sts", "batch.sentences=128").fit(sentences, output="runs/mine")
        model.encode(["A sentence."])

    Training runs as a program of its own (`train.py` under DeepSpeed's launcher, on all devices), so that nothing of
    it stays in the notebook's process.

    Args:
        recipe: a shipped recipe or a .yaml file.
        overrides: `section.field=value`, as on the command line.

    Raises:
        InputError: there is no such recipe, or a field is wrong.
    """

    def __init__(self, recipe: str = "bert_base_sts", *overrides: str) -> None:
        from diffcse_scale.recipe import load_recipe
        from diffcse_scale.text.cache import cache_folder

        self._texts = cache_folder(load_recipe(recipe, overrides).data) / "from_python"
        self.recipe, self.overrides = recipe, overrides

    def fit(
        self,
        sentences: Iterable[str | Sequence[str]],
        output: str | Path,
        development: Iterable[tuple[float, str, str]] | None = None,
        processes: int | None = None,
        deepspeed_config: str | Path | None = None,
    ) -> SentenceTransformer:
        """Train, and return the best encoder.

        The same call again continues a run that was interrupted, or returns the model of one that has finished.

        Args:
            sentences: the corpus; or pairs, whose second is the positive; or triples with a hard negative.
            output: the run folder; everything about the run is there.
            development: (score, sentence, sentence): chooses the best of the encoders along the way. Without it the
                last one is taken, unless an override sets `evaluation.data`.
            processes: ranks on this machine; all devices if None.
            deepspeed_config: a DeepSpeed JSON; the shipped zero2.json if None.

        Raises:
            InputError: what `train.py` would refuse, or `output` holds another run.
            RuntimeError: training ended before its last step.
        """
        from diffcse_scale.loading import load_model

        corpus = _as_rows(sentences)
        texts = [f"data.files={self._kept(corpus)}", f"data.columns=[{', '.join(corpus[0])}]", "evaluation.data=null"]
        if development is not None:
            pairs = [{"score": score, "first": first, "second": second} for score, first, second in development]
            texts[-1] = f"evaluation.data={self._kept(pairs, '.tsv')}"
        arguments = ["--recipe", self.recipe, "--output", str(Path(output).expanduser().absolute()), "--auto-resume"]
        arguments += [] if processes is None else ["--processes", str(processes)]
        arguments += [] if deepspeed_config is None else ["--deepspeed_config", str(deepspeed_config)]
        _train([*arguments, *texts, *self.overrides])
        return load_model(output)[0]

    def _kept(self, rows: list[dict[str, str]] | list[dict[str, object]], suffix: str = ".jsonl") -> Path:
        """A file of the rows, named by its content: a repeated call gives the run the same recipe."""
        from diffcse_scale.text.cache import fingerprint

        file = self._texts / (fingerprint(rows) + suffix)
        if not file.is_file():
            line = json.dumps if suffix == ".jsonl" else lambda row: "\t".join(map(_on_one_line, row.values()))
            self._texts.mkdir(parents=True, exist_ok=True)
            fresh = file.with_suffix(f".{os.getpid()}")
            fresh.write_text("".join(line(row) + "\n" for row in rows), encoding="utf-8")
            fresh.rename(file)
        return file


def _as_rows(sentences: Iterable[str | Sequence[str]]) -> list[dict[str, str]]:
    rows = [[row] if isinstance(row, str) else row for row in sentences]
    for number, row in enumerate(rows):
        texts = isinstance(row, Sequence) and 1 <= len(row) <= 3 and all(isinstance(text, str) for text in row)
        if not texts or len(row) != len(rows[0]):
            raise InputError(
                f"Row {number} of the corpus is {row!r:.100}; give a sentence in every row, or a pair, or a triple."
            )
    if not rows:
        raise InputError("The corpus is an empty list; give sentences, pairs or triples.")
    return [dict(zip(COLUMNS, row, strict=False)) for row in rows]


def _on_one_line(value: object) -> str:
    return " ".join(str(value).split())


def _train(arguments: list[str]) -> None:
    """Run `diffcse-scale train` and show what it prints as it prints it, which in a notebook its own output would not.

    Raises:
        InputError: a mistake, in its own words.
        RuntimeError: it ended in another way.
    """
    command = [sys.executable, "-m", "diffcse_scale", "train", *arguments]
    decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
    printed = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        try:
            while piece := process.stdout.read1():  # type: ignore[attr-defined]
                text = decode(piece)
                print(text, end="", flush=True)
                printed = (printed + text)[-10_000:]
        except BaseException:
            process.terminate()  # the launcher ends its ranks
            raise
    if process.returncode == ExitCode.FINISHED:
        return
    said = [line.partition("error: ")[2] for line in printed.splitlines() if line.startswith("error: ")]
    if said:
        raise InputError(said[-1])
    raise RuntimeError(f"Training ended with exit code {process.returncode}; the same call again continues it.")
