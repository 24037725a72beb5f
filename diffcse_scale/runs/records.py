"""The fields of a run's JSON files that are read again. Most may be missing, because other versions write fewer."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class _Facts(BaseModel):
    model_config = ConfigDict(extra="allow")


class Environment(_Facts):
    """`environment` of `run.json`."""

    processor: str | None = None
    cores: int | None = None
    devices: list[str] = []
    platform: str | None = None
    python: str | None = None
    cuda: str | None = None
    packages: dict[str, str | None] = {}


class _DeepSpeed(_Facts):
    zero_optimization: dict[str, Any] | None = None


class Record(_Facts):
    """`run.json`."""

    command: str | None = None
    plan: dict[str, int] | None = None
    precision: str | None = None
    data_fingerprint: Any = None
    deepspeed_config: _DeepSpeed | None = None
    environment: Environment | None = None
    resumed: list[Record] = []


class Best(_Facts):
    """`best` of `result.json`."""

    step: int | None = None
    dev_spearman: float | None = None


class Result(_Facts):
    """`result.json`."""

    steps: int | None = None
    before: dict[str, float | None] | None = None
    best: Best | None = None
    dev_rtd_auroc: float | None = None
    dev_rtd_skill: float | None = None
    dev_rtd_z_gain: float | None = None
    dev_rtd_replaced: float | None = None
    # only in runs of earlier versions
    rtd_balanced_accuracy: float | None = None
    rtd_recall_replaced: float | None = None
    rtd_recall_kept: float | None = None
    rtd_replaced_tokens: float | None = None


class Status(_Facts):
    """`status.json`."""

    state: str | None = None
    step: int | None = None
    steps: int | None = None
    sentences_per_second: float | None = None
    seconds_left: float | None = None
    last_checkpoint: str | None = None
    restarts: int | None = None
    job: str | int | None = None
    message: str | None = None
    updated: float | None = None


class Dump(_Facts):
    """`nonfinite/step-*.json`."""

    step: int
    ranks: list[dict[str, Any]]
