"""The model card: README.md of an exported folder, written from its run.

It tells what the run's own files say and nothing else, and names no folder, host or person of the machine it was
trained on. `model_card.md.jinja` has the words.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from diffcse_scale.embedded import backbone_path
from diffcse_scale.evaluation.recorded import standard_results
from diffcse_scale.evaluation.suites import SUITES
from diffcse_scale.export.footprint import energy, hardware, run_seconds
from diffcse_scale.export.markdown import fence, plain
from diffcse_scale.foundation import run_files
from diffcse_scale.foundation.errors import InputError, first_line
from diffcse_scale.foundation.model_files import CARD, TRANSFORMER_FILE, read_json
from diffcse_scale.foundation.paths import given_path
from diffcse_scale.foundation.recorded_recipe import check_recipe
from diffcse_scale.foundation.secrets import masked
from diffcse_scale.model.pooling import POOLINGS
from diffcse_scale.model_folder.copying import own_file
from diffcse_scale.model_folder.layout import module_names
from diffcse_scale.recipe import EMBEDDED, Recipe, flatten
from diffcse_scale.recipe_file import load_recipe, shipped_recipes
from diffcse_scale.runs.metrics_file import MetricsFile
from diffcse_scale.text.formats import COMPRESSIONS, ENDINGS

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
HERE = "path/to/this/folder"
TAGS = ["sentence-transformers", "sentence-similarity", "feature-extraction", "diffcse", "diffcse-scale"]
VERSIONS = ("diffcse-scale", "torch", "transformers", "sentence-transformers", "deepspeed")


@dataclass(frozen=True)
class Backbone:
    """What a model was trained from.

    Attributes:
        name: as a card may show it.
        hub: its name on the Hub, None if it is a folder.
        license: as its own files tell it, None if they do not.
    """

    name: str
    hub: str | None
    license: str | None


def write_run_card(
    folder: Path,
    run: Path,
    result: dict[str, Any] | None = None,
    model_id: str | None = None,
    license: str | None = None,
    onnx: Any = None,
) -> None:
    """Write the card of an exported folder, and the picture that it shows.

    Args:
        folder: the exported model.
        run: the run whose model it is.
        result: what `result.json` is going to say; None to read it.
        model_id: the name on the Hub under which users will find it.
        license: the backbone's, where its own files do not tell it.
        onnx: the `OnnxComparison` of the folder's ONNX files, if it has any.

    Raises:
        InputError: the run's own files do not say what a card says.
    """
    if (run / run_files.CURVES).is_file():
        shutil.copyfile(own_file(run / run_files.CURVES, run), folder / run_files.CURVES)
    try:
        card = run_card(folder, run, result or read_json(run / run_files.RESULT), model_id, license, onnx)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{run} has no card: {run_files.RECORD}, {run_files.RESULT} or {run_files.METRICS} is not what training "
            f"writes ({type(error).__name__}: {first_line(error)}); bring it back."
        ) from error
    (folder / CARD).write_text(card, encoding="utf-8")


def run_card(
    folder: Path, run: Path, result: dict[str, Any], model_id: str | None, license: str | None, onnx: Any
) -> str:
    """The text of `write_run_card`."""
    check_recipe(run)
    recipe = load_recipe(str(run / run_files.RECIPE))
    record = read_json(run / run_files.RECORD)
    backbone = backbone_of(recipe, run)
    modules = module_names(folder)
    suites = list(_evaluations(run, modules))
    data = ModelCardData(
        model_name=model_id or recipe.name,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=TAGS,
        base_model=backbone.hub,
        license=backbone.license or license,
        eval_results=list(_model_index(suites)) or None,
    )
    shown = _without_places(recipe)
    seconds = run_seconds(MetricsFile(run / run_files.METRICS).rows())
    recipe_yaml = yaml.safe_dump(shown, sort_keys=False).strip()
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=plain(model_id or recipe.name),
        model_id=model_id or HERE,
        backbone=replace(backbone, name=plain(backbone.name)),
        license=plain(backbone.license or license),
        recipe=plain(shown),
        left_out=plain(record.get("left_out", [])),
        changes=[plain([key, here, there]) for key, here, there in _changes(shown)],
        fence=fence(recipe_yaml),
        recipe_yaml=recipe_yaml,
        pooling=POOLINGS[recipe.model.pooling],
        projected="Dense" in modules,
        normalized="Normalize" in modules,
        width=_width(folder),
        max_length=read_json(folder / TRANSFORMER_FILE)["max_seq_length"],
        onnx=onnx,
        result=result,
        suites=suites,
        has_curves=(folder / run_files.CURVES).is_file(),
        plan=record["plan"],
        fingerprint=record["data_fingerprint"],
        zero_stage=record["deepspeed_config"].get("zero_optimization", {}).get("stage", 0),
        hardware=hardware(record),
        restarts=len(record.get("resumed", [])),
        seconds=seconds,
        energy=energy(record, seconds) if seconds else None,
        versions={name: record["environment"]["packages"].get(name) for name in VERSIONS},
        python=record["environment"]["python"],
    )
    return str(card)


def backbone_of(recipe: Recipe, run: Path) -> Backbone:
    """What a run was trained from.

    The card that was written at the run's end, where the backbone lay, is believed first: there a user may fill in a
    licence, and the backbone may be gone by now.
    """
    encoder = recipe.model.encoder
    if encoder == EMBEDDED:
        return Backbone("the tiny BERT that comes with diffcse-scale", None, license_in(backbone_path()))
    card = run / run_files.MODEL / CARD
    if card.is_file():
        data = ModelCard.load(card, ignore_metadata_errors=True).data
        return Backbone(_shown(encoder), data.get("base_model"), data.get("license"))
    folder = given_path(encoder)
    return Backbone(_shown(encoder), None if _is_place(encoder) else encoder, license_in(folder))


def license_in(folder: Path) -> str | None:
    """The licence that a model folder's card or configuration names."""
    if (folder / CARD).is_file():
        card = ModelCard.load(folder / CARD, ignore_metadata_errors=True)
        if card.data.license:
            return str(card.data.license)
    if (folder / "config.json").is_file():
        named = read_json(folder / "config.json").get("license")
        return str(named) if named else None
    return None


def _evaluations(run: Path, modules: list[str]) -> Iterator[dict[str, Any]]:
    """The evaluations of a run on standard data whose numbers hold for the exported modules too."""
    if "Dense" in modules:
        return
    for suite in SUITES.values():
        if "Normalize" not in modules or suite.scale_free:
            yield from standard_results(run, suite.name)


def _model_index(suites: list[dict[str, Any]]) -> Iterator[EvalResult]:
    """Every defined number of every task, as the Hub reads it."""
    for suite in suites:
        for task in suite["tasks"]:
            if task["value"] is not None:
                yield EvalResult(
                    task_type=SUITES[suite["suite"]].hub_task,
                    dataset_type=re.sub(r"[^a-z0-9]+", "-", task["name"].lower()).strip("-"),
                    dataset_name=task["name"],
                    metric_type=re.sub(r"[^a-z0-9]+", "_", task["measure"].removesuffix(" x 100").lower()),
                    metric_name=task["measure"],
                    metric_value=round(task["value"], 4),
                )


def _width(folder: Path) -> int:
    (pooling,) = folder.glob("*_Pooling/config.json")
    return int(read_json(pooling)["word_embedding_dimension"])


def _changes(shown: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Field, value and usual value: what differs from the shipped recipe of the same name; nothing if there is none."""
    if shown["name"] not in shipped_recipes():
        return []
    usual = dict(flatten(_without_places(load_recipe(shown["name"]))))
    return [(key, value, usual.get(key)) for key, value in flatten(shown) if value != usual.get(key)]


def _without_places(recipe: Recipe) -> dict[str, Any]:
    """A recipe's fields, folders and files by their last name only."""
    shown = recipe.model_dump(mode="json")
    del shown["data"]["cache_dir"]
    model = shown["model"]
    for field in ("encoder", "discriminator", "generator", "checkpoint"):
        model[field] = model[field] and _shown(model[field])
    shown["data"]["files"] = [_shown(name) for name in shown["data"]["files"]]
    shown["evaluation"]["data"] = shown["evaluation"]["data"] and _shown(shown["evaluation"]["data"])
    return shown


def _shown(name: str) -> str:
    return masked(Path(name).name) if _is_place(name) else name


def _is_place(name: str) -> bool:
    """Whether `name` is a file or folder and not a name on the Hub."""
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) or name.endswith((*ENDINGS, *COMPRESSIONS)):
        return True
    return Path(name).exists()
