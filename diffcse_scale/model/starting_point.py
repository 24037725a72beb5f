"""Find the settings of a starting model that training does not use.

A sentence-transformers folder or repository is a list of modules with prompts and lengths. Training uses only the first
module, which is the network. Pooling and lengths come from the recipe.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from diffcse_scale.foundation.model_files import (
    ABOUT_FILE,
    MODULES_FILE,
    TRANSFORMER_FILE,
    existing_folder,
    network_folder,
    other_similarity,
    read_modules,
    read_settings,
)
from diffcse_scale.model.backbone import reading
from diffcse_scale.model.pooling import POOLINGS
from diffcse_scale.recipe import EMBEDDED, Recipe

log = logging.getLogger(__name__)


def left_out(recipe: Recipe) -> list[str]:
    """What the encoder's folder or repository has but a run of the recipe does not use, in words.

    Raises:
        InputError: one of its files cannot be read.
    """
    name = recipe.model.encoder
    with reading(f"Model {name}", name):
        return list(_left_out(recipe))


def tell_what_is_left_out(recipe: Recipe) -> None:
    """Log what is left out, in one line."""
    if parts := left_out(recipe):
        log.warning(
            "Model %s has more than a network and a tokenizer; training does not use %s.",
            recipe.model.encoder,
            "; ".join(parts),
        )


def _left_out(recipe: Recipe) -> Iterator[str]:
    name = recipe.model.encoder
    folder = _with_file(name, MODULES_FILE)
    if folder is None:
        return
    pooling = POOLINGS[recipe.model.pooling]
    for module in read_modules(folder)[1:]:
        kind = module["type"].rpartition(".")[2]
        if kind == "Pooling":
            modes = _pooling_modes(_settings(name, f"{module['path']}/config.json"))
            if modes != [pooling.mode]:
                yield f"its {' and '.join(modes)} pooling (model.pooling is {recipe.model.pooling})"
        elif kind != "WeightedLayerPooling" or not pooling.first_and_last:
            yield f"its module {kind}"
    about = _settings(name, ABOUT_FILE)
    if prompts := {key: text for key, text in (about.get("prompts") or {}).items() if text}:
        default = about.get("default_prompt_name")
        yield f"its prompts {', '.join(sorted(prompts))}" + (f" (by default {default})" if default else "")
    if measure := other_similarity(about):
        yield f"its similarity {measure} (the trained one is cosine)"
    if (width := about.get("truncate_dim")) is not None:
        yield f"its cut to the first {width} numbers of a vector (truncate_dim)"
    transformer = _settings(name, TRANSFORMER_FILE)
    if transformer.get("do_lower_case"):
        yield "its lower-casing (do_lower_case; the tokenizer's own, if it has one, stays)"
    # sentence-transformers writes one of the two
    length = transformer.get("max_seq_length") or _settings(name, "tokenizer_config.json").get("model_max_length")
    if length not in (None, recipe.evaluation.max_length):
        yield f"its length of {length} tokens (evaluation.max_length is {recipe.evaluation.max_length})"


def _pooling_modes(config: dict[str, Any]) -> list[str]:
    """The pooling modes, as sentence-transformers names them in new files; older files have flags instead."""
    modes = config.get("pooling_mode")
    if modes is None:
        flags = {**{row.flag: row.mode for row in POOLINGS.values()}, "max_tokens": "max"}
        names = [key.removeprefix("pooling_mode_") for key, on in config.items() if key.startswith("pooling_") and on]
        modes = [flags.get(flag, flag.removesuffix("_tokens")) for flag in names] or ["mean"]
    return [modes] if isinstance(modes, str) else [str(mode) for mode in modes]


def _settings(name: str, file: str) -> dict[str, Any]:
    """The settings in a JSON file of a model; empty if there is no such file."""
    folder = _with_file(name, file)
    return {} if folder is None else read_settings(folder / file)


def _with_file(name: str, file: str) -> Path | None:
    """The folder that holds a file of a model, which may be on the Hub; None if there is no such file."""
    if name == EMBEDDED:
        return None
    if folder := existing_folder(name):
        places = (folder, network_folder(folder))
        return next((place for place in places if (place / file).is_file()), None)
    found = cached_file(
        name,
        file,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found.removesuffix(file))
