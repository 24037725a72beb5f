"""The trackers that `--track` names, each by its own library: DeepSpeed's monitors neither resume nor take texts.

A tracker lives on the main rank, in a thread of its own (`tracking.py`). It is given a number of a step once: what it
has had before a resume it says by `has`. What it keeps lies in the run folder, as far as its library lets it.
"""

from __future__ import annotations

import atexit
import csv
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

from diffcse_scale.foundation.durable import make_folder, replacing
from diffcse_scale.foundation.errors import InputError, either, nearest, quoted
from diffcse_scale.foundation.objects import parse_json
from diffcse_scale.foundation.strict_json import to_json

PROJECT = "diffcse-scale"  # where the tracker's own variable names no other
Numbers = Mapping[str, float]


@dataclass(frozen=True)
class About:
    """What a tracker is told of a run at its beginning.

    Attributes:
        name: of its folder.
        recipe: section.field to value.
        start: the rows of the start table.
        step: steps that are done; what a crash has kept from being saved after it is going to come again.
    """

    name: str
    recipe: Mapping[str, Any]
    start: Mapping[str, str]
    step: int


class Tracker(ABC):
    """Called in this order: `begin`, `add` for the numbers of a step again and again, `end` of a finished run.

    Args:
        folder: its own, in the run folder; it need not be there.
    """

    package: ClassVar[str] = ""  # that is imported; nothing where none is needed

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def begin(self, about: About) -> None:
        """Begin, or go on with what an earlier process has begun."""

    @abstractmethod
    def has(self, name: str, step: int) -> bool:
        """Whether it was given this number before."""

    @abstractmethod
    def add(self, step: int, numbers: Numbers) -> None:
        """Numbers of a step; steps never go back."""

    @abstractmethod
    def end(self, result: Numbers, text: str) -> None:
        """The numbers of result.json, and all of it."""


class Csv(Tracker):
    """`metrics.csv`, a row a row of metrics.jsonl, and `start.csv`: recipe and start table."""

    def begin(self, about: About) -> None:
        """What an earlier process has written is written anew, from metrics.jsonl."""
        make_folder(self.folder)
        self._columns, self._rows = ["step"], self.folder / "metrics.csv"
        with replacing(self._rows) as file:
            file.write("step\n")
        with replacing(self.folder / "start.csv") as file:
            csv.writer(file, lineterminator="\n").writerows(
                [("name", "value"), *about.recipe.items(), *about.start.items()]
            )

    def has(self, name: str, step: int) -> bool:
        """Nothing: it is small."""
        return False

    def add(self, step: int, numbers: Numbers) -> None:
        """Appended; a new name is a new column at the right, for which the file is written anew."""
        row = {"step": step, **numbers}
        if new := [name for name in row if name not in self._columns]:
            self._columns += new
            with self._rows.open(newline="", encoding="utf-8") as earlier, replacing(self._rows) as file:
                writer = csv.DictWriter(file, self._columns, lineterminator="\n")
                writer.writeheader()
                writer.writerows(csv.DictReader(earlier))
        with self._rows.open("a", newline="", encoding="utf-8") as rows:
            csv.DictWriter(rows, self._columns, lineterminator="\n").writerow(row)

    def end(self, result: Numbers, text: str) -> None:
        """result.json has it."""


class TensorBoard(Tracker):
    """Event files; what a resumed run writes takes the place of all that was there."""

    package = "tensorboard"

    def begin(self, about: About) -> None:
        """Recipe and start table are texts."""
        from torch.utils.tensorboard import SummaryWriter

        earlier = any(self.folder.glob("events.*"))
        self._writer = SummaryWriter(str(self.folder), purge_step=0 if earlier else None)
        for title, rows in (("recipe", about.recipe), ("start", about.start)):
            table = "".join(f"| {name} | {_cell(value)} |\n" for name, value in rows.items())
            self._writer.add_text(title, f"| | |\n|---|---|\n{table}", 0)
        self._writer.flush()

    def has(self, name: str, step: int) -> bool:
        """Nothing: it is told all rows again, for it may have missed some."""
        return False

    def add(self, step: int, numbers: Numbers) -> None:
        """Scalars, under their names in metrics.jsonl."""
        self._last = step
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def end(self, result: Numbers, text: str) -> None:
        """The result is a text."""
        self._writer.add_text("result", f"```\n{text}\n```", self._last)
        self._writer.close()


class WandB(Tracker):
    """A run of Weights & Biases, offline too. What it has had stands in `sent.json`: an offline run cannot be asked."""

    package = "wandb"

    def begin(self, about: About) -> None:
        """The recipe and the start table are its configuration; neither command line, code nor output is sent."""
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        make_folder(self.folder)
        self._file = self.folder / "sent.json"
        self._sent: dict[str, Any] = {"id": uuid4().hex[:8], "last": {}}
        self._sent |= parse_json(self._file.read_text(encoding="utf-8")) if self._file.is_file() else {}
        self._step, self._names = -1, set[str]()
        self._save()
        quiet = {"console": "off", "save_code": False, "disable_git": True, "x_disable_meta": True, "silent": True}
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=about.name,
            id=self._sent["id"],
            resume="allow",
            dir=str(self.folder),
            config={**about.recipe, "start": dict(about.start)},
            # what it is told is in its file a second later, should the machine be lost
            settings=wandb.Settings(
                **quiet, x_save_requirements=False, finish_timeout=PATIENCE, x_transaction_log_flush_interval=1.0
            ),
        )
        atexit.register(self._leave)  # what the library still has is written when it ends, which is after this

    def has(self, name: str, step: int) -> bool:
        """As far as the last number of this name."""
        return step <= self._sent["last"].get(name, -1)

    def add(self, step: int, numbers: Numbers) -> None:
        """The library writes a step when the next begins, for its numbers may come in parts."""
        if step > self._step:
            self._save()
        self._step = step
        self._names |= numbers.keys()
        self._run.log(dict(numbers), step=step)

    def end(self, result: Numbers, text: str) -> None:
        """The result is in its summary."""
        self._run.summary.update(dict(result))
        self._save()
        self._run.finish()

    def _leave(self) -> None:
        with suppress(OSError):
            self._save()

    def _save(self) -> None:
        self._sent["last"] |= dict.fromkeys(self._names, self._step)
        self._names.clear()
        with replacing(self._file, durably=False) as file:
            file.write(to_json(self._sent))


class Mlflow(Tracker):
    """A run of the server or database that MLFLOW_TRACKING_URI names; what it has had it is asked."""

    package = "mlflow"

    def begin(self, about: About) -> None:
        """The recipe and the start table are its parameters."""
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        self._last: dict[str, int] = {}
        self._step = about.step
        make_folder(self.folder)
        known = self.folder / "run.json"
        self._resumed = known.is_file()
        if self._resumed:
            self._id = str(parse_json(known.read_text(encoding="utf-8"))["run_id"])
            self._client.update_run(self._id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        place = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self._id = self._client.create_run(place, run_name=about.name).info.run_id
        rows = {**about.recipe, **{f"start.{name}": value for name, value in about.start.items()}}
        self._client.log_batch(self._id, params=[Param(_key(name), _cell(rows[name])) for name in rows])
        with replacing(known) as file:  # a run without its parameters is begun anew
            file.write(to_json({"run_id": self._id, "experiment": name}))

    def has(self, name: str, step: int) -> bool:
        """As far as the last number of this name."""
        if name not in self._last:
            found = self._client.get_metric_history(self._id, _key(name)) if self._resumed else []
            self._last[name] = max((metric.step for metric in found), default=-1)
        return step <= self._last[name]

    def add(self, step: int, numbers: Numbers) -> None:
        """Metrics, under their names in metrics.jsonl."""
        from mlflow.entities import Metric

        now, self._step = int(time.time() * 1000), step
        self._client.log_batch(self._id, metrics=[Metric(_key(name), numbers[name], now, step) for name in numbers])

    def end(self, result: Numbers, text: str) -> None:
        """The result is metrics, too."""
        self.add(self._step, result)
        self._client.set_terminated(self._id)


PATIENCE = 10  # seconds for which the end of a run waits for its trackers
TRACKERS: dict[str, type[Tracker]] = {"wandb": WandB, "tensorboard": TensorBoard, "mlflow": Mlflow, "csv": Csv}


def check_trackers(names: Iterable[str]) -> None:
    """Raises InputError for a name that is no tracker's, a package that is absent, or nobody who is logged in."""
    for name in names:
        if name not in TRACKERS:
            known = either(list(TRACKERS))
            raise InputError(f"--track {quoted(name)}{nearest(name, TRACKERS)}: give {known}, several with commas.")
        package = TRACKERS[name].package
        found = find_spec(package) if package else None
        if package and (found is None or found.origin is None):  # a folder of that name is no package
            raise InputError(f"--track {name} needs a package: pip install 'diffcse-scale[{name}]'.")
        if name == "wandb":
            _check_login()


def _check_login() -> None:
    """Nobody is asked for a key where a run begins."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    if not wandb.login(prompt=False):
        raise InputError(
            "--track wandb: you are not logged in; run `wandb login`, set WANDB_API_KEY, or WANDB_MODE=offline."
        )


def _cell(value: Any) -> str:
    """Of a table, or a parameter: on one line, and no longer than trackers take."""
    return " ".join(str(value).replace("|", "/").split())[:500]


def _key(name: str) -> str:
    """With the characters that MLflow takes."""
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "_" for letter in name)
