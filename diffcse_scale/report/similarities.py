"""The effect of training on similarities: histograms for each band of human scores, and nearest neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffcse_scale.evaluation.sts import cosine, spearman
from diffcse_scale.report.charts import MINUS, Axis, area, axis, tick_label
from diffcse_scale.report.encodings import Encodings

Floats = NDArray[np.float64]

BINS = 40
BANDS = 5

# pixels of a histogram: one row per band
WIDTH, ROW, LEFT, RIGHT, TOP = 380, 46, 44, 268, 8


@dataclass(frozen=True)
class Outline:
    """A histogram as an SVG path, the mean as printed, and the pixel of the mean."""

    path: str
    mean: str
    at: float


@dataclass(frozen=True)
class Band:
    """The pairs with human scores in one band; `base` is the pixel of their histograms' baseline."""

    name: str
    pairs: int
    base: float
    before: Outline | None
    after: Outline | None


@dataclass(frozen=True)
class Histograms:
    """A run's cosines of development pairs, before and after training."""

    run: int
    pairs: int
    bands: list[Band]
    spearman_before: float | None
    spearman_after: float | None
    height: float
    ticks: list[tuple[float, str]]


@dataclass(frozen=True)
class Neighbour:
    """A sentence near a sample; `fresh` means that it was not among the nearest before training."""

    sentence: str
    cosine: float
    fresh: bool


@dataclass(frozen=True)
class Neighbourhood:
    """The neighbours of a sample by one encoder; if `run` is None, by the untrained encoder."""

    run: int | None
    nearest: list[Neighbour]


@dataclass(frozen=True)
class Sample:
    """A sentence and its neighbours by each encoder."""

    sentence: str
    neighbourhoods: list[Neighbourhood]


def histograms(encodings: Sequence[Encodings]) -> list[Histograms]:
    """Histograms of each run that has a development set and an encoder, on a common axis for comparison."""
    cosines = {number: _cosines(own) for number, own in enumerate(encodings) if own.pairs}
    values = [array for pair in cosines.values() for array in pair if array is not None]
    if not values:
        return []
    everything = np.concatenate(values)
    low, high = float(everything.min()), float(everything.max())
    if low == high:  # the embeddings have collapsed
        low, high = low - 0.05, high + 0.05
    round_values = axis([low, high], LEFT, RIGHT, ticks=4).ticks
    x = Axis(low, high, tuple(tick for tick in round_values if low <= tick <= high), LEFT, RIGHT)
    return [
        _histograms(number, encodings[number], before, after, x)
        for number, (before, after) in cosines.items()
        if before is not None or after is not None
    ]


def bands(scores: Floats) -> list[tuple[str, NDArray[np.bool_]]]:
    """Five bands of human scores: name, and a mask of the pairs in it. The last includes the highest score.

    The bands are 0 to 1, ..., 4 to 5 for scores from 0 to 5, as in STS tasks, and equal parts of the range otherwise.
    """
    low, high = (0.0, 5.0) if scores.min() >= 0 and 1 < scores.max() <= 5 else (scores.min(), scores.max())
    edges = np.linspace(low, high, BANDS + 1)
    number = np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, BANDS - 1)
    return [(f"{edges[band]:.3g}-{edges[band + 1]:.3g}", number == band) for band in range(BANDS)]


def _cosines(own: Encodings) -> tuple[Floats | None, Floats | None]:
    row = {sentence: index for index, sentence in enumerate(own.sentences)}
    first, second = [row[pair[1]] for pair in own.pairs], [row[pair[2]] for pair in own.pairs]
    before, after = (
        None if vectors is None else cosine(vectors[first], vectors[second]) for vectors in (own.before, own.after)
    )
    return before, after


def _histograms(run: int, own: Encodings, before: Floats | None, after: Floats | None, x: Axis) -> Histograms:
    scores = np.array([pair[0] for pair in own.pairs])
    parts = [(name, inside) for name, inside in bands(scores) if inside.any()]
    parts.reverse()  # the most similar pairs on top
    bases = [TOP + ROW * (number + 1) for number in range(len(parts))]
    insides = [inside for _, inside in parts]
    outlines = zip(_outlines(before, insides, bases, x), _outlines(after, insides, bases, x), strict=True)
    rows = [
        Band(name, int(inside.sum()), base, *pair)
        for (name, inside), base, pair in zip(parts, bases, outlines, strict=True)
    ]
    return Histograms(
        run=run,
        pairs=len(own.pairs),
        bands=rows,
        spearman_before=_spearman(own, own.before),
        spearman_after=_spearman(own, own.after),
        height=TOP + ROW * len(rows),
        ticks=[(x.place(tick), tick_label(tick, x.ticks)) for tick in x.ticks],
    )


def _spearman(own: Encodings, vectors: NDArray[np.float32] | None) -> float | None:
    if vectors is None:
        return None
    known = dict(zip(own.sentences, vectors, strict=True))
    return spearman(lambda sentences: np.stack([known[sentence] for sentence in sentences]), own.pairs)


def _outlines(
    cosines: Floats | None, insides: Sequence[NDArray[np.bool_]], bases: Sequence[float], x: Axis
) -> list[Outline | None]:
    """One outline for each band, all on one scale.

    Before and after training have separate scales. Untrained encoders often have all cosines near 1, and on their
    scale the trained encoder's histogram would look flat.
    """
    if cosines is None:
        return [None] * len(bases)
    shares = [np.histogram(cosines[inside], BINS, (x.low, x.high))[0] / inside.sum() for inside in insides]
    edges = np.linspace(x.low, x.high, BINS + 1)
    scale = (ROW - 12) / max(share.max() for share in shares)
    found: list[Outline | None] = []
    for share, inside, base in zip(shares, insides, bases, strict=True):
        full = np.flatnonzero(share)
        first, last = full[0], full[-1] + 1
        path = area(share[first:last].tolist(), edges[first : last + 1].tolist(), x, base, scale)
        mean = float(cosines[inside].mean())
        found.append(Outline(path, f"{mean:.3f}".replace("-", MINUS), x.place(mean)))
    return found


def neighbours(encodings: Sequence[Encodings], count: int) -> list[Sample]:
    """The `count` sentences of the development set nearest to each sample, before and after training."""
    samples = dict.fromkeys(sample for own in encodings for sample in own.samples if own.pairs)
    return [Sample(sample, _neighbourhoods(sample, encodings, count)) for sample in samples]


def _neighbourhoods(sample: str, encodings: Sequence[Encodings], count: int) -> list[Neighbourhood]:
    found = []
    for number, own in enumerate(encodings):
        if sample not in own.samples:
            continue
        known = nearest(sample, own, own.before, count)
        if own.same_before is None and known:
            found.append(Neighbourhood(None, known))
        after = nearest(sample, own, own.after, count)
        old = {neighbour.sentence for neighbour in known}
        fresh = [Neighbour(one.sentence, one.cosine, fresh=bool(known) and one.sentence not in old) for one in after]
        if fresh:
            found.append(Neighbourhood(number, fresh))
    return found


def nearest(sample: str, own: Encodings, vectors: NDArray[np.float32] | None, count: int) -> list[Neighbour]:
    """The sentences with the largest cosine to `sample`, except itself; empty without an encoder."""
    if vectors is None:
        return []
    place = own.sentences.index(sample)
    similarity = cosine(np.broadcast_to(vectors[place], vectors.shape), vectors)
    similarity[place] = -np.inf
    best = np.argsort(-similarity, kind="stable")[:count]
    return [Neighbour(own.sentences[index], float(similarity[index]), fresh=False) for index in best]
