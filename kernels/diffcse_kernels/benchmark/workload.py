"""What is measured: a function's inputs, its least work, its float64 truth, and the ways to compute it."""

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
COMPARED_ROWS = 64  # whose gradients, or tokens, are compared with float64
TRUTH_BLOCK = 2**25  # float64 numbers that the truth holds at once


class Shape(NamedTuple):
    """The size of one call."""

    rows: int
    """Queries, or tokens."""
    columns: int
    """Keys, or the vocabulary; 1 where the rows meet nothing."""
    width: int


class Outcome(NamedTuple):
    """What a call computed, in float64 and small enough to keep: gradients of matrices at `compared` rows only."""

    value: np.ndarray
    gradients: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Implementation:
    """One way to compute a function, called with the workload's inputs. Picklable, so no lambdas."""

    name: str
    run: Callable[..., Tensor]
    """Inputs -> the loss, or token ids."""
    compiled: bool = False
    """Whether `run` goes through torch.compile first."""
    gpu_only: bool = False
    package: str | None = None
    """A package that it needs and that need not be installed."""
    comparable: bool = True
    """False where it draws random numbers of its own, so that float64 cannot say what is right."""

    def obstacle(self, device: torch.device) -> str | None:
        """Why it cannot run here."""
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
    """How many of the inputs, from the first, get a gradient."""
    counts_flop: ClassVar[bool] = True
    """Whether its work is in products, so that TFLOP/s mean something."""
    sizes: ClassVar[dict[str, tuple[int, ...]]]
    """Rows measured by default, by type of device."""
    implementations: ClassVar[tuple[Implementation, ...]]

    @abstractmethod
    def shape(self, rows: int, width: int, vocabulary: int) -> Shape: ...

    @abstractmethod
    def inputs(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
        """The same numbers each time."""

    @abstractmethod
    def flop(self, shape: Shape, passes: str) -> int:
        """Floating-point operations of the products that no implementation can do without."""

    @abstractmethod
    def traffic(self, shape: Shape, dtype: torch.dtype, passes: str) -> int:
        """Bytes of the inputs read once and of the results written once."""

    @abstractmethod
    def truth(self, *inputs: Tensor) -> Outcome:
        """Computed in float64, without the code that is measured."""

    def outcome(self, value: Tensor, gradients: tuple[Tensor, ...]) -> Outcome:
        """What is compared of a call's results."""
        return Outcome(array(value), tuple(array(compared(gradient)) for gradient in gradients))

    def errors(self, found: Outcome, truth: Outcome) -> tuple[float, float | None]:
        """Of the value, and the largest of the gradients': max-norm, relative."""
        pairs = zip(found.gradients, truth.gradients, strict=False)
        gradient_errors = [relative_error(gradient, right) for gradient, right in pairs]
        return relative_error(found.value, truth.value), max(gradient_errors, default=None)


@dataclass(frozen=True)
class Cell:
    """What one row measures."""

    workload: Workload
    implementation: Implementation
    shape: Shape
    dtype: torch.dtype
    passes: str


def compared(tensor: Tensor) -> Tensor:
    """The rows of a matrix that are compared with float64, spread over it; a vector as it is."""
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
    """Largest deviation, relative to the largest true number."""
    return float(np.abs(found - truth).max() / np.abs(truth).max())


def truth_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of the rows, so that a float64 block with this many columns stays small."""
    height = max(1, TRUTH_BLOCK // columns)
    for start in range(0, rows, height):
        yield slice(start, start + height)


def seeded(device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(0)
