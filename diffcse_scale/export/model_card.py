"""The model card: README.md of an exported folder, written from its run.

It contains only facts from the run's own files, and no folder, host or person of the machine that trained the model.
`model_card.md.jinja` is the template.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from diffcse_scale.evaluation.recorded import standard_results
from diffcse_scale.evaluation.suites import SUITES
from diffcse_scale.export.footprint import energy, hardware, run_seconds
from diffcse_scale.export.markdown import fence, plain
from diffcse_scale.export.origin import backbone_of, data_sets, shown_name
from diffcse_scale.foundation import run_files
from diffcse_scale.foundation.errors import InputError, first_line
from diffcse_scale.foundation.model_files import CARD, TRANSFORMER_FILE, read_json, read_modules
from diffcse_scale.foundation.recorded_recipe import check_recipe
from diffcse_scale.model.pooling import POOLINGS
from diffcse_scale.model_folder.copying import own_file
from diffcse_scale.model_folder.layout import module_names
from diffcse_scale.recipe import Recipe, flatten
from diffcse_scale.recipe_file import load_recipe, load_recorded, shipped_recipes
from diffcse_scale.runs.metrics_file import MetricsFile

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
HERE = "path/to/this/folder"
TAGS = ["sentence-transformers", "sentence-similarity", "feature-extraction", "diffcse", "diffcse-scale"]
VERSIONS = ("diffcse-scale", "torch", "transformers", "sentence-transformers", "deepspeed")


def write_run_card(
    folder: Path,
    run: Path,
    result: dict[str, Any] | None = None,
    *,
    title: str | None = None,
    model_id: str | None = None,
    license: str | None = None,
    onnx: Any = None,
    whitened: bool = False,
) -> None:
    """Write the card of an exported folder, and the picture that it shows.

    Args:
        folder: the exported model.
        run: the run that trained the model.
        result: the future content of `result.json`; None reads the file.
        title: title of the model; the default is the name of the run's folder.
        model_id: name on the Hub where users will find the model; it is then also the title.
        license: the backbone's licence, if its own files do not name one.
        onnx: the `OnnxComparison` of the folder's ONNX files, if it has any.
        whitened: whether the folder's last `Dense` is whitening.

    Raises:
        InputError: the run's own files lack facts that the card needs.
    """
    if (run / run_files.CURVES).is_file():
        shutil.copyfile(own_file(run / run_files.CURVES, run), folder / run_files.CURVES)
    try:
        result = result or read_json(run / run_files.RESULT)
        named = model_id or title or run.resolve().name
        card = run_card(folder, run, result, named, model_id, license, onnx, whitened)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{run} has no card: {run_files.RECORD}, {run_files.RESULT} or {run_files.METRICS} is not what training "
            f"writes ({type(error).__name__}: {first_line(error)}); restore it."
        ) from error
    (folder / CARD).write_text(card, encoding="utf-8")


def run_card(
    folder: Path,
    run: Path,
    result: dict[str, Any],
    title: str,
    model_id: str | None,
    license: str | None,
    onnx: Any,
    whitened: bool,
) -> str:
    """The text of the card for `write_run_card`."""
    check_recipe(run)
    recipe = load_recorded(run / run_files.RECIPE)
    record = read_json(run / run_files.RECORD)
    backbone = backbone_of(recipe, run)
    modules = module_names(folder)
    suites = list(_evaluations(run, modules))
    data = ModelCardData(
        model_name=title,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=TAGS,
        base_model=backbone.hub,
        language=list(backbone.languages) or None,
        datasets=data_sets(recipe, run) or None,
        license=backbone.license or license,
        eval_results=list(_model_index(suites)) or None,
    )
    shown = _without_places(recipe)
    seconds = run_seconds(MetricsFile(run / run_files.METRICS).rows())
    recipe_yaml = yaml.safe_dump(shown, sort_keys=False).strip()
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=plain(title),
        model_id=model_id or HERE,
        backbone=replace(backbone, name=plain(backbone.name)),
        license=plain(backbone.license or license),
        recipe=plain(shown),
        left_out=plain(record.get("left_out", [])),
        changes=[plain([key, here, there]) for key, here, there in _changes(shown)],
        fence=fence(recipe_yaml),
        recipe_yaml=recipe_yaml,
        pooling=POOLINGS[recipe.model.pooling],
        projected=modules.count("Dense") > whitened,
        whitened=whitened,
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


def _evaluations(run: Path, modules: list[str]) -> Iterator[dict[str, Any]]:
    """The evaluations of a run on standard data that are also valid for the exported modules."""
    if "Dense" in modules:
        return
    for suite in SUITES.values():
        if "Normalize" not in modules or suite.scale_free:
            yield from standard_results(run, suite.name)


def _model_index(suites: list[dict[str, Any]]) -> Iterator[EvalResult]:
    """Every defined number of every task in the Hub's format."""
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
    """Width of an embedding: the output width of the last module that defines one."""
    modules = [module for module in read_modules(folder) if module["type"].endswith((".Pooling", ".Dense"))]
    settings = read_json(folder / modules[-1]["path"] / "config.json")
    return int(settings.get("out_features") or settings["word_embedding_dimension"])


def _changes(shown: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Field, value and default of all differences from the shipped recipe of the same name; empty if there is none."""
    if shown["name"] not in shipped_recipes():
        return []
    usual = dict(flatten(_without_places(load_recipe(shown["name"]))))
    return [(key, value, usual.get(key)) for key, value in flatten(shown) if value != usual.get(key)]


def _without_places(recipe: Recipe) -> dict[str, Any]:
    """A recipe's fields, with only the last part of the paths of folders and files."""
    shown = recipe.model_dump(mode="json")
    del shown["data"]["cache_dir"]
    model = shown["model"]
    for field in ("encoder", "discriminator", "generator", "checkpoint"):
        model[field] = model[field] and shown_name(model[field])
    shown["data"]["files"] = [shown_name(name) for name in shown["data"]["files"]]
    shown["evaluation"]["data"] = shown["evaluation"]["data"] and shown_name(shown["evaluation"]["data"])
    return shown
