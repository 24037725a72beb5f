"""Commands about a machine: `doctor` and `benchmark`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from diffcse_scale.cli.schema_options import options_of, with_options_of
from diffcse_scale.doctor.doctor_options import DoctorOptions

commands = typer.Typer()
benchmark = typer.Typer(
    no_args_is_help=True, help="Measure the speed of the kernels or of a training step on this machine."
)
commands.add_typer(benchmark, name="benchmark")

# commands of `python -m diffcse_kernels.benchmark`, listed here because that module imports torch
KernelsCommand = Literal[
    "info-nce", "replaced-token-bce", "sample-tokens", "sigmoid-loss", "info-nce-cold", "all", "crossovers", "plot"
]


@benchmark.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
)
def kernels(
    context: typer.Context,
    command: Annotated[
        KernelsCommand, typer.Argument(help="What to measure or draw. COMMAND --help shows its options.")
    ],
) -> None:
    """Measure time, memory and error of the kernels. The same as `python -m diffcse_kernels.benchmark`."""
    from diffcse_kernels.benchmark import main

    main([command, *context.args])


@benchmark.command()
def step(
    implementation: Annotated[
        list[str] | None,
        typer.Option(help="diffcse-scale, official or sentence-transformers (default: diffcse-scale). Repeatable."),
    ] = None,
    backbone: Annotated[
        list[str] | None,
        typer.Option(help="bert-base, bert-large, bert-small, or a model (default: bert-base). Repeatable."),
    ] = None,
    sentences: Annotated[list[int] | None, typer.Option(min=2, help="Global batch (default: 64). Repeatable.")] = None,
    length: Annotated[
        list[int] | None, typer.Option(min=3, help="Tokens per sentence (default: 32). Repeatable.")
    ] = None,
    precision: Annotated[list[str] | None, typer.Option(help="fp32 or bf16 (default: fp32). Repeatable.")] = None,
    chunk: Annotated[
        list[int] | None,
        typer.Option(
            min=0, help="Sentences whose activations are in memory at once; 0 is all (default: 0). Repeatable."
        ),
    ] = None,
    generator_precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    text: Annotated[Path | None, typer.Option(help="Use this corpus instead of sentences of one length.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Tokenizer of the corpus.")] = None,
    ranks: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    zero_stage: Annotated[int, typer.Option(min=0, max=3, help="ZeRO stage of diffcse-scale.")] = 2,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile diffcse-scale with torch.compile.")] = False,
    steps: Annotated[int, typer.Option(min=1, help="Steps to measure, after one warm-up step.")] = 5,
    json: Annotated[Path | None, typer.Option(help="Also append the rows to this file.")] = None,
    profile: Annotated[Path | None, typer.Option(help="Write a Chrome trace of one step to this file.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file of --profile, whatever it is.")
    ] = False,
) -> None:
    """Time the phases of a training step, for every combination of the options that are repeated."""
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


@commands.command()
@with_options_of(DoctorOptions)
def doctor(context: typer.Context, **_: Any) -> None:
    """Check what this machine, or each node of a SLURM job, offers for training, and say what to do."""
    options = options_of(context, DoctorOptions)

    from diffcse_scale.doctor.command import examine

    sys.exit(examine(options))
