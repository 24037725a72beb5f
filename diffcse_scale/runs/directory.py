"""The folder of one run: who may write there, and its record and status. `foundation/run_files.py` names its files."""

from __future__ import annotations

import itertools
import logging
import sys
from pathlib import Path
from typing import Any, Literal

import psutil
import yaml

from diffcse_scale.checkpoints.manifest import LATEST, newest_step
from diffcse_scale.distributed import barrier, broadcast_object, is_main
from diffcse_scale.foundation.durable import make_folder, unfinished, write_durably
from diffcse_scale.foundation.environment import environment
from diffcse_scale.foundation.errors import (
    InputError,
    PeerFailed,
    RunEnded,
    exit_code_of,
    remedy,
    system_reason,
)
from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.foundation.objects import read_object, read_yaml_object
from diffcse_scale.foundation.paths import given_path
from diffcse_scale.foundation.recorded_recipe import check_recipe, digest_of
from diffcse_scale.foundation.run_files import (
    BEST,
    CHECKPOINTS,
    CURVES,
    HANG,
    INCARNATIONS,
    LOCK,
    METRICS,
    MODEL,
    RECIPE,
    RECORD,
    REQUEUES,
    RESULT,
    STATUS,
    STOP,
)
from diffcse_scale.foundation.secrets import masked_command
from diffcse_scale.foundation.strict_json import to_json
from diffcse_scale.model.starting_point import left_out
from diffcse_scale.recipe import Recipe, unsaid
from diffcse_scale.recipe_file import few
from diffcse_scale.rendezvous import lost_a_peer
from diffcse_scale.runs.claim import FolderInUse, SignsOfLife, claim
from diffcse_scale.runs.extension import LENGTH, check_extension, extend, from_its_model
from diffcse_scale.runs.failures import first_of_all, in_words
from diffcse_scale.runs.incarnation import Incarnation, Ownership, incarnations
from diffcse_scale.runs.metrics_file import MetricsFile
from diffcse_scale.runs.records import Record
from diffcse_scale.runs.status import ENDED, StatusFile

log = logging.getLogger(__name__)

# fields that may change on resume: they do not affect the result, or no more than the number of devices does
FREE_TO_CHANGE = (
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "checkpoint_background",
    "max_skipped_steps",
    "data.workers",
    "data.cache_dir",
    "batch.exchange",
)

# fields that name a place, which may change too: only the content counts, and the record has its fingerprint
PLACES = ("data.files", "evaluation.data", "model.encoder", "model.discriminator", "model.generator")
CONTENTS = ("data_fingerprint", "development_fingerprint", "models_fingerprint")

# files left by a start that did not get as far as writing recipe.yaml; status.tmp is from an earlier version
TRACES = (LOCK, REQUEUES, INCARNATIONS, STATUS, "status.tmp", STOP, HANG, RECORD)

# new: a new run; dry: a new run that writes nothing; resume: continue the existing run; auto: new or resume, as needed;
# replay: use the existing run without continuing it
Start = Literal["new", "dry", "resume", "auto", "replay"]
NEW: tuple[Start, ...] = ("new", "dry")


class RunDirectory:
    """The paths of a run's folder. `open` refuses to touch another run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / CHECKPOINTS
        self.model = path / MODEL
        self.curves = path / CURVES
        self.stop_file = path / STOP
        self.metrics = MetricsFile(path / METRICS)
        self.status = StatusFile(None)
        self.begun = False  # whether there is something to resume
        self.extended = False  # whether this start gives the run more steps than it had
        self.is_trial = False  # whether nothing may be written: a dry run, or a replay except for its findings
        self.ownership: Ownership | None = None  # None for a replay; on the main rank it holds the lock
        self._signs: SignsOfLife | None = None
        self._before: dict[str, Any] = {}  # the status that a run to resume had; on the main rank
        self._is_refused = False  # whether the run turned out to be another one, and is as it was

    @property
    def hang(self) -> Path | None:
        """The folder for the stacks of a hanging run; None if nothing may be written."""
        return None if self.is_trial else self.path / HANG

    def best(self, step: int) -> Path:
        """The folder of the encoder that was the best after `step`."""
        return self.path / BEST / f"step-{step:08d}"

    @classmethod
    def open(cls, path: str | None, recipe: Recipe, start: Start) -> RunDirectory:
        """Create the folder of a new run, or find the folder of a run to resume. Called on every rank.

        Args:
            path: None means `runs/<recipe name>`, numbered if another run has that folder.

        Raises:
            InputError: the folder has a run and `start` is "new"; it has none and `start` is "resume"; its run has
                another recipe (the message names what differs); or another process writes there.
            RunEnded: the run has finished and `start` is "auto".
        """
        answer: Any = None
        run: RunDirectory | None = None
        if is_main():
            try:
                run = _open(path, recipe, start)
                owner = run.ownership and run.ownership.incarnation
                answer = str(run.path), run.begun, run.extended, run.is_trial, owner
            except (InputError, RunEnded) as error:
                answer = error
            except OSError as error:
                folder = path or f"runs/{recipe.name}"
                why = f"{system_reason(error)}; {remedy(error)}"
                answer = InputError(f"Output folder {folder} cannot be read or written: {why}.")
        answer = broadcast_object(answer)  # one rank looks, and all ranks fail together
        if isinstance(answer, InputError | RunEnded):
            raise answer
        if run is None:
            run = cls(Path(answer[0]))
            run.begun, run.extended, run.is_trial, incarnation = answer[1:]
            run.ownership = Ownership(run.path / INCARNATIONS, incarnation) if incarnation else None
        return run

    def owned(self) -> bool:
        """Whether no later incarnation has taken the run over.

        Raises:
            OSError: the folder cannot be read, so it is not known.
        """
        return self.ownership is None or self.ownership.lasts()

    def check_owned(self) -> None:
        """Check that the run is still owned. Called on every rank.

        Raises:
            RunEnded: a later incarnation has taken the run over.
        """
        if not broadcast_object(self.owned() if is_main() else None):
            raise RunEnded(f"A later incarnation has taken over {self.path}.", ExitCode.SUPERSEDED)

    def __enter__(self) -> RunDirectory:
        if is_main() and self.ownership is not None:
            self._signs = SignsOfLife(self.path, self.ownership).__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        """If the run ended early, write how and why to `status.json`, with the message of the first rank that failed.

        Raises:
            PeerFailed: replaces an error that only says that another rank is gone.
        """
        if self._signs is not None:
            self._signs.__exit__()
        if error is None:
            return
        code = ExitCode.LOST if lost_a_peer(error) else exit_code_of(error)
        if code.state == "failed":
            own = in_words(error)
            message, code = first_of_all(own, code, self.path / STATUS)
            told_here = error.told_here if isinstance(error, PeerFailed) and message == own else is_main()
            if told_here or (message == own and not isinstance(error, PeerFailed)):
                self.failed(message, code)
            if lost_a_peer(error) or isinstance(error, PeerFailed):
                raise PeerFailed(message, code, told_here) from None
        elif code.state == "stopped" and is_main():  # every rank ends in this state
            self.status.update(now=True, state=code.state, message=str(error), exit_code=code)

    def failed(self, message: str, exit_code: ExitCode) -> None:
        """Write `status.json`; any rank may, as the main rank may be what failed. A refused run keeps what it had."""
        if self.is_trial or (self._is_refused and not is_main()):
            return
        if self._is_refused and self._before.get("state") in ENDED:
            return self.status.update(now=True, **self._before)
        status = self.status if is_main() else StatusFile.found(self.path / STATUS, self.owned)
        status.update(now=True, state=exit_code.state, message=message.splitlines()[0], exit_code=exit_code)

    def describe(self, recipe: Recipe, **facts: Any) -> None:
        """Write `recipe.yaml` and `run.json`; from now on the folder contains a run. Called on every rank.

        A resumed run may have another number of devices or ZeRO stage, so its facts are appended to the first ones.

        Raises:
            InputError: on resume, the corpus, the development set, the models or the precision differ from the run's.
            RunEnded: a later incarnation has taken the run over.
        """
        record = self.path / RECORD
        unused = left_out(recipe) if is_main() else []
        written = {"command": masked_command(sys.argv), **facts, "left_out": unused, "environment": environment()}
        if self.is_trial:
            return
        self.check_owned()
        if self.begun:
            begun, self._is_refused = read_object(record, Record), True
            _check_earlier(self.path, begun, facts)
            for name in (*CONTENTS, "precision"):
                if name in begun and begun[name] != facts[name]:
                    earlier = _left_out_earlier(begun, facts) if name == "data_fingerprint" else ""
                    raise InputError(
                        f"{self.path} cannot be resumed: its {name.replace('_', ' ')} was {begun.get(name)}, now it is "
                        f"{facts[name]}{earlier}; restore it or give another --output."
                    )
            self._is_refused = False
            written = {**begun, "resumed": [*begun.get("resumed", []), written]}
        if is_main():
            text = None
            if self.extended:
                text, written = extend(self.path, recipe, written)
            elif not self.begun:
                text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
                written |= digest_of(text)
            write_durably(to_json(written, indent=1), record)
            if text is not None:
                write_durably(text, self.path / RECIPE)
        barrier()

    def finish(self, **result: Any) -> None:
        """Write `result.json`, which marks a finished run, after all else is on the disk; only if the run is owned."""
        self.metrics.sync()
        if not self.owned():
            return
        write_durably(to_json(result, indent=1), self.path / RESULT)
        self.status.update(now=True, state=ExitCode.FINISHED.state, seconds_left=0, exit_code=ExitCode.FINISHED)


def _open(path: str | None, recipe: Recipe, start: Start) -> RunDirectory:
    if path is not None or start not in NEW:
        return _claim(given_path(path or f"runs/{recipe.name}"), recipe, start)
    for number in itertools.count(1):
        folder = Path(f"runs/{recipe.name}" if number == 1 else f"runs/{recipe.name}-{number}")
        if not _occupied(folder):
            try:
                return _claim(folder, recipe, start)
            except FolderInUse:
                continue
    raise AssertionError("unreachable")


def _claim(folder: Path, recipe: Recipe, start: Start) -> RunDirectory:
    saved = folder / RECIPE
    begun = saved.is_file()
    if start in ("resume", "replay") and not begun:
        raise InputError(f"There is no run to {start} in {folder}; give its folder with --output.")
    if start == "replay":
        run = RunDirectory(folder)
        run.begun = run.is_trial = True
        return run
    extended = False
    if begun:
        extended = _other_length(recipe, saved)
        if start in NEW:
            raise InputError(
                f"{folder} holds a run of this recipe; continue it with --resume or give another --output."
            )
        if (folder / RESULT).is_file() and not extended:
            message = f"The run in {folder} has finished; its model is in {folder / MODEL}"
            if start == "auto":
                raise RunEnded(f"{message}.", ExitCode.FINISHED)
            more = "a larger max_steps or epochs extends it" if recipe.optimizer.open_ended else from_its_model(folder)
            raise InputError(f"{message}; {more}.")
        _check_checkpoints(folder)
    elif _occupied(folder):
        raise InputError(f"{folder} exists and is not a run of this program; give another --output.")
    if start == "dry":
        run = RunDirectory(folder)
        run.is_trial = True
        return run
    now = Incarnation(step=newest_step(folder / CHECKPOINTS))
    history = incarnations(folder / INCARNATIONS)
    run = RunDirectory(folder)
    run.begun, run.extended = begun, extended
    make_folder(folder)
    run.ownership = claim(folder, now)
    run.metrics = MetricsFile(run.metrics.path, run.ownership.lasts)
    if run.stop_file.exists() and run.stop_file.stat().st_mtime < psutil.Process().create_time():
        run.stop_file.unlink()  # it was meant for an earlier process
    run._before = StatusFile.found(folder / STATUS).facts
    kept = {name: value for name, value in run._before.items() if name in ("steps", "last_checkpoint")}
    facts = {"job": now.job, "restarts": len(history) if begun else 0, "step": now.step, "incarnation": now.token}
    run.status = StatusFile(folder / STATUS, run.ownership.lasts, state="preparing", **kept, **facts)
    run.status.update(now=True)
    return run


def _check_checkpoints(folder: Path) -> None:
    """Refuse a run that has lost its checkpoints, because it would silently train from the start again.

    Raises:
        InputError: names what must be restored.
    """
    place = folder / CHECKPOINTS / LATEST
    metrics = folder / METRICS
    if not place.is_file() and metrics.is_file() and metrics.stat().st_size:
        raise InputError(
            f"{folder} has been trained, but {place} is missing; restore its folder, or give another --output."
        )


def _occupied(folder: Path) -> bool:
    """Whether `folder` is in use. The traces of a start that failed because of a mistake do not count."""
    if not folder.is_dir():
        return folder.exists() and not folder.is_dir()  # again, because another start may have made it just now
    names = [entry.name for entry in folder.iterdir()]
    # every start first writes its line into incarnations.jsonl, also one that is just beginning; without that line a
    # run.json belongs to another program
    begun = bool(incarnations(folder / INCARNATIONS))
    free = TRACES if begun else (LOCK, STOP, REQUEUES, INCARNATIONS)
    return any(name not in free and not (begun and unfinished(name) in (*TRACES, RECIPE)) for name in names)


def _by_content(begun: dict[str, Any]) -> bool:
    """Whether a run's record has fingerprints of the content it read, and not only its paths, sizes and times."""
    return all(name in begun for name in CONTENTS)


def _check_earlier(folder: Path, begun: dict[str, Any], facts: dict[str, Any]) -> None:
    """Adapt the record of a run of an earlier version, which kept rows with the same tokens in its corpus.

    Raises:
        InputError: the corpus has such rows, so the batches would change.
    """
    if _by_content(begun):
        return
    if equal := facts.get("corpus", {}).get("equal"):
        raise InputError(
            f"{folder} was begun by an earlier version, which kept {equal:,} sentences with the same tokens as "
            "another; finish it with that version or give another --output."
        )
    log.warning("%s was begun by an earlier version, so it is not known whether its corpus has changed.", folder)
    begun |= {name: facts[name] for name in CONTENTS if name in facts}


def _left_out_earlier(begun: dict[str, Any], facts: dict[str, Any]) -> str:
    """Words for a corpus that now has fewer undecodable rows than when the run began; else empty."""
    before, now = (about.get("corpus", {}).get("cleaning", {}).get("undecodable", 0) for about in (begun, facts))
    if before <= now:
        return ""
    return (
        f", without {before - now:,} of the rows that were left out as undecodable (an earlier version left out those "
        "with U+FFFD, and can finish it)"
    )


def _other_length(recipe: Recipe, saved: Path) -> bool:
    """Whether the run's recipe differs in its length. Allowed differences are logged.

    Raises:
        InputError: it differs in a field that must not change, or in its length although the schedule forbids that.
    """
    record = saved.with_name(RECORD)
    by_content = record.is_file() and _by_content(read_object(record, Record))
    free = (*FREE_TO_CHANGE, *(PLACES if by_content else ()))
    check_recipe(saved.parent)
    begun = read_yaml_object(saved)
    if lost := recipe.lost(begun):
        raise InputError(f"{saved} is incomplete: {lost[0]} is missing; restore it.")
    changed = {line.split(":")[0]: line for line in recipe.differences(begun)}
    differences = [line for field, line in changed.items() if field not in free]
    earlier = {field: value for field, value in unsaid(begun).items() if field in changed}
    if earlier and (saved.parent / RESULT).is_file() and not changed.keys() - {*free, *earlier}:
        return False  # the run has already finished with the values that it began with
    if earlier and not changed.keys() - {*free, *LENGTH, *earlier}:
        raise InputError(
            f"{saved.parent} was begun by an earlier version; to continue it as it began, add "
            f"{' '.join(f'{key}={value}' for key, value in earlier.items())}, or leave --recipe out."
        )
    if changed.keys() - {*free, *LENGTH}:
        raise InputError(
            f"{saved.parent} holds a run of another recipe, which stays as it is; give another --output "
            f"(this recipe has {few(differences)})."
        )
    if differences:
        check_extension(saved.parent, recipe)
    if changed:
        log.info("Changed since %s was begun: %s.", saved.parent, few(list(changed.values())))
    return bool(differences)
