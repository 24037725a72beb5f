"""Blocks that travel around the ring of ranks, and sums that follow them to their owners."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from diffcse_scale.distributed import PROCESS_GROUP, Ranks, Transfer


def ring(block: Tensor, shares: Sequence[int], ranks: Ranks = PROCESS_GROUP) -> Iterator[tuple[int, Tensor]]:
    """Yield every rank's block with its owner, starting with this rank's own.

    The next block travels during the loop's body. At most two received blocks are held. Their buffers are reused, so
    a block is valid only until the next iteration.

    Args:
        block: [n, ...], the same shape on every rank except for `n`.
        shares: every rank's `n`.
    """
    block = block.contiguous()
    last = ranks.world_size - 1
    buffers = [block.new_empty(max(shares), *block.shape[1:]) for _ in range(min(2, last))]
    for step in range(last):
        owner = (ranks.rank - step) % ranks.world_size
        transfer = ranks.pass_on(block, buffers[step % 2][: shares[owner - 1]])
        yield owner, block
        block = transfer.wait()
    yield (ranks.rank - last) % ranks.world_size, block


class RingSum:
    """A sum over ranks for every block of `ring`. The sum travels one step behind its block to the block's owner."""

    def __init__(self, shares: Sequence[int], ranks: Ranks = PROCESS_GROUP) -> None:
        self._shares, self._ranks = shares, ranks
        self._owner = ranks.rank
        self._transfer: Transfer | None = None

    def add(self, part: Tensor) -> None:
        """Add this rank's part for the current block, [n of its owner, ...], contiguous. `part` is overwritten."""
        if self._transfer is not None:
            part += self._transfer.wait()
        self._owner = (self._owner - 1) % self._ranks.world_size
        if self._ranks.world_size == 1:
            self._transfer = Transfer(part, part, [])
        else:
            into = part.new_empty(self._shares[self._owner], *part.shape[1:])
            self._transfer = self._ranks.pass_on(part, into)

    def total(self) -> Tensor:
        """The sum for this rank's own block, after every block has been around the ring."""
        assert self._transfer is not None
        return self._transfer.wait()
