"""Tables from the run folders: recipes and their differences, how they were run, scores, environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from diffcse_scale.foundation.secrets import masked
from diffcse_scale.foundation.strict_json import to_json
from diffcse_scale.recipe import flatten
from diffcse_scale.report.charts import MINUS
from diffcse_scale.runs.read import Run
from diffcse_scale.training.schedule import Plan

# fields that always differ between runs and are not compared
NAMES = ("name",)


@dataclass(frozen=True)
class Row:
    """A line of a table: its name, and a cell for each run, which is empty if the run lacks it."""

    name: str
    cells: list[str]
    note: str = ""

    @property
    def differs(self) -> bool:
        """Whether the cells are not all equal."""
        return len(set(self.cells)) > 1


@dataclass(frozen=True)
class RecipeText:
    """A run's recipe as YAML: each line, and whether it belongs to a field in which the runs differ."""

    run: int
    lines: list[tuple[str, bool]]


def differences(runs: Sequence[Run]) -> list[Row]:
    """The recipe fields that differ between runs."""
    dumped = [dict(flatten(run.recipe.model_dump(mode="json"))) for run in runs]
    fields = dict.fromkeys(field for recipe in dumped for field in recipe if field not in NAMES)
    rows = [Row(field, [_plain(recipe.get(field)) for recipe in dumped]) for field in fields]
    return [row for row in rows if row.differs]


def recipe_texts(runs: Sequence[Run]) -> list[RecipeText]:
    """Every recipe in full."""
    differing = {row.name for row in differences(runs)}
    return [RecipeText(number, _yaml_lines(run, differing)) for number, run in enumerate(runs)]


def _yaml_lines(run: Run, differing: set[str]) -> list[tuple[str, bool]]:
    lines: list[tuple[str, bool]] = []
    for key, value in run.recipe.model_dump(mode="json").items():
        parts: list[tuple[tuple[str, ...], dict[str, Any]]] = [((key,), {key: value})]
        if isinstance(value, dict):
            lines.append((f"{key}:", False))
            parts = [((key, field), {field: entry}) for field, entry in value.items()]
        for names, entry in parts:
            text = masked(yaml.safe_dump(entry, sort_keys=False, allow_unicode=True, width=100))
            field = ".".join(names)
            differs = any(name == field or name.startswith(f"{field}.") for name in differing)
            indent = "  " * (len(names) - 1)
            lines += [(indent + line, differs) for line in text.splitlines()]
    return lines


def set_up(runs: Sequence[Run]) -> list[Row]:
    """How the recipes were run: batch table, sharding, data, interruptions."""
    rows = rows_of([_plan(run) for run in runs])
    rows += rows_of([_sharding(run) for run in runs])
    return rows


def _plan(run: Run) -> dict[str, str]:
    try:
        return dict(Plan(**run.facts["plan"]).table())
    except (KeyError, TypeError):  # the plan of another version
        return {}


def _sharding(run: Run) -> dict[str, str]:
    facts = run.facts
    if not facts:
        return {}
    zero = (facts.get("deepspeed_config") or {}).get("zero_optimization") or {}
    offload = [name.split("_")[1] for name in ("offload_optimizer", "offload_param") if name in zero]
    shown = {
        "sharding": f"ZeRO-{zero.get('stage', 0)}" + (f", offloaded: {', '.join(offload)}" if offload else ""),
        "precision": str(facts.get("precision", "")),
        "data fingerprint": str(facts.get("data_fingerprint", "")),
        "restarts": str(max(len(run.incarnations) - 1, 0)),
    }
    began = [str(incarnation.step) for incarnation in run.incarnations[1:]]
    if began:
        shown["restarted after step"] = ", ".join(began)
    first, *others = [(record.get("plan") or {}).get("world_size") for record in (facts, *facts.get("resumed", []))]
    for world_size in others:
        if world_size != first:
            shown["world size when resumed"] = str(world_size)
    return shown


def rows_of(columns: Sequence[dict[str, str]]) -> list[Row]:
    """One row for each name in any of the columns (one per run)."""
    names = dict.fromkeys(name for column in columns for name in column)
    return [Row(name, [column.get(name, "") for column in columns]) for name in names]


def deepspeed_configs(runs: Sequence[Run]) -> list[tuple[int, str]]:
    """Run number, and the DeepSpeed configuration at its start."""
    configs = [(number, run.facts.get("deepspeed_config")) for number, run in enumerate(runs)]
    return [(number, masked(to_json(config, indent=1))) for number, config in configs if config]


def results(runs: Sequence[Run]) -> list[Row]:
    """Development scores and replaced-token detection."""
    return rows_of([_result(run) for run in runs])


def _result(run: Run) -> dict[str, str]:
    shown = {f"development Spearman x 100, untrained, {pooling}": _score(v) for pooling, v in run.before.items()}
    if run.best.get("dev_spearman") is not None:
        shown[f"development Spearman x 100, trained, {run.recipe.model.pooling}"] = _score(run.best["dev_spearman"])
    if run.best.get("step") is not None:
        shown["of step"] = f"{run.best['step']:,}"
    numbers = {
        "dev_rtd_auroc": ("RTD AUROC over words", "{:.3f}"),
        "dev_rtd_skill": ("RTD skill over words", "{:.3f}"),
        "dev_rtd_z_gain": ("z gain, nats per word", "{:.4f}"),
        "dev_rtd_replaced": ("RTD, replaced words judged", "{:,.0f}"),
    }
    shares = {  # only in runs of earlier versions
        "rtd_balanced_accuracy": "RTD balanced accuracy",
        "rtd_recall_replaced": "RTD recall, replaced tokens",
        "rtd_recall_kept": "RTD recall, kept tokens",
    }
    known = {name: value for name, value in run.result.items() if value is not None}
    shown.update({title: form.format(known[name]) for name, (title, form) in numbers.items() if name in known})
    shown.update({title: f"{known[name]:.1%}" for name, title in shares.items() if name in known})
    if "rtd_replaced_tokens" in known:
        shown["RTD, replaced tokens judged"] = f"{known['rtd_replaced_tokens']:,.0f}"
    return shown


def _score(value: float | None) -> str:
    return "undefined" if value is None or value != value else f"{value:.2f}".replace("-", MINUS)


def environments(runs: Sequence[Run]) -> list[Row]:
    """Machine and versions of each run."""
    return rows_of([_environment(run.facts.get("environment") or {}) for run in runs])


def _environment(environment: dict[str, Any]) -> dict[str, str]:
    if not environment:
        return {}
    devices = environment.get("devices", [])
    counted = [f"{devices.count(name)} x {name}" for name in dict.fromkeys(devices)]
    shown = {
        "processor": f"{environment.get('processor')}, {environment.get('cores')} cores",
        "devices": ", ".join(counted) or "none; trained on the processor",
        "platform": environment.get("platform") or "",
        "Python": environment.get("python") or "",
        "CUDA": environment.get("cuda") or "none",
    }
    versions: dict[str, str | None] = environment.get("packages", {})
    return {**shown, **{name: version for name, version in versions.items() if version is not None}}


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return masked(", ".join(map(str, value)))
    return "none" if value is None else masked(str(value))
