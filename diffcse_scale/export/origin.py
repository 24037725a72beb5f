"""The origin of a model for its card: the backbone, its licence and languages, and the data sets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from diffcse_scale.foundation import run_files
from diffcse_scale.foundation.model_files import CARD, read_json
from diffcse_scale.foundation.paths import given_path
from diffcse_scale.foundation.secrets import masked
from diffcse_scale.recipe import EMBEDDED, Recipe
from diffcse_scale.text.formats import COMPRESSIONS, ENDINGS

HUB_DATA = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+?)(?:@[^/]+)?/.+")  # owner and name of a data set's file

# Licence and languages of the shipped recipes' backbones, from their cards on the Hub.
KNOWN: dict[str, tuple[str | None, tuple[str, ...]]] = {
    EMBEDDED: (None, ("en",)),
    "bert-base-uncased": ("apache-2.0", ("en",)),
    "bert-large-uncased": ("apache-2.0", ("en",)),
    "roberta-base": ("mit", ("en",)),
    "roberta-large": ("mit", ("en",)),
    "answerdotai/ModernBERT-base": ("apache-2.0", ("en",)),
    "answerdotai/ModernBERT-large": ("apache-2.0", ("en",)),
    "FacebookAI/xlm-roberta-large": ("mit", ("multilingual",)),
    "Qwen/Qwen3-0.6B-Base": ("apache-2.0", ()),
    "Qwen/Qwen3-8B-Base": ("apache-2.0", ()),
}


@dataclass(frozen=True)
class Backbone:
    """The backbone that a model was trained from.

    Attributes:
        name: name for the card.
        hub: its name on the Hub; None if it is a folder.
        license: its licence from its own files or `KNOWN`; None if neither names one.
        languages: from the same sources, in the Hub's abbreviations; empty if unknown.
    """

    name: str
    hub: str | None
    license: str | None
    languages: tuple[str, ...] = ()


def backbone_of(recipe: Recipe, run: Path) -> Backbone:
    """The backbone that a run was trained from.

    The card that was written at the run's end takes precedence. The backbone was available then and may be gone now,
    and a user may have added a licence and languages to the card.
    """
    encoder = recipe.model.encoder
    card = run / run_files.MODEL / CARD
    if encoder == EMBEDDED:
        name, hub, found = "the tiny BERT that comes with diffcse-scale", None, {}
    elif card.is_file():
        found = _front_matter(card)
        name, hub = shown_name(encoder), found.get("base_model")
    else:
        found = _told(given_path(encoder))
        name, hub = shown_name(encoder), None if _is_place(encoder) else encoder
    license, languages = KNOWN.get(EMBEDDED if encoder == EMBEDDED else hub or "", (None, ()))
    named = found.get("language") or languages
    named = (named,) if isinstance(named, str) else tuple(str(language) for language in named)
    return Backbone(name, hub, _text(found.get("license")) or license, named)


def data_sets(recipe: Recipe, run: Path) -> list[str]:
    """The names on the Hub of the data sets that a run was trained on, each once.

    As for the backbone, the card from the run's end takes precedence: a name that is a file here now may not have been
    a file on the training machine.
    """
    card = run / run_files.MODEL / CARD
    if card.is_file():
        named = _front_matter(card).get("datasets") or []
        return [named] if isinstance(named, str) else [str(name) for name in named]
    found = []
    for entry in recipe.data.files:
        address = HUB_DATA.fullmatch(entry)
        name = address[1] if address else entry.split(":")[0]
        if address or not ("://" in entry or entry == EMBEDDED or _is_place(name)):
            found.append(name)
    return list(dict.fromkeys(found))


def shown_name(name: str) -> str:
    """A name on the Hub unchanged; for a file or folder only the last part of its path."""
    return masked(Path(name).name) if _is_place(name) else name


def _told(folder: Path) -> dict[str, Any]:
    """Facts from a model folder's own files: its card's front matter, and a licence in its configuration."""
    found = _front_matter(folder / CARD) if (folder / CARD).is_file() else {}
    if not found.get("license") and (folder / "config.json").is_file():
        found["license"] = read_json(folder / "config.json").get("license")
    return found


def _front_matter(card: Path) -> dict[str, Any]:
    data: dict[str, Any] = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    return data


def _text(value: object) -> str | None:
    return str(value) if value else None


def _is_place(name: str) -> bool:
    """Whether `name` is a file or folder and not a name on the Hub."""
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) or name.endswith((*ENDINGS, *COMPRESSIONS)):
        return True
    return Path(name).exists()
