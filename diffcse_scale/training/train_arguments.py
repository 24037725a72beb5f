"""The command line of train.py."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from diffcse_scale.engine.config_file import load_deepspeed_config, named, shipped_configs
from diffcse_scale.foundation.command_ending import refuse_empty
from diffcse_scale.foundation.errors import InputError, brief, either
from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.foundation.launched import check_launched, launched_rank, speaks
from diffcse_scale.foundation.paths import given_path
from diffcse_scale.foundation.recorded_recipe import check_recipe
from diffcse_scale.foundation.run_files import RECIPE
from diffcse_scale.model_folder.layout import check_models
from diffcse_scale.recipe import Recipe
from diffcse_scale.recipe_file import load_recipe, load_recorded, shipped_recipes
from diffcse_scale.text.cache import cache_folder
from diffcse_scale.training.publishing import check_publishing
from diffcse_scale.training.trackers import TRACKERS, check_trackers

# seconds that a rank may be silent: waiting for its turn may take it SHORTEST, and timers hold only a few years
SHORTEST, LONGEST = 1.0, 1e7
EXAMPLE = "quickstart"  # the default recipe
# options that take the name of a shipped file
SHIPPED: dict[str, Callable[[], Iterable[str]]] = {"--recipe": shipped_recipes, "--deepspeed_config": shipped_configs}


def parse_arguments(description: str | None, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse `arguments`, by default this process's command line. A mistake in them ends the process.

    Returns:
        `recipe` and `deepspeed_config` already read, `called` (the configuration's name in messages), `start` (a
        `runs.directory.Start`), and `hook` and `track` as lists of names.
    """
    try:
        check_launched()
        refuse_empty(sys.argv[1:] if arguments is None else arguments)
        found = _parser(description).parse_intermixed_args(arguments)
        if not SHORTEST <= found.hang_timeout <= LONGEST:
            raise InputError(
                f"--hang-timeout is {found.hang_timeout}; give seconds, from {SHORTEST:.0f} to {LONGEST:.0f}."
            )
        found.track = list(dict.fromkeys(name for entry in found.track for name in entry.split(",")))
        if launched_rank() == 0:  # only this rank uses trackers
            check_trackers(found.track)
        check_publishing(found.push_to_hub)
        found.recipe = _recipe(found.recipe, found.overrides, found.output, found.start)
        found.called = named(found.deepspeed_config)
        cache_folder(found.recipe.data)
        found.deepspeed_config = load_deepspeed_config(found.deepspeed_config)
        check_models(found.recipe)
    except InputError as error:
        if speaks():
            print(f"error: {error}", file=sys.stderr)
        else:
            time.sleep(3)  # all ranks fail here; when one exits the launcher ends the rest, so let the other one print
        sys.exit(ExitCode.MISTAKE)
    return found


def _recipe(named: str | None, overrides: Sequence[str], output: str | None, start: str) -> Recipe:
    """The named recipe; else the recipe of the run that is continued; else the example."""
    if named or start in ("new", "dry"):
        return load_recipe(named or EXAMPLE, overrides)
    found = _recipe_of(given_path(output or f"runs/{EXAMPLE}"), overrides)
    if output is None and found.name != EXAMPLE:  # an override has changed the name, and so the folder
        return _recipe_of(Path("runs") / found.name, overrides)
    return found


def _recipe_of(folder: Path, overrides: Sequence[str]) -> Recipe:
    if not (folder / RECIPE).is_file():
        return load_recipe(EXAMPLE, overrides)
    check_recipe(folder)
    return load_recorded(folder / RECIPE, overrides)


def completions(typed: Sequence[str], beginning: str) -> list[tuple[str, str]]:
    """What a shell may complete `beginning` to after the arguments `typed`, with the meaning of each.

    The words are options, or names of shipped files after an option that takes one. Otherwise there are none.
    """
    if typed and typed[-1] in SHIPPED:
        found = dict.fromkeys(SHIPPED[typed[-1]](), "")
    elif beginning.startswith("-"):
        actions = [action for action in _parser(None)._actions if action.help != argparse.SUPPRESS]
        found = {option: action.help or "" for action in actions for option in action.option_strings}
    else:
        found = {}
    return [(word, meaning) for word, meaning in found.items() if word.startswith(beginning)]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{brief(message, 300)}; see --help.")


def _parser(description: str | None) -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    # no abbreviations: job scripts look for --output, and would miss a shortened one and use another folder
    parser = _Parser(prog="train.py", description=description, formatter_class=layout, allow_abbrev=False)
    recipes = f"A shipped recipe or a .yaml file (default: {EXAMPLE}, or the recipe of the run that is continued)."
    parser.add_argument("--recipe", default=None, help=recipes)
    configs = f"A shipped DeepSpeed configuration ({', '.join(shipped_configs())}) or a .json file (default: zero2)."
    parser.add_argument("--deepspeed_config", default=None, help=configs)
    parser.add_argument("--output", default=None, help="Run folder (default: runs/<recipe name>).")
    start = parser.add_mutually_exclusive_group()
    start.set_defaults(start="new")
    for option, value, text in (
        ("--dry-run", "dry", "Check everything, show tokenized and edited rows and the memory of a step, and stop."),
        ("--resume", "resume", "Continue the run in the output folder, with its own recipe."),
        ("--auto-resume", "auto", "Start a run in the output folder, or continue the run that is there."),
        ("--replay", "replay", "Recompute the step at which the run stopped because of NaN or infinity."),
    ):
        start.add_argument(option, dest="start", action="store_const", const=value, help=text)
    parser.add_argument(
        "--hook",
        action="append",
        default=[],
        metavar="package.module:Class",
        help="A subclass of diffcse_scale.training.Hook to call during training. May be given several times.",
    )
    trackers = f"Send metrics, recipe and start table to {either(list(TRACKERS))}, or to several, such as wandb,csv."
    parser.add_argument("--track", action="append", default=[], metavar="TRACKER,...", help=trackers)
    upload = "Upload the model to this Hub repository at the end. A repository that does not exist is created private."
    parser.add_argument("--push-to-hub", default=None, metavar="OWNER/NAME", help=upload)
    parser.add_argument(
        "--hang-timeout",
        type=float,
        default=600.0,
        help="Seconds of silence after which a rank counts as lost (default: 600).",
    )
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the launcher passes it
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="Changes to the recipe.")
    return parser
