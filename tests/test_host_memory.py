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


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_blocks_stay_unless_the_user_has_set_a_limit():
    stay, go = page_faults(None), page_faults("1048576")
    # not none: a small object in a hole can move a block to fresh pages once; not a number: a huge page is one fault
    assert stay < go / 4, (stay, go)


def page_faults(threshold: str | None) -> int:
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_MMAP_THRESHOLD_"}
    if threshold is not None:
        environment["MALLOC_MMAP_THRESHOLD_"] = threshold
    result = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return int(result.stdout)
