"""The trackers for `--track`, each using its own library, because DeepSpeed's monitors neither resume nor accept text.

A tracker lives on the main rank, in its own thread (`tracking.py`). It gets each number of a step only once: `has`
tells which numbers it received before a resume. It keeps its files in the run folder, as far as its library allows.
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

PROJECT = "diffcse-scale"  # unless the tracker's own environment variable names another
Numbers = Mapping[str, float]


@dataclass(frozen=True)
class About:
    """What a tracker is told about a run when it begins.

    Attributes:
        name: name of the run folder.
        recipe: values by `section.field`.
        start: the rows of the start table.
        step: steps done; later steps that a crash kept from being saved will be repeated.
    """

    name: str
    recipe: Mapping[str, Any]
    start: Mapping[str, str]
    step: int


class Tracker(ABC):
    """Its methods are called in this order: `begin`, `add` for each step's numbers, and `end` when a run is finished.

    Args:
        folder: the tracker's own folder in the run folder; it need not exist.
    """

    package: ClassVar[str] = ""  # the package that it imports, if any

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def begin(self, about: About) -> None:
        """Begin, or continue what an earlier process began."""

    @abstractmethod
    def has(self, name: str, step: int) -> bool:
        """Whether the tracker already received this number."""

    @abstractmethod
    def add(self, step: int, numbers: Numbers) -> None:
        """Take the numbers of a step; steps never decrease."""

    @abstractmethod
    def end(self, result: Numbers, text: str) -> None:
        """Take the numbers of result.json, and its whole text."""


class Csv(Tracker):
    """Writes `metrics.csv`, with one row for each row of metrics.jsonl, and `start.csv` with recipe and start table."""

    def begin(self, about: About) -> None:
        """Start both files again; the rows of an earlier process come again from metrics.jsonl."""
        make_folder(self.folder)
        self._columns, self._rows = ["step"], self.folder / "metrics.csv"
        with replacing(self._rows) as file:
            file.write("step\n")
        with replacing(self.folder / "start.csv") as file:
            csv.writer(file, lineterminator="\n").writerows(
                [("name", "value"), *about.recipe.items(), *about.start.items()]
            )

    def has(self, name: str, step: int) -> bool:
        """Never, because the file is small and is written again."""
        return False

    def add(self, step: int, numbers: Numbers) -> None:
        """Append a row; a new name becomes a new last column, and then the whole file is rewritten."""
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
        """Nothing to do, because result.json has the result."""


class TensorBoard(Tracker):
    """Writes event files; a resumed run replaces everything in the earlier ones."""

    package = "tensorboard"

    def begin(self, about: About) -> None:
        """Write recipe and start table as texts."""
        from torch.utils.tensorboard import SummaryWriter

        earlier = any(self.folder.glob("events.*"))
        self._writer = SummaryWriter(str(self.folder), purge_step=0 if earlier else None)
        for title, rows in (("recipe", about.recipe), ("start", about.start)):
            table = "".join(f"| {name} | {_cell(value)} |\n" for name, value in rows.items())
            self._writer.add_text(title, f"| | |\n|---|---|\n{table}", 0)
        self._writer.flush()

    def has(self, name: str, step: int) -> bool:
        """Never: it gets all rows again, because some may be missing."""
        return False

    def add(self, step: int, numbers: Numbers) -> None:
        """Write scalars under their names in metrics.jsonl."""
        self._last = step
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def end(self, result: Numbers, text: str) -> None:
        """Write the result as a text."""
        self._writer.add_text("result", f"```\n{text}\n```", self._last)
        self._writer.close()


class WandB(Tracker):
    """A run of Weights & Biases, online or offline.

    `sent.json` records what it has received, because an offline run cannot be asked.
    """

    package = "wandb"

    def begin(self, about: About) -> None:
        """Send the recipe and the start table as configuration. Command line, code and output are not sent."""
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
            # numbers reach the library's file within a second, in case the machine is lost
            settings=wandb.Settings(
                **quiet, x_save_requirements=False, finish_timeout=PATIENCE, x_transaction_log_flush_interval=1.0
            ),
        )
        atexit.register(self._leave)  # the library's own exit handler writes what it still holds, and runs later

    def has(self, name: str, step: int) -> bool:
        """Whether the step is not after the last number of this name."""
        return step <= self._sent["last"].get(name, -1)

    def add(self, step: int, numbers: Numbers) -> None:
        """Log the numbers. The library writes a step when the next one begins, because a step may come in parts."""
        if step > self._step:
            self._save()
        self._step = step
        self._names |= numbers.keys()
        self._run.log(dict(numbers), step=step)

    def end(self, result: Numbers, text: str) -> None:
        """Write the result to the run's summary."""
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
    """A run on the server or database that MLFLOW_TRACKING_URI names. It is asked what it has already received."""

    package = "mlflow"

    def begin(self, about: About) -> None:
        """Send the recipe and the start table as parameters."""
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
        with replacing(known) as file:  # written after the parameters: a run without them is started again
            file.write(to_json({"run_id": self._id, "experiment": name}))

    def has(self, name: str, step: int) -> bool:
        """Whether the step is not after the last number of this name."""
        if name not in self._last:
            found = self._client.get_metric_history(self._id, _key(name)) if self._resumed else []
            self._last[name] = max((metric.step for metric in found), default=-1)
        return step <= self._last[name]

    def add(self, step: int, numbers: Numbers) -> None:
        """Send metrics under their names in metrics.jsonl."""
        from mlflow.entities import Metric

        now, self._step = int(time.time() * 1000), step
        self._client.log_batch(self._id, metrics=[Metric(_key(name), numbers[name], now, step) for name in numbers])

    def end(self, result: Numbers, text: str) -> None:
        """Send the result as metrics too."""
        self.add(self._step, result)
        self._client.set_terminated(self._id)


PATIENCE = 10  # seconds that the end of a run waits for its trackers
TRACKERS: dict[str, type[Tracker]] = {"wandb": WandB, "tensorboard": TensorBoard, "mlflow": Mlflow, "csv": Csv}


def check_trackers(names: Iterable[str]) -> None:
    """Raise InputError for an unknown tracker, a missing package, or a missing login."""
    for name in names:
        if name not in TRACKERS:
            known = either(list(TRACKERS))
            raise InputError(f"--track {quoted(name)}{nearest(name, TRACKERS)}: give {known}, several with commas.")
        package = TRACKERS[name].package
        found = find_spec(package) if package else None
        if package and (found is None or found.origin is None):  # a mere folder of that name is not the package
            raise InputError(f"--track {name} needs a package: pip install 'diffcse-scale[{name}]'.")
        if name == "wandb":
            _check_login()


def _check_login() -> None:
    """Check the login without asking for a key, because nobody may be there to answer when a run begins."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    if not wandb.login(prompt=False):
        raise InputError(
            "--track wandb: you are not logged in; run `wandb login`, set WANDB_API_KEY, or WANDB_MODE=offline."
        )


def _cell(value: Any) -> str:
    """The text of a table cell or parameter: on one line, and not longer than trackers accept."""
    return " ".join(str(value).replace("|", "/").split())[:500]


def _key(name: str) -> str:
    """The name, with only characters that MLflow accepts."""
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "_" for letter in name)
