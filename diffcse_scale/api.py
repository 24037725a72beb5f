"""DiffCSE from Python, for notebooks: a list of sentences in, a `SentenceTransformer` out."""

from __future__ import annotations

import codecs
import filecmp
import math
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import chain
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

from diffcse_scale.foundation.errors import InputError, brief, quoted
from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.foundation.paths import given_path
from diffcse_scale.foundation.run_files import CHECKPOINTS, RECIPE, RESULT
from diffcse_scale.foundation.strict_json import to_json

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

COLUMNS = ("text", "positive", "hard_negative")


class DiffCSE:
    """A recipe that trains on the text passed to `fit`.

    Training runs in a separate program (`train.py` under DeepSpeed's launcher, on all devices), so it leaves nothing
    behind in the notebook's process.

    Source: Chuang et al., 2022 (arXiv 2204.10298). The recipe decides which parts of the method are trained.

    Args:
        recipe: a shipped recipe or a .yaml file.
        overrides: `section.field=value`, as on the command line.
        hooks: classes that are called during training, each as `package.module:Class`
            (`diffcse_scale.training.Hook`). The training process imports them.

    Raises:
        InputError: the recipe does not exist, or a field is wrong.

    Example:
        >>> from diffcse_scale import DiffCSE
        >>> sentences = [f"A dog number {number} runs." for number in range(20)]
        >>> small = DiffCSE("quickstart", "batch.sentences=8", "max_steps=2", "log_every=1")
        >>> model = small.fit(sentences, output="runs/mine", processes=1)
        Starting train.py with DeepSpeed; loading PyTorch takes a while.
        ...
        >>> model.encode(["A sentence."]).shape  # `model` is a SentenceTransformer
        (1, 128)
    """

    def __init__(self, recipe: str = "bert_base_sts", *overrides: str, hooks: Sequence[str] = ()) -> None:
        from diffcse_scale.recipe_file import load_recipe
        from diffcse_scale.text.cache import cache_folder

        if not isinstance(recipe, str | os.PathLike):
            raise InputError(f"recipe is {quoted(recipe)}; give a name, or the path of a .yaml file.")
        for name, given in (("overrides", overrides), ("hooks", hooks)):
            words = [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
            if words == [given] or not all(isinstance(word, str) for word in words):
                raise InputError(f'{name} is {quoted(given)}; DiffCSE("quickstart", "seed=1", hooks=["mine:Tell"]).')
        _refuse_overrides(overrides, ("data", "data.files", "data.columns"), "the corpus")
        recipe = os.fspath(recipe)
        self._texts = cache_folder(load_recipe(recipe, overrides).data) / "from_python"
        self.recipe, self.overrides, self.hooks = recipe, overrides, hooks

    def fit(
        self,
        sentences: Iterable[str | Sequence[str]],
        output: str | Path,
        development: Iterable[tuple[float, str, str]] | None = None,
        processes: int | None = None,
        deepspeed_config: str | Path | None = None,
    ) -> SentenceTransformer:
        """Train, and return the best encoder.

        Repeating the call continues an interrupted run, or returns the model of a finished one.

        Args:
            sentences: the corpus: sentences, pairs (sentence, positive), or triples (sentence, positive, hard
                negative).
            output: the run folder, which holds everything about the run.
            development: triples (score, sentence, sentence) that select the best encoder during training. Without
                them the last encoder is returned, unless an override sets `evaluation.data`.
            processes: number of ranks on this machine. None uses all devices.
            deepspeed_config: a DeepSpeed JSON file, or the name of a shipped one such as `zero3`. None uses the
                shipped zero2.json.

        Raises:
            InputError: `train.py` would refuse the arguments, an override contradicts `development`, or `output` holds
                another run.
            RuntimeError: training ended before its last step.
        """
        from diffcse_scale.model_folder.load import load_model

        if processes is not None and (not isinstance(processes, int) or isinstance(processes, bool) or processes < 1):
            raise InputError(f"processes is {quoted(processes)}; give the number of ranks on this machine, or None.")
        for name, path in (("output", output), ("deepspeed_config", deepspeed_config or "zero2.json")):
            if not isinstance(path, str | os.PathLike) or not os.fspath(path):
                raise InputError(f"{name} is {quoted(path)}; give a path.")
        if development is not None:
            _refuse_overrides(self.overrides, ("evaluation", "evaluation.data"), "the development pairs")
        rows = _as_rows(sentences)
        first = next(rows)
        corpus = self._kept(chain([first], rows))
        texts = [f"data.files={corpus}", f"data.columns=[{', '.join(first)}]", "evaluation.data=null"]
        if development is not None:
            pairs = _as_pairs(development)
            texts[-1] = f"evaluation.data={self._kept(pairs, '.tsv')}"
        self._refuse_another(given_path(output), texts)
        arguments = ["--recipe", self.recipe, "--output", str(given_path(output).absolute()), "--auto-resume"]
        arguments += [] if processes is None else ["--processes", str(processes)]
        arguments += [] if deepspeed_config is None else ["--deepspeed_config", str(deepspeed_config)]
        arguments += [word for name in self.hooks for word in ("--hook", name)]
        _train([*arguments, *texts, *self.overrides])
        return load_model(output)[0]

    def _refuse_another(self, run: Path, texts: Sequence[str]) -> None:
        """Raise InputError if a finished run was trained on other text. `train.py` compares only unfinished ones."""
        from diffcse_scale.recipe_file import load_recipe, load_recorded

        if not (run / RESULT).is_file():
            return
        now, before = load_recipe(self.recipe, [*texts, *self.overrides]), load_recorded(run / RECIPE)
        for given, given_before, called in (
            (now.data.files, before.data.files, "another corpus"),
            ([now.evaluation.data or ""], [before.evaluation.data or ""], "other development pairs"),
        ):
            # what `fit` is given is a file named after its content, in a cache that may have moved
            if [Path(name).name for name in given] != [Path(name).name for name in given_before]:
                raise InputError(f"{run} has finished training with {called}; give another output.")

    def _kept(self, rows: Iterable[Mapping[str, object]], suffix: str = ".jsonl") -> Path:
        """Write the rows to a file named after its content, so that a repeated call gives the same recipe."""
        from diffcse_scale.foundation.durable import publish
        from diffcse_scale.text.cache import RowsFingerprint, writing
        from diffcse_scale.text.prepared import unfinished

        line = to_json if suffix == ".jsonl" else lambda row: "\t".join(map(_on_one_line, row.values()))
        name = RowsFingerprint()
        with writing(self._texts.parent):
            self._texts.mkdir(parents=True, exist_ok=True)
            with unfinished(self._texts / "rows", self._texts.parent) as fresh:
                with fresh.open("w", encoding="utf-8") as lines:
                    for row in rows:
                        lines.write(line(row) + "\n")
                        name.add(row)
                file = self._texts / f"{name}{suffix}"
                if not (file.is_file() and filecmp.cmp(fresh, file, shallow=False)):
                    publish(fresh, file)
        return file


def _refuse_overrides(overrides: Sequence[str], fields: Sequence[str], called: str) -> None:
    """Raise InputError if an override sets one of the fields that hold what `fit` is given."""
    for override in overrides:
        if override.partition("=")[0] in fields:
            raise InputError(f"{brief(override)} contradicts {called} that `fit` is given; remove it.")


def _as_rows(sentences: Iterable[str | Sequence[str]]) -> Iterator[dict[str, str]]:
    """Check and yield the rows of the corpus, each as column name to text. There must be at least one."""
    _check_rows(sentences, "The corpus", "a list of sentences (of a file: its lines)")
    columns = 0
    for number, row in enumerate(sentences):
        texts = [row] if isinstance(row, str) else row
        good = isinstance(texts, Sequence) and 1 <= len(texts) <= 3 and all(isinstance(text, str) for text in texts)
        if not good or len(texts) != (columns or len(texts)):
            raise InputError(
                f"Row {number} of the corpus is {quoted(row)}; give a sentence in every row, or a pair, or a triple."
            )
        _check_text(f"Row {number} of the corpus", texts)
        columns = len(texts)
        yield dict(zip(COLUMNS, texts, strict=False))
    if not columns:
        raise InputError("The corpus is an empty list; give sentences, pairs or triples.")


def _as_pairs(development: Iterable[tuple[float, str, str]]) -> Iterator[dict[str, object]]:
    """Check and yield the development pairs. There must be at least two."""
    _check_rows(development, "development", "triples (score, sentence, sentence)")
    number = -1
    for number, row in enumerate(development):
        score, *texts = row if isinstance(row, Sequence) and len(row) == 3 else (None,)
        if not isinstance(score, Real) or not math.isfinite(score) or not all(isinstance(t, str) for t in texts):
            raise InputError(f"Row {number} of development is {quoted(row)}; give (score, sentence, sentence).")
        _check_text(f"Row {number} of development", texts)
        # JSON cannot write numpy's numbers
        plain = score if isinstance(score, int | float) else float(score)
        yield {"score": plain, "first": texts[0], "second": texts[1]}
    if number < 1:
        raise InputError(f"development has {number + 1} pairs; a correlation needs at least two.")


def _check_rows(given: object, called: str, wanted: str) -> None:
    """Raise InputError if iterating over `given` does not yield its rows in order."""
    if hasattr(given, "columns") or hasattr(given, "column_names"):  # pandas, polars, datasets, pyarrow
        raise InputError(f"{called} is a table, {type(given).__name__}; give a column of it, or {wanted}.")
    if isinstance(given, str | bytes | bytearray | Mapping | Set) or not isinstance(given, Iterable):
        raise InputError(f"{called} is {quoted(given)}; give {wanted}.")


def _check_text(called: str, texts: Sequence[str]) -> None:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise InputError(f"{called} is {quoted(texts)}, with half of a surrogate pair, which is not text.") from None


def _on_one_line(value: object) -> str:
    return " ".join(str(value).split())


def _train(arguments: list[str]) -> None:
    """Run `diffcse-scale train` and print its output as it arrives.

    A notebook does not show the output of a child process, so this process prints it.

    Raises:
        InputError: the program reported a mistake; the message is the program's own.
        RuntimeError: the program ended in any other way.
    """
    command = [sys.executable, "-m", "diffcse_scale", "train", *arguments]
    decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
    printed = ""
    environment = dict(os.environ)
    if "--hook" in arguments:  # modules beside the calling program must be importable in the child too
        paths = [os.environ.get("PYTHONPATH", ""), str(Path(sys.path[0]).absolute())]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
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
    checkpoints = Path(arguments[arguments.index("--output") + 1]) / CHECKPOINTS
    kept = [folder for folder in checkpoints.glob("step-*") if not folder.suffix]  # an incomplete one is .partial-...
    more = "; the same call continues from its last checkpoint" if kept else ""
    raise RuntimeError(f"Training ended with exit code {process.returncode}; its output says why{more}.")
