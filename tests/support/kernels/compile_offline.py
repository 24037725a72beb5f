"""Compiles every shipped configuration of the Triton kernels for a GPU that is not here, and says what it uses.

    TRITON_INTERPRET=0 python -m tests.support.kernels.compile_offline sm_90
    TRITON_INTERPRET=0 python -m tests.support.kernels.compile_offline sm_90 masks    # masks and the other losses

Prints one JSON line a case: {"case": ..., "stack": bytes, "shared": bytes, "registers": ..., "mma": count,
"wgmma": count, "async_copies": count, "wide_stores": count, "after_products": instructions of PTX behind the last
product}; for AMD only {"case": ..., "shared": bytes}. "specialized" are the whole numbers of which some values compile
a kernel of their own, "narrow" the products of two scalars known at the launch only that have 32 bits, "tile" the rows,
the columns and the step along the width of a program's similarities.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx950": GPUTarget("hip", "gfx950", 64),
}
CUDA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Case(NamedTuple):
    """One kernel as a launch would compile it."""

    name: str
    kernel: Any
    types: dict[str, str]
    """Argument -> Triton's type ("*bf16", "i32", "fp32"); all others are constexpr."""
    constants: dict[str, Any]
    divisible: tuple[str, ...]
    """Arguments (pointers, widths) that are multiples of 16, which a launch finds out from their values."""
    options: dict[str, int]
    """num_warps, num_stages."""


def compiled(case: Case, target: GPUTarget) -> Any:
    names = list(case.kernel.arg_names)
    signature = {name: case.types.get(name, "constexpr") for name in names}
    constants = {(names.index(name),): value for name, value in case.constants.items()}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in case.divisible}
    source = ASTSource(fn=case.kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = dict(case.options)
    if target.backend == "cuda":
        options["enable_fp_fusion"] = True  # its default changes in triton 3.10
    return triton.compile(source, target=target, options=options)


def usage(kernel: Any) -> dict[str, int]:
    """What ptxas gave the kernel. Spills show as stack bytes only; LOCAL is 0 even with them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(CUDA_TOOLS / "cuobjdump"), "--dump-resource-usage", file.name]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", output)
    assert found, output
    ptx = kernel.asm["ptx"]
    return {
        "registers": int(found[1]),
        "stack": int(found[2]),
        "mma": len(re.findall(r"\bmma\.sync", ptx)),
        "wgmma": len(re.findall(r"wgmma\.mma_async", ptx)),
        "async_copies": len(re.findall(r"cp\.async\.c[ag]", ptx)),
        "wide_stores": len(re.findall(r"st\.global\.v4\.b32", ptx)),
        "after_products": re.split(r"mma\.(?:sync|m)", ptx)[-1].count(";\n"),
    }


def narrow_products(kernel: Any) -> list[str]:
    """Of addresses, say. Those with a constant, as of a program's number and its rows, are not listed."""
    constants = set(re.findall(r"(%\w+) = arith\.constant", kernel.asm["ttir"]))
    products = re.findall(r"arith\.muli (%\w+, %\w+) : i32", kernel.asm["ttir"])
    return [factors for factors in products if not constants & set(factors.split(", "))]


def main(target_name: str, masks: str = "") -> None:
    from tests.support.kernels import compile_cases

    target = TARGETS[target_name]
    for case in compile_cases.further_cases(target_name) if masks else compile_cases.all_cases(target_name):
        kernel = compiled(case, target)
        row: dict[str, Any] = {"case": case.name, "shared": kernel.metadata.shared}
        row["specialized"] = [
            parameter.name
            for parameter in case.kernel.params
            if case.types.get(parameter.name) == "i32" and not parameter.do_not_specialize
        ]
        row["narrow"] = narrow_products(kernel)
        row["tile"] = [case.constants.get(f"BLOCK_{axis}", 0) for axis in "MND"]
        if target.backend == "cuda":
            row |= usage(kernel)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
