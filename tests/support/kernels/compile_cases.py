"""Every shipped configuration of every Triton kernel."""

from __future__ import annotations

from diffcse_kernels.triton import trial

from tests.support.kernels import (
    compile_cases_info_nce,
    compile_cases_losses,
    compile_cases_masks,
    compile_cases_replaced_token_bce,
    compile_cases_sample_tokens,
)
from tests.support.kernels.compile_offline import Case

TRIAL = Case(
    name="trial",
    kernel=trial.product_kernel,
    types={"left": "*bf16", "right": "*bf16", "out": "*fp32"},
    constants={"SIZE": trial.SIZE},
    divisible=("left", "right", "out"),
    options={},
)


def all_cases(target: str) -> list[Case]:
    """`target` is a key of `compile_offline.TARGETS`; of masks and the other losses one each."""
    modules = (compile_cases_info_nce, compile_cases_replaced_token_bce, compile_cases_sample_tokens)
    first = [module.cases(target)[0] for module in (compile_cases_masks, compile_cases_losses)]
    return [TRIAL, *first, *(case for module in modules for case in module.cases(target))]


def further_cases(target: str) -> list[Case]:
    """All of masks and the other losses."""
    return compile_cases_masks.cases(target) + compile_cases_losses.cases(target)
