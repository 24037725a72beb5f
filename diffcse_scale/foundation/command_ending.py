"""How a command of `diffcse-scale` ends: with one sentence for a user's mistake, with a traceback for a bug."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence

import typer

from diffcse_scale.foundation.errors import InputError, RunEnded, exit_code_of, told
from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.foundation.signals import (
    GRACE,
    TOGETHER,
    Interrupts,
    end_at_once,
    end_workers,
    exit_code_after,
    listening,
)

# what a command line that cannot be read raises; typer has it from click, by one name or another
UsageError: type[Exception] = typer.BadParameter.__bases__[0]
INTERRUPTED, PIPE_CLOSED = map(exit_code_after, (signal.SIGINT, signal.SIGPIPE))


def run_command(app: typer.Typer) -> int:
    """Run the command that `sys.argv` asks for, and print how it ended if it did not end well.

    Returns:
        the exit code: that of `exit_code_of`; 130 after Ctrl-C and 128 + its number after another request to stop, 141
        where the reader of what it prints has gone.
    """
    heard: list[int] = []
    # a pool whose workers have been ended by the same signal may wait for them for ever
    deaf = threading.Timer(GRACE, lambda: end_at_once(_stopped_by(heard[0])))
    deaf.daemon = True

    def stop(number: int, _: object) -> None:
        if not heard:
            heard.append(number)
            deaf.start()
            raise KeyboardInterrupt

    def interrupted(seconds: float) -> None:
        if seconds > TOGETHER:
            end_at_once(INTERRUPTED)

    with listening(stop), Interrupts(interrupted):
        try:
            code = _run(app)
            if code != INTERRUPTED:
                return code
        except BaseException as error:
            # what a library raises over a request, or because the same signal has ended its workers, is no news
            if not heard and not isinstance(error, KeyboardInterrupt):
                return _ended_by(error)
        finally:
            deaf.cancel()
        end_workers()
    return _stopped_by(heard[0] if heard else signal.SIGINT)


def _stopped_by(number: int) -> int:
    """Say so, and return the exit code."""
    name = signal.Signals(number).name.removeprefix("SIG")
    print("Interrupted." if number == signal.SIGINT else f"Stopped by signal {name}.", file=sys.stderr, flush=True)
    return exit_code_after(number)


def _run(app: typer.Typer) -> int:
    try:
        refuse_empty(sys.argv[1:])
        code = app(standalone_mode=False)
    except UsageError as error:
        if not error.format_message():  # type: ignore[attr-defined]
            return ExitCode.MISTAKE  # nothing was asked for, and the help is printed
        raise InputError(_usage(error)) from None
    finally:
        sys.stdout.flush()
    return code if isinstance(code, int) else 0


def _ended_by(error: BaseException) -> int:
    """Print what an end by `error` is, and return its exit code.

    Raises:
        SystemExit: it is that, and says the code itself.
    """
    if isinstance(error.__context__ if isinstance(error, SystemExit) else error, BrokenPipeError):
        # nobody reads on, as `head` does; Python would complain once more when it closes the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    if not isinstance(error, Exception):
        raise error
    if isinstance(error, RunEnded):
        print(error, file=sys.stderr)
    elif (said := told(error)) is not None:
        print(f"error: {said}", file=sys.stderr)
    else:
        traceback.print_exception(error)
        print(
            "This is a bug in diffcse-scale. Please report it with these lines and those of `diffcse-scale doctor`.",
            file=sys.stderr,
        )
    return exit_code_of(error)


def refuse_empty(arguments: Sequence[str]) -> None:
    """See to it that no option is given nothing, as `--output "$UNSET"` does; it would be the working directory.

    Raises:
        InputError: one is.
    """
    for option, value in itertools.pairwise([*arguments, "-"]):
        if option == "--":
            return
        if option.startswith("--") and (value == "" or option.endswith("=")):
            raise InputError(f"{option.rstrip('=')} is empty; give it a value, or leave it out.")


def _usage(error: Exception) -> str:
    """What is wrong with a command line, and where its help is."""
    context = getattr(error, "ctx", None)
    path = "diffcse-scale" if context is None else context.command_path
    message = " ".join(error.format_message().split()).rstrip(".")  # type: ignore[attr-defined]
    return f"{message}; see `{path} --help`."
