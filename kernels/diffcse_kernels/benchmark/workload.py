"""A workload: a function's inputs, its least work, its float64 truth, and its implementations."""

from __future__ import annotations

import importlib.util
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

FORWARD, BOTH = "forward", "forward+backward"
PASSES = (FORWARD, BOTH)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COMPARED_ROWS = 64  # the gradients or tokens of this many rows are compared with float64
TRUTH_BLOCK = 2**25  # the truth holds this many float64 numbers at once


class Shape(NamedTuple):
    """The size of one call."""

    rows: int
    """Queries, or tokens."""
    columns: int
    """Keys, or the size of the vocabulary; 1 if rows are not compared with anything."""
    width: int


class Outcome(NamedTuple):
    """The results of a call, in float64; to stay small, gradients of matrices hold only the `compared` rows."""

    value: np.ndarray
    gradients: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Implementation:
    """One way to compute a function, called with the workload's inputs. It must be picklable, so no lambdas."""

    name: str
    run: Callable[..., Tensor]
    """Takes the inputs, returns the loss or token ids."""
    compiled: bool = False
    """Whether `run` is compiled with torch.compile first."""
    gpu_only: bool = False
    package: str | None = None
    """The optional package that it needs, if any."""
    comparable: bool = True
    """False if it draws random numbers of its own, so float64 cannot say which result is right."""

    def obstacle(self, device: torch.device) -> str | None:
        """Why it cannot run here, or None if it can."""
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"the package {self.package} is not installed"
        if self.gpu_only and device.type != "cuda":
            return "needs a GPU"
        if self.compiled and device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
            return "torch.compile needs a C++ compiler"
        return None


class Workload(ABC):
    """One public function of the package, measured at many sizes."""

    name: ClassVar[str]
    passes: ClassVar[tuple[str, ...]] = PASSES
    differentiable: ClassVar[int] = 0
    """How many of the inputs, counted from the first, get a gradient."""
    counts_flop: ClassVar[bool] = True
    """Whether matrix products dominate its work, so that TFLOP/s are meaningful."""
    sizes: ClassVar[dict[str, tuple[int, ...]]]
    """Default numbers of rows for each type of device."""
    implementations: ClassVar[tuple[Implementation, ...]]

    @abstractmethod
    def shape(self, rows: int, width: int, vocabulary: int) -> Shape: ...

    @abstractmethod
    def inputs(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
        """Make the inputs; they hold the same numbers every time."""

    @abstractmethod
    def flop(self, shape: Shape, passes: str) -> int:
        """Floating-point operations of the products that every implementation needs."""

    @abstractmethod
    def traffic(self, shape: Shape, dtype: torch.dtype, passes: str) -> int:
        """Bytes to read the inputs once and write the results once."""

    @abstractmethod
    def truth(self, *inputs: Tensor) -> Outcome:
        """The true results, computed in float64 without the measured code."""

    def outcome(self, value: Tensor, gradients: tuple[Tensor, ...]) -> Outcome:
        """The part of a call's results that is compared."""
        return Outcome(array(value), tuple(array(compared(gradient)) for gradient in gradients))

    def errors(self, found: Outcome, truth: Outcome) -> tuple[float, float | None]:
        """Relative max-norm errors: of the value, and the largest among the gradients (None without gradients)."""
        pairs = zip(found.gradients, truth.gradients, strict=False)
        gradient_errors = [relative_error(gradient, right) for gradient, right in pairs]
        return relative_error(found.value, truth.value), max(gradient_errors, default=None)


@dataclass(frozen=True)
class Cell:
    """The combination that one row measures."""

    workload: Workload
    implementation: Implementation
    shape: Shape
    dtype: torch.dtype
    passes: str


def compared(tensor: Tensor) -> Tensor:
    """The rows of a matrix that are compared with float64, spread evenly; a vector is returned unchanged."""
    if tensor.dim() < 2 or len(tensor) <= COMPARED_ROWS:
        return tensor
    return tensor[compared_rows(len(tensor), tensor.device)]


def compared_rows(rows: int, device: torch.device) -> Tensor:
    count = min(rows, COMPARED_ROWS)
    return torch.arange(count, device=device) * rows // count


def array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return tensor.double().numpy() if tensor.is_floating_point() else tensor.numpy()


def relative_error(found: np.ndarray, truth: np.ndarray) -> float:
    """Largest absolute deviation, relative to the largest absolute true value."""
    return float(np.abs(found - truth).max() / np.abs(truth).max())


def truth_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of the rows, chosen so that a float64 block with this many columns stays small."""
    height = max(1, TRUTH_BLOCK // columns)
    for start in range(0, rows, height):
        yield slice(start, start + height)


def seeded(device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(0)
