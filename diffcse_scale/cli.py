"""`diffcse-scale`: everything but the training loop itself, which is `train.py`.

A command looks at the names that it was given before it imports torch, which takes seconds.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import typer
from pydantic import BaseModel, ValidationError

from diffcse_scale.doctor.doctor_options import DoctorOptions
from diffcse_scale.encoding.encode_options import EncodeOptions
from diffcse_scale.engine.config_file import load_deepspeed_config
from diffcse_scale.foundation.command_ending import run_command
from diffcse_scale.foundation.errors import InputError, either
from diffcse_scale.generator.pretrain_options import PretrainOptions
from diffcse_scale.model_folder.layout import check_pooling, model_folder
from diffcse_scale.recipe import DataRecipe, Pooling
from diffcse_scale.recipe_file import annotated, explained, listed, load_recipe

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def options(version: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False) -> None:
    """Everything but the training loop itself, which is `train.py`."""
    if version:
        from importlib.metadata import version as version_of

        print(f"diffcse-scale {version_of('diffcse-scale')}")
        raise typer.Exit


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    processes: Annotated[int | None, typer.Option(min=1, help="ranks on this machine; all devices if absent")] = None,
) -> None:
    """Launch train.py with DeepSpeed; all other arguments are train.py's."""
    from diffcse_scale.training.launcher import launch
    from diffcse_scale.training.train_arguments import parse_arguments

    parse_arguments(f"{train.__doc__}\n\n--processes N: ranks on this machine; all devices if absent.", context.args)
    launch(processes, context.args)


@app.command()
def status(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run folders")],
    json: Annotated[bool, typer.Option("--json", help="one JSON object a line instead")] = False,
) -> None:
    """Where runs are: step, rate, time left, last checkpoint, restarts."""
    from json import dumps

    from diffcse_scale.runs.status import read_status, status_line

    for run in runs:
        found = read_status(run)
        print(dumps({"run": str(run), **found}) if json else f"{run}: {status_line(found)}")


@app.command()
def replay(
    run: Annotated[Path, typer.Argument(help="a run folder")],
    processes: Annotated[
        int | None, typer.Option(min=1, help="ranks on this machine; as many as the run had if absent")
    ] = None,
) -> None:
    """Compute the step again at which a run stopped because its numbers were not finite, and say where they arise."""
    from diffcse_scale.runs.replay import newest_dump, replay_arguments
    from diffcse_scale.training.launcher import launch

    launch(processes or len(newest_dump(run)["ranks"]), replay_arguments(run))


@app.command()
def recipe(
    name: Annotated[str, typer.Argument(help="a shipped recipe or a .yaml file")] = "quickstart",
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="section.field=value", help="changes to the recipe")
    ] = None,
    names: Annotated[bool, typer.Option("--list", help="a line for each shipped recipe instead")] = False,
) -> None:
    """Print a recipe with all its fields and what they mean, to make one's own from: `... quickstart > mine.yaml`."""
    print("\n".join(listed()) if names else annotated(load_recipe(name, overrides or ())))


@app.command()
def prepare(
    recipe: Annotated[str, typer.Option(help="a shipped recipe or a .yaml file")] = "quickstart",
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="section.field=value", help="changes to the recipe")
    ] = None,
    edits: Annotated[int | None, typer.Option(min=1, help="also make so many edited versions of each sentence")] = None,
) -> None:
    """Clean and tokenize a recipe's corpus into the cache, so that training starts at once wherever that is shared."""
    from diffcse_scale.text.sources import check_names

    changes = [*(overrides or ()), *([] if edits is None else [f"objective.edits={edits}"])]
    chosen = load_recipe(recipe, changes)
    check_names(chosen.data)

    from diffcse_scale.generator.prepare import prepare_corpus

    prepare_corpus(chosen)


@app.command()
def summarize(runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="folders of finished runs")]) -> None:
    """Mean and standard deviation over seeds, for each setting that the runs differ in."""
    from diffcse_scale.evaluation.summary import print_summary_of

    print_summary_of(runs)


@app.command()
def evaluate(
    model: Annotated[
        list[str], typer.Option(help="a run, or a sentence-transformers or transformers folder; several: repeat it")
    ],
    data: Annotated[
        str | None, typer.Option(help="folder with sts/ and transfer/, a suite's own, a file of graded pairs, or 'hub'")
    ] = None,
    suite: Annotated[
        list[str] | None, typer.Option(help="sts, transfer, geometry or mteb:TASK,TASK; several: repeat it  [sts]")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="also write the results here")] = None,
    pooling: Annotated[str | None, typer.Option(help=either(get_args(Pooling)))] = None,
    max_length: Annotated[int | None, typer.Option(min=3, help="tokens a sentence")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 128,
    devices: Annotated[str | None, typer.Option(help="a process on each, as cuda:0,cuda:1 or cpu,cpu")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the file of --json whatever it is")] = False,
) -> None:
    """Similarity, transfer, geometry and MTEB tasks, with intervals; several models side by side."""
    from diffcse_scale.evaluation.command import evaluate_models

    evaluate_models(model, data, suite or ("sts",), json, pooling, max_length, batch_size, devices, overwrite)


@app.command()
def export(
    model: Annotated[Path, typer.Option(help="a run, or a sentence-transformers folder")],
    output: Annotated[Path, typer.Option(help="the new folder; the files of an earlier export there are replaced")],
    normalize: Annotated[bool, typer.Option("--normalize", help="vectors of length 1")] = False,
    with_projection: Annotated[
        bool, typer.Option("--with-projection", help="vectors are z, after the projection that training used")
    ] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="also onnx/model.onnx, in float32")] = False,
    onnx_int8: Annotated[bool, typer.Option("--onnx-int8", help="and onnx/model_qint8.onnx")] = False,
    max_length: Annotated[int | None, typer.Option(min=3, help="tokens a sentence")] = None,
    push_to_hub: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="upload it there as well")] = None,
    private: Annotated[bool, typer.Option("--private", help="a repository that is made is private")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace the files of another model there too; other files stay")
    ] = False,
) -> None:
    """A model as a folder of its own, with its card: for sentence-transformers, transformers, ONNX, the Hub."""
    model_folder(model)

    from diffcse_scale.export.command import ExportOptions, export_model

    options = ExportOptions(normalize, with_projection, onnx, onnx_int8, max_length, push_to_hub, private, overwrite)
    export_model(model, output, options)


@app.command()
def plan(
    recipe: Annotated[str, typer.Option(help="a shipped recipe or a .yaml file")] = "quickstart",
    deepspeed_config: Annotated[
        Path | None, typer.Option("--deepspeed_config", help="a shipped one, as zero3, or a .json file  [zero2]")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="section.field=value", help="changes to the recipe")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="machines")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="devices of a machine")] = 1,
    gpu_memory: Annotated[float, typer.Option(min=0.1, max=1e6, help="GiB of a device")] = 80.0,
    cpu: Annotated[bool, typer.Option("--cpu", help="the devices are ranks on CPUs")] = False,
    json: Annotated[Path | None, typer.Option(help="also write the plan here, in bytes")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the file of --json whatever it is")] = False,
) -> None:
    """Before a run is queued: will it fit, with what sizes and ZeRO stage, and what does it send?"""
    load_recipe(recipe, overrides or ())
    load_deepspeed_config(deepspeed_config)

    from diffcse_scale.planning.command import plan as make_plan

    make_plan(recipe, deepspeed_config, overrides or (), nodes, gpus_per_node, gpu_memory, cpu, json, overwrite)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run folders, finished or not")],
    output: Annotated[Path, typer.Option(help="the page")] = Path("report.html"),
    data: Annotated[
        str | None, typer.Option(help="the development set, instead of the recipes' (as evaluation.data)")
    ] = None,
    sentences: Annotated[
        Path | None, typer.Option(help="text file of sentences to look at, instead of some of the development set")
    ] = None,
    models: Annotated[bool, typer.Option(help="ask the models too, for similarities, neighbours and edits")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the page whatever file it is")] = False,
) -> None:
    """One self-contained HTML page about runs: curves, results, similarities before and after, replaced tokens."""
    from diffcse_scale.runs.read import read_runs

    read_runs(runs)

    from diffcse_scale.report import report as write_report
    from diffcse_scale.training.console import setup_logging

    setup_logging()
    print(f"report: {write_report(runs, output, data, sentences, models, overwrite)}")


benchmark = typer.Typer(no_args_is_help=True, help="Measure speed on this machine: of the kernels, and of the step.")
app.add_typer(benchmark, name="benchmark")


# of `python -m diffcse_kernels.benchmark`, which imports torch before it can say so itself
KernelsCommand = Literal["info-nce", "replaced-token-bce", "sample-tokens", "all", "crossovers", "plot"]


@benchmark.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
)
def kernels(
    context: typer.Context,
    command: Annotated[KernelsCommand, typer.Argument(help="what to measure or draw; COMMAND --help has its options")],
) -> None:
    """Time, memory and error of the kernels, by `python -m diffcse_kernels.benchmark`."""
    from diffcse_kernels.benchmark import main

    main([command, *context.args])


def pretrain_generator(context: typer.Context, **_: Any) -> None:
    """Train a masked language model on raw text, to serve as generator (and encoder) of your language or domain."""
    from diffcse_scale.text.sources import check_names

    options = _options(context, PretrainOptions)
    check_names(options.data())

    from diffcse_scale.foundation.output import outlive_readers
    from diffcse_scale.generator.pretraining import pretrain_generator

    outlive_readers()
    record = pretrain_generator(options)
    before, after = record["held_out_before"], record["held_out_after"]
    print(f"held-out masked tokens predicted: {before['accuracy']:.1%} before, {after['accuracy']:.1%} after")
    print(f"model: {options.output}")


Options = TypeVar("Options", bound=BaseModel)


def _options(context: typer.Context, schema: type[Options]) -> Options:
    """The options that were given on the command line.

    Raises:
        InputError: values that do not fit.
    """
    given = {
        name: value
        for name, value in context.params.items()
        if (source := context.get_parameter_source(name)) is not None and source.name == "COMMANDLINE"
    }
    try:
        return schema(**given)
    except ValidationError as error:
        raise InputError(f"{explained(error, schema)}.") from None


def _with_options_of(command: Callable[..., None], options: type[BaseModel]) -> Callable[..., None]:
    """`command` with a command line option for every field of a pydantic model, its description as help."""
    parameters = [inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)]
    for name, field in options.model_fields.items():
        flag = [f"--{field.alias}"] if field.alias else []
        option = Annotated[field.annotation, typer.Option(*flag, help=field.description)]  # type: ignore[name-defined]
        default = inspect.Parameter.empty if field.is_required() else field.default
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=option))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


app.command()(_with_options_of(pretrain_generator, PretrainOptions))


def encode(context: typer.Context, **_: Any) -> None:
    """Embeddings of any amount of text, in Parquet or .npy shards; the same command goes on after an interruption."""
    from diffcse_scale.text.sources import check_names

    options = _options(context, EncodeOptions)
    model_folder(options.model)
    check_pooling(options.pooling)
    check_names(DataRecipe(files=options.input, separator=options.separator, header=options.header))

    from diffcse_scale.encoding.pipeline import encode
    from diffcse_scale.encoding.prompt import answer

    print(encode(options))
    if options.search:
        answer(options.output, [])


app.command()(_with_options_of(encode, EncodeOptions))


def doctor(context: typer.Context, **_: Any) -> None:
    """What this machine, or each node of a SLURM job, has for training; what follows, and what to do."""
    options = _options(context, DoctorOptions)

    from diffcse_scale.doctor.command import examine

    sys.exit(examine(options))


app.command()(_with_options_of(doctor, DoctorOptions))


@app.command()
def search(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="what `encode` wrote")],
    queries: Annotated[
        list[str] | None, typer.Argument(metavar="QUERY...", help="read from the terminal or a pipe if absent")
    ] = None,
    model: Annotated[str | None, typer.Option(help="the model that encoded it, if it has moved since")] = None,
    index: Annotated[str, typer.Option(help="exact, or faiss's hnsw or ivf, kept in the folder")] = "exact",
    top: Annotated[int, typer.Option(min=1, help="rows to show for a query")] = 10,
    prompt_name: Annotated[str | None, typer.Option(help="one of the model's prompts, for the queries")] = None,
) -> None:
    """The rows nearest to queries (cosine), out of a folder of embeddings."""
    from diffcse_scale.encoding.folder import load
    from diffcse_scale.encoding.search import check_index

    check_index(index)
    load(folder)

    from diffcse_scale.encoding.prompt import answer

    answer(folder, queries or [], model, index, top, prompt_name)


@benchmark.command()
def step(
    implementation: Annotated[
        list[str] | None, typer.Option(help="diffcse-scale, official, sentence-transformers; several: repeat it")
    ] = None,
    backbone: Annotated[
        list[str] | None, typer.Option(help="bert-base, bert-large, bert-small, or a model  [bert-base]")
    ] = None,
    sentences: Annotated[list[int] | None, typer.Option(min=2, help="the global batch  [64]")] = None,
    length: Annotated[list[int] | None, typer.Option(min=3, help="tokens a sentence  [32]")] = None,
    precision: Annotated[list[str] | None, typer.Option(help="fp32 or bf16  [fp32]")] = None,
    chunk: Annotated[list[int] | None, typer.Option(min=0, help="sentences alive at once; 0: all  [0]")] = None,
    generator_precision: Annotated[str, typer.Option(help="fp32 or bf16")] = "fp32",
    text: Annotated[Path | None, typer.Option(help="a corpus instead of sentences that are all of one length")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="of the text")] = None,
    ranks: Annotated[int, typer.Option(min=1, help="processes on this machine")] = 1,
    zero_stage: Annotated[int, typer.Option(min=0, max=3, help="of ours")] = 2,
    compiled: Annotated[bool, typer.Option("--compile", help="ours through torch.compile")] = False,
    steps: Annotated[int, typer.Option(min=1, help="measured, after one that warms up")] = 5,
    json: Annotated[Path | None, typer.Option(help="also append rows here")] = None,
    profile: Annotated[Path | None, typer.Option(help="write a Chrome trace of one step here")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace the file of --profile whatever it is")
    ] = False,
) -> None:
    """Time a training step by phase, for every combination of what is repeated."""
    from diffcse_scale.benchmark.grid import OURS, grid

    cells = grid(
        implementation or [OURS],
        backbone or ["bert-base"],
        sentences or [64],
        length or [32],
        precision or ["fp32"],
        chunk or [0],
        generator_precision=generator_precision,
        text=None if text is None else str(text),
        tokenizer=tokenizer,
        ranks=ranks,
        zero_stage=zero_stage,
        compiled=compiled,
    )

    from diffcse_scale.benchmark.command import benchmark_step

    benchmark_step(cells, steps, json, profile, overwrite)


def main() -> None:
    """Entry point: a user's mistake is one sentence and exit code 2."""
    sys.exit(run_command(app))
