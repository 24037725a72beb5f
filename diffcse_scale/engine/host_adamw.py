"""AdamW with DeepSpeed's kernel for CPUs, for optimizer state that is offloaded to the host.

The kernel is compiled on the machine only when it is first needed. State and checkpoints have the format of
`torch.optim.AdamW`, so that a run may switch between the two.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from deepspeed.ops.op_builder import CPUAdamBuilder

from diffcse_scale.foundation.errors import InputError

NUMBERS, STEPS = 1 << 24, 5  # parameters and steps of a speed comparison: 256 MB, more than caches hold
_numbers = itertools.count()


def build() -> Any:
    """Load DeepSpeed's kernels, and compile them if this machine has not done so yet.

    Raises:
        InputError: the kernels cannot be compiled here.
    """
    try:
        return CPUAdamBuilder().load(verbose=False)
    except Exception as error:  # compilers, ninja and the loader raise their own exceptions
        reason = " ".join(str(error).split())[-300:]
        raise InputError(
            f"DeepSpeed's AdamW for CPUs cannot be built here ({reason}); leave zero_force_ds_cpu_optimizer out of the "
            "DeepSpeed configuration."
        ) from None


class HostAdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` for float32 parameters on the host; equal to it up to rounding.

    Raises:
        InputError: as `build`.
    """

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0, **_: Any
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        self._kernels, self._number = build(), next(_numbers)
        self._kernels.create_adam(self._number, lr, *betas, eps, weight_decay, True, False)

    def __del__(self) -> None:
        if hasattr(self, "_number"):
            self._kernels.destroy_adam(self._number)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Take a step for every parameter that has a gradient; `closure` must be None."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                state["step"] += 1
                self._kernels.adam_update(
                    self._number, int(state["step"]), group["lr"], *group["betas"], group["eps"],
                    group["weight_decay"], True, parameter.data, parameter.grad, state["exp_avg"], state["exp_avg_sq"],
                )  # fmt: skip


def is_faster(numbers: int = NUMBERS) -> bool:
    """Whether `HostAdamW` is faster than PyTorch's fused AdamW with this process's threads, by the median of STEPS.

    Also False if it cannot be built.
    """
    try:
        build()
    except InputError:
        return False
    settings = {"lr": 1e-5, "betas": (0.9, 0.999), "eps": 1e-8}
    ours, theirs = (_seconds(kind, numbers, settings) for kind in (HostAdamW, torch.optim.AdamW))
    return ours < theirs


def _seconds(kind: Any, numbers: int, settings: dict[str, Any]) -> float:
    weights = torch.zeros(numbers)
    weights.grad = torch.ones(numbers)
    optimizer, times = kind([weights], **settings, fused=True), []
    for _ in range(STEPS + 1):  # the first step allocates the moments and is not counted
        began = time.perf_counter()
        optimizer.step()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])
