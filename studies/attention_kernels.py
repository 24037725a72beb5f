"""Is `model.cudnn_attention: true` faster on this device? A step of `make gpu-check`.

    python -m studies.attention_kernels

Runs attention of bert-base's heads, forward and backward in bfloat16. The batches either all have different lengths, as
batches of text have, or repeat the first length. Dropout is 0, 1/8, which cuDNN supports, or 1/10, which it does not.
torch's kernel and cuDNN's take turns in one run. The deviation of the dropout is measured with values of 1: their mean
must stay 1.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from diffcse_scale.foundation.devices import device_error
from diffcse_scale.model.attention import choose_attention_kernels

HEADS, WIDTH, TOKENS = 12, 64, 64 * 128
LENGTHS = tuple(range(128, 16, -2))  # of rows; every batch has about `TOKENS` tokens
DROPOUTS = (0.0, 0.125, 0.1)
ROUNDS = 20
WORTH = 1.1  # a setting is recommended from this speed-up on
EXACT = 0.01  # largest deviation of the mean at which the dropout counts as correct


def attend(length: int, dropout: float, device: torch.device) -> Tensor:
    """Run one batch forward and backward; returns the mean of the output for values of 1."""
    shape = (TOKENS // length, HEADS, length, WIDTH)
    query, key = (torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    value = torch.ones(shape, device=device, dtype=torch.bfloat16, requires_grad=True)
    found = scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    found.sum().backward()
    return found.detach().float().mean()


def seconds(cudnn: bool, lengths: Sequence[int], dropout: float, device: torch.device) -> tuple[float, float]:
    """Time of one pass over the lengths, and the mean's deviation from 1."""
    choose_attention_kernels(cudnn)
    wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    means = [attend(length, dropout, device) for length in lengths]
    wait()
    return time.perf_counter() - start, float(torch.stack(means).mean()) - 1


def compare(device: torch.device, lengths: Sequence[int] = LENGTHS, rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Speed-up of cuDNN's kernel for each of `DROPOUTS`, as a ratio of medians over the rounds; prints a table.

    The speed-up is 0 if cuDNN's dropout is not the requested one.

    Args:
        lengths: length of the rows of each batch, in tokens.
    """
    faster: dict[str, list[float]] = {"lengths that differ": [], "one length": []}
    print(f"{'shapes':<22}{'dropout':>8}{'torch':>12}{'cuDNN':>12}{'ratio':>8}{'dropout off by':>16}")
    for name, some in (("lengths that differ", lengths), ("one length", [lengths[0]] * len(lengths))):
        for dropout in DROPOUTS:
            pairs = [[seconds(cudnn, some, dropout, device) for cudnn in (False, True)] for _ in range(rounds + 1)]
            plain, with_cudnn = (sorted(pair[way][0] for pair in pairs[1:])[rounds // 2] for way in (0, 1))
            off = max(abs(pair[1][1]) for pair in pairs)
            faster[name].append(plain / with_cudnn if off < EXACT else 0.0)
            print(
                f"{name:<22}{dropout:>8}{plain * 1e3:>9.1f} ms{with_cudnn * 1e3:>9.1f} ms{plain / with_cudnn:>8.2f}"
                f"{off:>16.4f}"
            )
    choose_attention_kernels(False)
    return faster


def verdict(faster: dict[str, list[float]]) -> str:
    """A sentence that says what to set; batches of text differ in length, and dropout is mostly 0.1."""
    _, _, usual = faster["lengths that differ"]
    worth = [
        name for name, ratio in zip(("0", "1/8", "1/10"), faster["lengths that differ"], strict=True) if ratio >= WORTH
    ]
    if not worth:
        return f"Leave model.cudnn_attention false: on text it is {usual:.2f} times as fast, at a dropout of 0.1."
    return f"Set model.cudnn_attention: true where dropout is {' or '.join(worth)}: on text it is faster there."


def main() -> int:
    """Entry point; returns 0, or 2 without a GPU."""
    if (error := device_error()) is not None:
        print(f"error: cuDNN's attention needs a GPU, and torch can use none here ({error}).", file=sys.stderr)
        return 2
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "cuDNN", torch.backends.cudnn.version())
    print(verdict(compare(torch.device("cuda"))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
