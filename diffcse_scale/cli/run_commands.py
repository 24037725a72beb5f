"""Commands about runs: start one, show its progress, summarize and report results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from diffcse_scale.foundation.working import STARTING, Working

commands = typer.Typer()


class _TakesTrainArguments(TyperCommand):
    """A command whose last parameter collects unknown arguments and options. A shell completes both kinds of option."""

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        return [*super().shell_complete(ctx, incomplete), *self.params[-1].shell_complete(ctx, incomplete)]


def _completed(context: typer.Context, beginning: str) -> list[tuple[str, str]]:
    from diffcse_scale.training.train_arguments import completions

    return completions(context.params.get("arguments") or (), beginning)


TrainArguments = Annotated[list[str] | None, typer.Argument(autocompletion=_completed)]


@commands.command(add_help_option=False, cls=_TakesTrainArguments, context_settings={"ignore_unknown_options": True})
def train(
    processes: Annotated[int | None, typer.Option(min=1, help="Ranks on this machine (default: all devices).")] = None,
    arguments: TrainArguments = None,
) -> None:
    """Launch train.py with DeepSpeed. All other arguments go to train.py."""
    from diffcse_scale.training.launcher import launch
    from diffcse_scale.training.train_arguments import parse_arguments

    given = arguments or []
    parse_arguments(f"{train.__doc__}\n\n--processes N: ranks on this machine (default: all devices).", given)
    launch(processes, given)


@commands.command()
def status(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per run instead.")] = False,
) -> None:
    """Show the progress of runs: step, rate, time left, last checkpoint, restarts."""
    from json import dumps

    from diffcse_scale.foundation.output import fitting
    from diffcse_scale.runs.status import read_status, status_line

    for run in runs:
        found = read_status(run)
        print(dumps({"run": str(run), **found}) if json else fitting(f"{run}: {status_line(found)}"))


@commands.command()
def replay(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    processes: Annotated[
        int | None, typer.Option(min=1, help="Ranks on this machine (default: as many as the run had).")
    ] = None,
) -> None:
    """Recompute the step at which a run stopped because of NaN or infinity, and say where they first appear."""
    from diffcse_scale.runs.replay import newest_dump, replay_arguments
    from diffcse_scale.training.launcher import launch

    ranks = newest_dump(run)["ranks"]
    launch(processes or len(ranks), replay_arguments(run))


@commands.command()
def summarize(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of finished runs.")],
    result: Annotated[
        list[str] | None,
        typer.Option(help="A number of result.json to show and to sort by (default: best.dev_spearman). Repeatable."),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Also write all results to this JSON file.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write the table to this CSV file.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the files of --json and --csv, whatever they are.")
    ] = False,
) -> None:
    """Compare runs in one table, the best setting first: means over seeds, with confidence intervals."""
    from diffcse_scale.evaluation.summary import print_summary_of

    print_summary_of(runs, result or (), json, csv, overwrite)


@commands.command(
    cls=_TakesTrainArguments,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
def sweep(
    processes: Annotated[int | None, typer.Option(min=1, help="Ranks per run (default: all devices).")] = None,
    arguments: TrainArguments = None,
) -> None:
    """Train every combination of values, one run after another: `... sweep seed=1,2 -- --recipe mine.yaml`.

    Fields with their values come before the `--`, train.py's arguments after it. --output is the folder of all runs.
    The same command again continues with the runs that are left. On SLURM, slurm/sweep.sbatch takes the same arguments.
    """
    from diffcse_scale.training.sweep import sweep as train_all

    raise typer.Exit(train_all(arguments or [], processes))


@commands.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, finished or not.")],
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    data: Annotated[
        str | None, typer.Option(help="Development set, as evaluation.data (default: the recipes').")
    ] = None,
    sentences: Annotated[
        Path | None, typer.Option(help="Text file of sentences to show (default: some of the development set).")
    ] = None,
    models: Annotated[bool, typer.Option(help="Also load the models, for similarities, neighbours and edits.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page, whatever file it is.")] = False,
) -> None:
    """Write a self-contained HTML page about runs: curves, results, similarities before and after, replaced tokens."""
    from diffcse_scale.runs.read import read_runs

    read_runs(runs)

    with Working(STARTING):
        from diffcse_scale.report import report as write_report
        from diffcse_scale.training.console import setup_logging

    setup_logging()
    print(f"report: {write_report(runs, output, data, sentences, models, overwrite)}")
