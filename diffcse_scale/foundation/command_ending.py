"""How a command of `diffcse-scale` ends: with one sentence after a user's mistake, with a traceback after a bug."""

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

# raised for an invalid command line; the class comes from click, and its name depends on typer's version
UsageError: type[Exception] = typer.BadParameter.__bases__[0]
INTERRUPTED, PIPE_CLOSED = map(exit_code_after, (signal.SIGINT, signal.SIGPIPE))


def run_command(app: typer.Typer) -> int:
    """Run the command in `sys.argv`, and print an error message if it fails.

    Returns:
        The exit code from `exit_code_of`; 130 after Ctrl-C, 128 + the signal's number after another request to stop,
        141 if the reader of its output has gone.
    """
    heard: list[int] = []
    # a pool whose workers were ended by the same signal may wait for them forever
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
            # after a request to stop, errors of libraries are only its consequences and are not reported
            if not heard and not isinstance(error, KeyboardInterrupt):
                return _ended_by(error)
        finally:
            deaf.cancel()
        end_workers()
    return _stopped_by(heard[0] if heard else signal.SIGINT)


def _stopped_by(number: int) -> int:
    """Print which signal stopped the program, and return the exit code."""
    name = signal.Signals(number).name.removeprefix("SIG")
    print("Interrupted." if number == signal.SIGINT else f"Stopped by signal {name}.", file=sys.stderr, flush=True)
    return exit_code_after(number)


def _run(app: typer.Typer) -> int:
    try:
        refuse_empty(sys.argv[1:])
        code = app(standalone_mode=False)
    except UsageError as error:
        if not error.format_message():  # type: ignore[attr-defined]
            return ExitCode.MISTAKE  # no command was given, and the help has been printed
        raise InputError(_usage(error)) from None
    finally:
        sys.stdout.flush()
    return code if isinstance(code, int) else 0


def _ended_by(error: BaseException) -> int:
    """Print a message for `error`, and return the exit code.

    Raises:
        SystemExit: `error` is one, and carries the exit code itself.
    """
    if isinstance(error.__context__ if isinstance(error, SystemExit) else error, BrokenPipeError):
        # the reader (such as `head`) has gone; without this Python would complain again when it closes the pipe
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
    """Refuse empty option values such as `--output "$UNSET"`, which would mean the working directory.

    Raises:
        InputError: an option has an empty value.
    """
    for option, value in itertools.pairwise([*arguments, "-"]):
        if option == "--":
            return
        if option.startswith("--") and (value == "" or option.endswith("=")):
            raise InputError(f"{option.rstrip('=')} is empty; give it a value, or leave it out.")


def _usage(error: Exception) -> str:
    """What is wrong with a command line, and how to get its help."""
    context = getattr(error, "ctx", None)
    path = "diffcse-scale" if context is None else context.command_path
    message = " ".join(error.format_message().split()).rstrip(".")  # type: ignore[attr-defined]
    return f"{message}; see `{path} --help`."
