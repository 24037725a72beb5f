"""Time and energy of a run: the time comes from its log, the energy is an estimate that states its assumptions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from diffcse_scale.runs.metric_table import CHECKPOINTS, EVALUATION, TRAINING

# rated power of a board in watts, by a part of its name; the first match counts
BOARD_WATTS = {
    "H100 PCIe": 350,
    "H100": 700,
    "H200": 700,
    "A100-PCIE": 250,
    "A100 80GB PCIe": 300,
    "A100": 400,
    "V100": 300,
    "L40S": 350,
    "L40": 300,
    "L4": 72,
    "T4": 70,
}
UNKNOWN_BOARD_WATTS = 300
CPU_THREAD_WATTS = 10


class Energy(NamedTuple):
    """devices x hours x watts. This is an estimate, because the watts are assumed."""

    devices: int
    kind: str
    watts: int
    kwh: float


def run_seconds(rows: Iterable[dict[str, Any]]) -> float:
    """Seconds of steps, checkpoints and evaluations in the rows of `metrics.jsonl`; 0 if none are recorded.

    A step that was lost and repeated counts once. Start-up does not count.
    """
    return float(sum(row.get(part, 0.0) for row in rows for part in (TRAINING, CHECKPOINTS, EVALUATION)))


def shapes(run: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of `run.json`, one for each distinct set of devices that a run has used."""
    found: list[dict[str, Any]] = []
    for record in (run, *run.get("resumed", [])):
        if all(_devices(record) != _devices(other) for other in found):
            found.append(record)
    return found


def _devices(record: dict[str, Any]) -> tuple[int, str, int]:
    """Number of devices, their kind, and the assumed watts of each."""
    environment, ranks = record["environment"], record["plan"]["world_size"]
    if not environment["devices"]:
        return ranks * environment["torch_threads"], f"CPU thread ({environment['processor']})", CPU_THREAD_WATTS
    board = environment["devices"][0]
    return ranks, board, next((watts for part, watts in BOARD_WATTS.items() if part in board), UNKNOWN_BOARD_WATTS)


def hardware(run: dict[str, Any]) -> list[str]:
    """A line for each distinct set of devices that a run has used."""
    lines = []
    for record in shapes(run):
        count, kind, _ = _devices(record)
        lines.append(f"{count:,} x {kind}, world size {record['plan']['world_size']:,}, {record['precision']}")
    return lines


def energy(run: dict[str, Any], seconds: float) -> Energy | None:
    """Energy of a run. None if it moved between different devices, because its log does not tell the time on each."""
    if len(shapes(run)) > 1:
        return None
    count, kind, watts = _devices(run)
    return Energy(count, kind, watts, count * watts * seconds / 3.6e6)
