"""The page: one file that loads nothing from elsewhere."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from diffcse_scale.foundation.secrets import masked
from diffcse_scale.report import curves, evaluations, similarities, tables, timing
from diffcse_scale.report.edited_sentences import Judgement
from diffcse_scale.report.similarities import Histograms, Sample
from diffcse_scale.runs.read import Run

# identify our pages and the runs that they are about, so that a page may be replaced
MARK = '<meta name="generator" content="diffcse-scale report">'
RUNS = '<meta name="diffcse-runs" content="'


def mark_of(run: Run) -> str:
    """How a page names a run: a hash of its path, which does not reveal the path."""
    return hashlib.sha256(os.fsencode(run.path.resolve())).hexdigest()[:16]


@dataclass(frozen=True)
class Looks:
    """The parts of the page that need the models of the runs.

    Attributes:
        problems: run number, and a sentence about something that is missing.
    """

    histograms: list[Histograms] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    judgements: list[Judgement] = field(default_factory=list)
    problems: list[tuple[int, str]] = field(default_factory=list)


def render(runs: Sequence[Run], looks: Looks) -> str:
    """The HTML page. All text from users is escaped."""
    environment = Environment(
        loader=PackageLoader("diffcse_scale.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        inline=_inline,
        masked=masked,
        mark=Markup(f'{MARK}\n{RUNS}{" ".join(map(mark_of, runs))}">'),
        runs=runs,
        looks=looks,
        date=datetime.now(UTC),
        charts=curves.charts(runs),
        differences=tables.differences(runs),
        recipes=tables.recipe_texts(runs),
        set_up=tables.set_up(runs),
        results=tables.results(runs),
        suites=evaluations.suites(runs),
        times=timing.times(runs),
        environments=tables.environments(runs),
        deepspeed=tables.deepspeed_configs(runs),
        curve=curves,
        histogram=similarities,
        dots=evaluations,
    )


def _inline(name: str) -> Markup:
    """The unescaped text of one of our own template files."""
    return Markup((Path(__file__).parent / "templates" / name).read_text(encoding="utf-8"))
