"""`diffcse-scale report`: reads the runs, evaluates their models, writes the page."""

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

SAMPLES = 4  # number of sentences whose neighbours are shown
NEIGHBOURS = 4
EDITED = 6  # number of sentences on which the discriminator's output is shown


def report(
    folders: Sequence[str | Path],
    output: str | Path = "report.html",
    data: str | None = None,
    sentences: Path | None = None,
    models: bool = True,
    overwrite: bool = False,
) -> Path:
    """Write a page about some runs. It may only replace an earlier page about these runs or some of them.

    Args:
        data: a development set to use instead of the recipes' own, in the form of `evaluation.data` of a recipe.
        sentences: a text file with sentences to use instead of samples of the development set.
        models: False leaves out everything for which models must be loaded.
        overwrite: replace `output`, whatever file it is.

    Returns:
        Path of the page.

    Raises:
        InputError: a folder holds no run, `output` is another file or page, or data or sentences cannot be used.
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
    """Whether a file is a page about these runs or some of them."""
    with file.open(encoding="utf-8", errors="replace") as page:
        beginning = page.read(2**16)
    about = beginning.partition(RUNS)[2].partition('"')[0].split()
    return MARK in beginning and bool(about) and set(about) <= set(map(mark_of, runs))
