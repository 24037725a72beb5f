"""The command line of train.py."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from diffcse_scale.engine.config_file import load_deepspeed_config, named, shipped_configs
from diffcse_scale.foundation.command_ending import refuse_empty
from diffcse_scale.foundation.errors import InputError, brief
from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.foundation.launched import check_launched, speaks
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.text.cache import cache_folder

# seconds that a rank may be silent: one that waits for its turn may take so long; timers hold no more than some years
SHORTEST, LONGEST = 1.0, 1e7


def parse_arguments(description: str | None, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What was asked for, by default of this process; a mistake in it ends the process.

    Returns:
        `recipe` and `deepspeed_config` read, `called` what messages call the latter, `start` a `runs.directory.Start`,
        `hook` the list of names.
    """
    try:
        check_launched()
        refuse_empty(sys.argv[1:] if arguments is None else arguments)
        found = _parser(description).parse_intermixed_args(arguments)
        if not SHORTEST <= found.hang_timeout <= LONGEST:
            raise InputError(
                f"--hang-timeout is {found.hang_timeout}; give seconds, from {SHORTEST:.0f} to {LONGEST:.0f}."
            )
        found.recipe = load_recipe(found.recipe, found.overrides)
        found.called = named(found.deepspeed_config)
        cache_folder(found.recipe.data)
        found.deepspeed_config = load_deepspeed_config(found.deepspeed_config)
    except InputError as error:
        if speaks():
            print(f"error: {error}", file=sys.stderr)
        else:
            time.sleep(3)  # every process sees it, and the launcher ends the others when the first leaves
        sys.exit(ExitCode.MISTAKE)
    return found


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{brief(message, 300)}; see --help.")


def _parser(description: str | None) -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    # a shortened --output would be another folder than the one that a job script looks into
    parser = _Parser(prog="train.py", description=description, formatter_class=layout, allow_abbrev=False)
    parser.add_argument("--recipe", default="quickstart", help="a shipped recipe or a .yaml file (default: quickstart)")
    configs = f"a shipped DeepSpeed configuration ({', '.join(shipped_configs())}) or a .json file (default: zero2)"
    parser.add_argument("--deepspeed_config", default=None, help=configs)
    parser.add_argument("--output", default=None, help="run folder (default: runs/<recipe name>)")
    start = parser.add_mutually_exclusive_group()
    start.set_defaults(start="new")
    for option, value, text in (
        ("--resume", "resume", "continue the run in the output folder"),
        ("--auto-resume", "auto", "begin the run in the output folder, or continue it if it is there"),
        ("--replay", "replay", "compute the step again at which the run stopped for numbers that are not finite"),
    ):
        start.add_argument(option, dest="start", action="store_const", const=value, help=text)
    parser.add_argument(
        "--hook",
        action="append",
        default=[],
        metavar="package.module:Class",
        help="a subclass of diffcse_scale.training.Hook that is called while the run trains; several: repeat it",
    )
    parser.add_argument(
        "--hang-timeout", type=float, default=600.0, help="seconds after which a silent rank is lost (default: 600)"
    )
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the launcher passes it
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="changes to the recipe")
    return parser
