"""`diffcse-scale`: everything but the training loop itself, which is `train.py`."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import BaseModel, ValidationError

from diffcse_scale.errors import InputError
from diffcse_scale.recipe import explain
from diffcse_scale.shipped import shipped
from diffcse_scale.training.pretrain_options import PretrainOptions

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    processes: Annotated[int | None, typer.Option(help="ranks on this machine; all devices if absent")] = None,
) -> None:
    """Launch train.py with DeepSpeed; all other arguments are train.py's."""
    _launch(processes, context.args)


def _launch(processes: int | None, arguments: list[str]) -> NoReturn:
    """Become the `deepspeed` launcher of train.py."""
    from diffcse_scale.distributed import free_port

    launcher = ["deepspeed.launcher.runner", "--master_port", str(free_port())]
    if processes:
        launcher += ["--num_gpus", str(processes)]
    os.execv(sys.executable, [sys.executable, "-m", *launcher, str(shipped("train.py")), *arguments])


@app.command()
def status(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run folders")],
    json: Annotated[bool, typer.Option("--json", help="one JSON object a line instead")] = False,
) -> None:
    """Where runs are: step, rate, time left, last checkpoint, restarts."""
    from json import dumps

    from diffcse_scale.training.status import read_status, status_line

    for run in runs:
        found = read_status(run)
        print(dumps({"run": str(run), **found}) if json else f"{run}: {status_line(found)}")


@app.command()
def replay(
    run: Annotated[Path, typer.Argument(help="a run folder")],
    processes: Annotated[
        int | None, typer.Option(help="ranks on this machine; as many as the run had if absent")
    ] = None,
) -> None:
    """Compute the step again at which a run stopped because its numbers were not finite, and say where they arise."""
    from diffcse_scale.training.nonfinite import newest_dump, replay_arguments

    _launch(processes or len(newest_dump(run)["ranks"]), replay_arguments(run))


@app.command()
def prepare(
    recipe: Annotated[str, typer.Option(help="a shipped recipe or a .yaml file")] = "quickstart",
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="section.field=value", help="changes to the recipe")
    ] = None,
) -> None:
    """Clean and tokenize a recipe's corpus into the cache, so that training starts at once wherever that is shared."""
    from diffcse_scale.model.backbone import load_tokenizers
    from diffcse_scale.recipe import load_recipe
    from diffcse_scale.text.cache import cache_folder
    from diffcse_scale.text.tokens import tokenize

    chosen = load_recipe(recipe, overrides or ())
    tokens = tokenize(chosen.data, load_tokenizers(chosen.model).streams, seed=chosen.seed)
    print(f"{len(tokens):,} sentences are ready in {cache_folder(chosen.data)}; {tokens}")


@app.command()
def summarize(runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="folders of finished runs")]) -> None:
    """Mean and standard deviation over seeds, for each setting that the runs differ in."""
    from diffcse_scale.evaluation.summary import print_summary_of

    print_summary_of(runs)


@app.command()
def evaluate(
    model: Annotated[str, typer.Option(help="a sentence-transformers or transformers folder")],
    data: Annotated[str, typer.Option(help="folder of STS tasks, a file of graded pairs, or 'hub'")],
    json: Annotated[Path | None, typer.Option(help="also write the results here")] = None,
    pooling: Annotated[str | None, typer.Option(help="cls, mean, last or first_last_mean")] = None,
    max_length: Annotated[int | None, typer.Option(min=3, help="tokens a sentence")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 128,
) -> None:
    """Semantic textual similarity: Spearman on STS12-16, STS-B and SICK-R."""
    from diffcse_scale.evaluation.command import evaluate_model

    evaluate_model(model, data, json_file=json, pooling=pooling, max_length=max_length, batch_size=batch_size)


@app.command()
def plan(
    recipe: Annotated[str, typer.Option(help="a shipped recipe or a .yaml file")] = "quickstart",
    deepspeed_config: Annotated[
        Path | None, typer.Option("--deepspeed_config", help="DeepSpeed JSON (default: the shipped zero2.json)")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="section.field=value", help="changes to the recipe")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="machines")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="devices of a machine")] = 1,
    gpu_memory: Annotated[float, typer.Option(min=0.1, help="GiB of a device")] = 80.0,
    cpu: Annotated[bool, typer.Option("--cpu", help="the devices are ranks on CPUs")] = False,
    json: Annotated[Path | None, typer.Option(help="also write the plan here, in bytes")] = None,
) -> None:
    """Before a run is queued: will it fit, with what sizes and ZeRO stage, and what does it send?"""
    from diffcse_scale.planning.command import plan as make_plan

    make_plan(recipe, deepspeed_config, overrides or (), nodes, gpus_per_node, gpu_memory, cpu, json)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def benchmark(context: typer.Context) -> None:
    """Time, memory and error of the kernels here: `python -m diffcse_kernels.benchmark`, whose arguments these are."""
    from diffcse_kernels.benchmark import main

    main(context.args)


def pretrain_generator(context: typer.Context, **_: Any) -> None:
    """Train a masked language model on raw text, to serve as generator (and encoder) of your language or domain."""
    from diffcse_scale.training.pretrain_generator import pretrain_generator

    given = {
        name: value
        for name, value in context.params.items()
        if (source := context.get_parameter_source(name)) is not None and source.name == "COMMANDLINE"
    }
    try:
        options = PretrainOptions(**given)
    except ValidationError as error:
        raise InputError("; ".join(explain(problem, PretrainOptions) for problem in error.errors()) + ".") from None
    record = pretrain_generator(options)
    before, after = record["held_out_before"], record["held_out_after"]
    print(f"held-out masked tokens predicted: {before['accuracy']:.1%} before, {after['accuracy']:.1%} after")
    print(f"model: {options.output}")


def _with_options_of(command: Callable[..., None], options: type[BaseModel]) -> Callable[..., None]:
    """`command` with a command line option for every field of a pydantic model, its description as help."""
    parameters = [inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)]
    for name, field in options.model_fields.items():
        option = Annotated[field.annotation, typer.Option(help=field.description)]  # type: ignore[name-defined]
        default = inspect.Parameter.empty if field.is_required() else field.default
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=option))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


app.command()(_with_options_of(pretrain_generator, PretrainOptions))


def main() -> None:
    """Entry point: a user's mistake is one sentence and exit code 2."""
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
