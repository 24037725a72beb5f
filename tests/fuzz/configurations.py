"""Recipes, their overrides, and DeepSpeed's JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import yaml
from hypothesis import strategies as st
from pydantic import BaseModel

from diffcse_scale.engine.config_file import load_deepspeed_config
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.recipe import Recipe
from diffcse_scale.recipe_file import load_recipe, shipped_recipes
from tests.fuzz.case import Answer, Case, Surface
from tests.fuzz.ingredients import FOREIGN, TEXT, VALUES, damaged, damaged_json
from tests.support.files import yaml_bomb

MINE, CONFIG = "mine.yaml", "ds.json"
# YAML that means something else than it seems to, or nothing
SCALARS = [
    "2024-02-28", "2024-02-30", "2024-02-30T25:00:00", ".inf", "-.inf", ".nan", "inf", "nan", "1e999", "-1e999",
    "1e-4", "0x10", "0o17",
    "1_000", "1:30", "yes", "No", "~", "null", "'64'", '"64"', "64", "'1e-4'", "9" * 400, "-1", "0", "1e400", "[1,2]",
    "[.inf]", "{}",
    "{a: b}", "{a: 1, a: 2}", "[[[[[[[]]]]]]]", "*a", "&a 3", "&a [*a]", "!!python/object/apply:os.system ['true']",
    "!!binary aGk=",
    "!!set {a}", "!!timestamp 2001-01-01", "? x", "- -", "|", ">", "@", "`", "%", "a: b: c", "'", '"', "\\",
    "x" * 5_000, "[" * 5_000,
    "../../etc/passwd", "a/b", "CON", "\x00", "\x85", "\u2028", "\U0001f600", "", " ", "text", "mean", "cls",
    "embedded", "true", "false",
]  # fmt: skip
USUAL = sorted(
    {str(value) for text in shipped_recipes().values() for value in re.findall(r": (.+)$", text, re.MULTILINE)}
)
SCALAR = st.sampled_from(SCALARS) | st.sampled_from(USUAL) | TEXT | st.integers(-3, 200).map(str) | st.floats().map(str)


def _fields(schema: type[BaseModel], before: str = "") -> Iterator[str]:
    for name, field in schema.model_fields.items():
        yield before + name
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _fields(kind, f"{before}{name}.")


FIELDS = sorted(_fields(Recipe))


def _said(recipe: Recipe) -> Iterator[str]:
    """Overrides that change nothing of a recipe."""
    for name in FIELDS:
        value: Any = recipe
        for part in name.split("."):
            value = getattr(value, part, None)
        if not isinstance(value, BaseModel):
            yield f"{name}={json.dumps(value)}"


# most of them fit together
CHANGE = st.sampled_from(sorted({change for name in shipped_recipes() for change in _said(load_recipe(name))}))


@st.composite
def _recipe_text(draw: st.DrawFn) -> bytes:
    values = yaml.safe_load(shipped_recipes()[draw(st.sampled_from(sorted(shipped_recipes())))])
    lines = []
    for name in draw(st.lists(st.sampled_from(FIELDS), min_size=1, max_size=2, unique=True)):
        *sections, field = name.split(".")
        inside = values
        for section in sections:
            if not isinstance(inside.setdefault(section, {}), dict):
                break
            inside = inside[section]
        else:
            mark = f"PLACE{len(lines)}"
            inside[field] = mark
            lines.append((mark, draw(SCALAR | VALUES.map(lambda value: json.dumps(value, ensure_ascii=False)))))
    text = yaml.safe_dump(values, sort_keys=False)
    for mark, scalar in lines:
        text = text.replace(mark, scalar)
    return text.encode("utf-8", "surrogatepass")


def _recipe_reads_back(case: Case, answer: Answer) -> str:
    """What is printed is a recipe, and the same one; its numbers are finite; text that was given is what it was."""
    with open("printed.yaml", "w", encoding="utf-8") as file:
        file.write(answer.out)
    try:
        printed = load_recipe("printed.yaml")
        given = load_recipe(case.arguments[1], case.arguments[2:])
    except InputError as error:
        return f"what is printed is refused: {error}"
    if printed != given:
        return f"what is printed is another recipe than {given!r}"
    numbers = [number for number in _leaves(printed.model_dump()) if isinstance(number, float)]
    return "" if all(map(math.isfinite, numbers)) else "a number is not finite"


def _leaves(value: Any) -> Iterator[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else None
    if inner is None:
        yield value
    else:
        for one in inner:
            yield from _leaves(one)


def _read_config(case: Case) -> Answer:
    """What training and `plan` do with DeepSpeed's JSON before anything takes long."""
    from diffcse_scale.engine.configuration import complete_config

    try:
        return Answer(0, json.dumps(complete_config(load_deepspeed_config(CONFIG), load_recipe("quickstart"), 1)), "")
    except InputError as error:
        return Answer(2, "", f"error: {error}\n")


def _deepspeed_takes_it(case: Case, answer: Answer) -> str:
    from deepspeed.runtime.config import DeepSpeedConfig

    read = _read_config(case)
    if read.code:
        return f"accepted by the command, and not by what it reads it with: {read.err}"
    try:
        DeepSpeedConfig(json.loads(read.out))
    except Exception as error:
        return f"DeepSpeed refuses it later: {type(error).__name__}: {str(error)[:200]}"
    return ""


CONFIGURATION = {
    "zero_optimization": {
        "stage": 2, "overlap_comm": True, "reduce_bucket_size": 5e8, "allgather_bucket_size": 5e8,
        "contiguous_gradients": True,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
    },
    "bf16": {"enabled": True}, "gradient_clipping": 1.0, "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "steps_per_print": 100, "wall_clock_breakdown": False, "activation_checkpointing": {"partition_activations": False},
    "zero_allow_untested_optimizer": True, "flops_profiler": {"enabled": False}, "comms_logger": {"enabled": False},
    "tensorboard": {"enabled": False}, "fp16": {"enabled": False, "loss_scale": 0},
    "torch_autocast": {"enabled": False},
}  # fmt: skip
ACCEPTED = {key: value for key, value in CONFIGURATION.items() if key not in ("gradient_clipping", "bf16")}


@st.composite
def _config(draw: st.DrawFn) -> bytes:
    chosen = draw(st.lists(st.sampled_from(sorted(ACCEPTED)), max_size=4, unique=True))
    whole = {key: ACCEPTED[key] for key in chosen}
    how = draw(st.sampled_from(["json", "json", "json", "bytes", "foreign", "typo"]))
    if how == "foreign":
        return draw(st.sampled_from(FOREIGN))
    if how == "typo" and whole:
        whole[draw(st.sampled_from(chosen)) + draw(st.sampled_from(["s", "_", "x"]))] = {}
    return draw(damaged(json.dumps(whole, indent=1).encode()) if how == "bytes" else damaged_json(whole))


RECIPE = Surface(
    "recipe",
    st.builds(
        lambda text: Case(("recipe", MINE), {MINE: text}),
        _recipe_text()
        | st.sampled_from([*FOREIGN, yaml_bomb(9).encode()])
        | st.sampled_from(sorted(shipped_recipes())).flatmap(lambda name: damaged(shipped_recipes()[name].encode())),
    ),
    _recipe_reads_back,
)
NO_OPTION = TEXT.filter(lambda text: not text.startswith("-"))
OVERRIDES = Surface(
    "overrides",
    st.builds(
        lambda changes: Case(("recipe", "quickstart", *changes)),
        st.lists(
            CHANGE | st.builds("{}={}".format, st.sampled_from(FIELDS) | NO_OPTION, SCALAR) | NO_OPTION,
            min_size=1,
            max_size=2,
        ).map(lambda changes: [change.replace("\0", "") for change in changes]),
    ),
    _recipe_reads_back,
)
DEEPSPEED = Surface(
    "deepspeed",
    st.builds(lambda text: Case(("plan", "--deepspeed_config", CONFIG, "--cpu"), {CONFIG: text}), _config()),
    _deepspeed_takes_it,
    _read_config,
)
