"""All surfaces by name."""

from __future__ import annotations

from tests.fuzz.configurations import DEEPSPEED, OVERRIDES, RECIPE
from tests.fuzz.folders import ENCODINGS, MODELS, REPORTS, SEARCH
from tests.fuzz.texts import CORPORA, PAIRS

SURFACES = {
    surface.name: surface
    for surface in (RECIPE, OVERRIDES, DEEPSPEED, CORPORA, PAIRS, MODELS, ENCODINGS, SEARCH, REPORTS)
}
