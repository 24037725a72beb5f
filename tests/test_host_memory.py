"""What is freed stays with the process, or goes back to the system, as it was asked for: page faults tell."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from diffcse_scale.host_memory import keep_freed_blocks

def faults(blocks):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        del blocks[:]
        blocks += [torch.ones(size << 18) for size in (200, 100, 50)]  # MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_blocks()
blocks = []
faults(blocks)
print(faults(blocks))
"""
PAGES = 5 * 350 * 256  # of 4 KiB, in all blocks


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
@pytest.mark.parametrize(("threshold", "stays"), [(None, True), ("1048576", False)])
def test_blocks_stay_unless_the_user_has_set_a_limit(threshold, stays):
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_MMAP_THRESHOLD_"}
    if threshold is not None:
        environment["MALLOC_MMAP_THRESHOLD_"] = threshold
    result = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    # a huge page is one fault where the system has them: 512 times fewer
    assert (int(result.stdout) < PAGES / 512 / 4) == stays, result.stdout
