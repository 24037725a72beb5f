"""Every shipped configuration of every Triton kernel."""

from __future__ import annotations

from tests.kernels import compile_cases_info_nce, compile_cases_replaced_token_bce, compile_cases_token_sampling
from tests.kernels.compile_offline import Case


def all_cases(target: str) -> list[Case]:
    """`target` is a key of `compile_offline.TARGETS`."""
    modules = (compile_cases_info_nce, compile_cases_replaced_token_bce, compile_cases_token_sampling)
    return [case for module in modules for case in module.cases(target)]
