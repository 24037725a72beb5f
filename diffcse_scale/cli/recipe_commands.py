"""Commands about recipes: print one, plan its memory, prepare its corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from diffcse_scale.engine.config_file import load_deepspeed_config, shipped_configs
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.working import STARTING, Working
from diffcse_scale.model_folder.layout import check_models
from diffcse_scale.recipe_file import explained_recipe, listed, load_recipe, shipped_recipes

commands = typer.Typer()
PlannedDevice = Literal["a100", "h100", "h200", "b200"]  # the keys of `planning.hours.DEVICES`, a slow import


def _shipped(beginning: str) -> list[str]:
    """Completions for a shell."""
    return [name for name in shipped_recipes() if name.startswith(beginning)]


def _shipped_config(beginning: str) -> list[str]:
    return [name for name in shipped_configs() if name.startswith(beginning)]


RecipeOption = Annotated[str, typer.Option(help="A shipped recipe or a .yaml file.", autocompletion=_shipped)]


@commands.command()
def recipe(
    name: Annotated[
        str, typer.Argument(help="A shipped recipe or a .yaml file.", autocompletion=_shipped)
    ] = "quickstart",
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="section.field=value", help="Changes to the recipe.")
    ] = None,
    names: Annotated[bool, typer.Option("--list", help="List the shipped recipes instead.")] = False,
) -> None:
    """Print a recipe with all fields, their meaning and its comments. To start your own: `... > mine.yaml`."""
    print("\n".join(listed()) if names else explained_recipe(name, overrides or ()))


@commands.command()
def prepare(
    recipe: RecipeOption = "quickstart",
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="section.field=value", help="Changes to the recipe.")
    ] = None,
    edits: Annotated[int | None, typer.Option(min=1, help="Also make this many edited versions per sentence.")] = None,
) -> None:
    """Clean and tokenize a recipe's corpus into the cache, so that training with this cache starts at once."""
    from diffcse_scale.text.sources import check_names

    changes = [*(overrides or ()), *([] if edits is None else [f"objective.edits={edits}"])]
    chosen = load_recipe(recipe, changes)
    check_names(chosen.data)
    check_models(chosen)

    from diffcse_scale.generator.prepare import prepare_corpus

    prepare_corpus(chosen)


@commands.command()
def plan(
    recipe: RecipeOption = "quickstart",
    deepspeed_config: Annotated[
        Path | None,
        typer.Option(
            "--deepspeed_config",
            help="A shipped DeepSpeed configuration, such as zero3, or a .json file (default: zero2).",
            autocompletion=_shipped_config,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="section.field=value", help="Changes to the recipe.")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Number of machines.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="Devices per machine.")] = 1,
    gpu_memory: Annotated[
        float | None, typer.Option(min=0.1, max=1e6, help="Memory per device in GiB (default: 80).")
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="The devices are ranks on CPUs.")] = False,
    json: Annotated[Path | None, typer.Option(help="Also write the plan to this file, in bytes.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of --json, whatever it is.")] = False,
    scaling: Annotated[
        bool, typer.Option("--scaling", help="Instead simulate how long a step takes on 1 to 512 nodes of GPUs.")
    ] = False,
    assume: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="With --scaling: another speed or latency. docs/scaling.md lists them."
        ),
    ] = None,
    device: Annotated[PlannedDevice | None, typer.Option(help="Estimate the hours on these devices.")] = None,
    tflops: Annotated[
        float | None, typer.Option(min=0.001, help="Speed that a device reaches, in 1e12 FLOP/s.")
    ] = None,
    network_gbs: Annotated[
        float | None, typer.Option(min=0.001, help="Bandwidth from a device to other nodes, in GB/s.")
    ] = None,
) -> None:
    """Before a run is queued: show whether it fits, with which sizes and ZeRO stage, and what it communicates."""
    check_models(load_recipe(recipe, overrides or ()))
    load_deepspeed_config(deepspeed_config)
    if scaling:
        _check_simulated(
            cpu, {"--gpu-memory": gpu_memory, "--device": device, "--tflops": tflops, "--network-gbs": network_gbs}
        )
    if assume and not scaling:
        raise InputError("--assume changes the simulation only: give --scaling too.")

    with Working(STARTING):
        from diffcse_scale.planning.command import plan as make_plan
        from diffcse_scale.planning.scaling_command import plan_scaling

    if scaling:
        plan_scaling(recipe, deepspeed_config, overrides or (), nodes, gpus_per_node, assume or (), json, overwrite)
        return
    machines = nodes, gpus_per_node, 80.0 if gpu_memory is None else gpu_memory, cpu
    speeds = device, tflops, network_gbs
    make_plan(recipe, deepspeed_config, overrides or (), *machines, json, overwrite, *speeds)


def _check_simulated(on_cpu: bool, options: dict[str, object]) -> None:
    """Raise InputError if an option is given that the simulation ignores. None in `options` means not given."""
    if on_cpu:
        raise InputError("--scaling simulates GPUs: leave out --cpu.")
    if given := [name for name, value in options.items() if value is not None]:
        raise InputError(
            f"--scaling does not use {', '.join(given)}: it computes no memory, and its speeds are set with "
            "--assume, such as --assume tflops=989 (names in docs/scaling.md); leave these options out."
        )
