"""`diffcse-scale report`: reads the runs, asks their models, writes the page."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from diffcse_scale.foundation.ownership import check_file, write_file
from diffcse_scale.foundation.paths import given_path
from diffcse_scale.report.edited_sentences import judgements
from diffcse_scale.report.encodings import encode_runs, read_samples, spread
from diffcse_scale.report.page import MARK, RUNS, Looks, mark_of, render
from diffcse_scale.report.similarities import histograms, neighbours
from diffcse_scale.runs.read import Run, read_runs

SAMPLES = 4  # sentences whose neighbours are shown
NEIGHBOURS = 4
EDITED = 6  # sentences on which the discriminator is shown


def report(
    folders: Sequence[str | Path],
    output: str | Path = "report.html",
    data: str | None = None,
    sentences: Path | None = None,
    models: bool = True,
    overwrite: bool = False,
) -> Path:
    """Write the page about some runs; an earlier page about them, or some of them, is replaced, nothing else is.

    Args:
        data: the development set, instead of the one that the recipes name; as `evaluation.data` of a recipe.
        sentences: a text file; its sentences instead of some of the development set are looked at.
        models: False for a page without what the models have to be asked for.
        overwrite: replace `output` whatever file it is.

    Returns:
        Where the page lies.

    Raises:
        InputError: a folder holds no run, `output` is another file or page, unusable data or sentences.
    """
    page = given_path(output)
    runs = read_runs(folders)
    sources = [*folders, *(source for source in (data, sentences) if source is not None)]
    check_file(
        page, "a page of diffcse-scale report about these runs", partial(_is_page, runs=runs), overwrite, sources
    )
    samples = read_samples(sentences)
    looks = _looks(runs, data, samples) if models else Looks()
    write_file(page, render(runs, looks))
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


def _is_page(file: Path, runs: Sequence[Run]) -> bool:
    """Whether it is a page about these runs, or some of them."""
    with file.open(encoding="utf-8", errors="replace") as page:
        beginning = page.read(2**16)
    about = beginning.partition(RUNS)[2].partition('"')[0].split()
    return MARK in beginning and bool(about) and set(about) <= set(map(mark_of, runs))
