"""`diffcse-scale report`: reads the runs, asks their models, writes the page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from diffcse_scale.errors import InputError
from diffcse_scale.report.edits import judgements
from diffcse_scale.report.encodings import encode_runs, read_samples, spread
from diffcse_scale.report.page import MARK, Looks, render
from diffcse_scale.report.runs import Run, read_runs
from diffcse_scale.report.similarities import histograms, neighbours

SAMPLES = 4  # sentences whose neighbours are shown
NEIGHBOURS = 4
EDITED = 6  # sentences on which the discriminator is shown


def report(
    folders: Sequence[str | Path],
    output: str | Path = "report.html",
    data: str | None = None,
    sentences: Path | None = None,
    models: bool = True,
) -> Path:
    """Write the page about some runs; an earlier report in its place is replaced, nothing else is.

    Args:
        data: the development set, instead of the one that the recipes name; as `evaluation.data` of a recipe.
        sentences: a text file; its sentences instead of some of the development set are looked at.
        models: False for a page without what the models have to be asked for.

    Returns:
        Where the page lies.

    Raises:
        InputError: a folder holds no run, `output` is something else than a report, unusable data or sentences.
    """
    page = Path(output).expanduser()
    runs = read_runs(folders)
    _check_replaceable(page)
    samples = read_samples(sentences)
    looks = _looks(runs, data, samples) if models else Looks()
    page.parent.mkdir(parents=True, exist_ok=True)
    fresh = page.with_name(f".{page.name}.{os.getpid()}.partial")
    fresh.write_text(render(runs, looks), encoding="utf-8")
    os.replace(fresh, page)
    return page


def _looks(runs: Sequence[Run], data: str | None, samples: Sequence[str]) -> Looks:
    encodings = encode_runs(runs, data, samples, SAMPLES)
    edited = [list(samples) or spread(own.sentences, EDITED) for own in encodings]
    return Looks(
        histograms=histograms(encodings),
        samples=neighbours(encodings, NEIGHBOURS),
        judgements=judgements(runs, edited),
        problems=[(number, problem) for number, own in enumerate(encodings) for problem in own.problems],
    )


def _check_replaceable(page: Path) -> None:
    """Raises InputError where there is something that is no report."""
    if page.is_dir():
        raise InputError(f"{page} is a folder; give the name of an HTML file with --output.")
    try:
        with page.open(encoding="utf-8", errors="replace") as file:
            ours = MARK in file.read(2000)
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{page} cannot be written: {error.strerror}; give another --output.") from None
    if not ours:
        raise InputError(f"{page} exists and is no report of this program; give another --output.")
