"""Token batches: the global batches are the same for any number of ranks, and each depends only on its step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.randomness import derive_seed
from diffcse_scale.recipe import BatchRecipe, Recipe
from diffcse_scale.text.corruption import Corruption
from diffcse_scale.text.duplicates import row_hash
from diffcse_scale.text.edits import Edits
from diffcse_scale.text.order import epoch_order
from diffcse_scale.text.prefetch import prefetch
from diffcse_scale.text.sizes import computed_positions, repeating_size
from diffcse_scale.text.tokenizers import Tokenizers
from diffcse_scale.text.tokens import TokenizedCorpus


@dataclass(frozen=True)
class Chunk:
    """Some sentences of a rank's share, padded to their longest row: C sentences, S views, L tokens.

    Attributes:
        input_ids: int64 [C, S, L].
        attention_mask: int64 [C, S, L], 1 on real tokens.
        corrupted_ids: int64, shape of `original_ids`; the generator's input.
        corrupted: int64 [K], the positions that the generator predicts, as ascending indices into the
            flattened `original_ids`. Made on the CPU, so that the device need not be asked for K.
        row_ids: int64 [C, S], a number unique to (epoch, position in the epoch's order, view); the base of
            all random numbers of that row.
        seed: the base of the networks' random numbers (dropout) on this chunk, so that running a network on it again
            gives the same result. None leaves torch's generator unchanged.
        real: int64 [T], the real tokens as ascending indices into the flattened `attention_mask`, filled up with
            padding to a size that repeats (`sizes.computed_positions`). Networks that take packed rows
            (`model.packing`) compute only these positions. None keeps all padding.
        discriminator_ids, discriminator_mask: int64 [C, S, M], the sentences as tokenized by the discriminator's own
            tokenizer; None if it has none.
        discriminator_real: `real` for `discriminator_mask`.
        edited_ids: int64, shape of `original_ids`, if edits were made before training; else None.
        text_ids: int64 [C, S], a number for each text; texts with the same encoder tokens have the same number. None if
            no false negatives are masked, or all sentences differ.
    """

    input_ids: Tensor
    attention_mask: Tensor
    corrupted_ids: Tensor
    corrupted: Tensor
    row_ids: Tensor
    seed: int | None = None
    real: Tensor | None = None
    discriminator_ids: Tensor | None = None
    discriminator_mask: Tensor | None = None
    discriminator_real: Tensor | None = None
    edited_ids: Tensor | None = None
    text_ids: Tensor | None = None

    @property
    def original_ids(self) -> Tensor:
        """The tokens for generator and discriminator: the encoder's, unless these two have their own tokenizer."""
        return self.input_ids if self.discriminator_ids is None else self.discriminator_ids

    @property
    def original_mask(self) -> Tensor:
        """The attention mask of `original_ids`."""
        return self.attention_mask if self.discriminator_mask is None else self.discriminator_mask

    @property
    def original_real(self) -> Tensor | None:
        """`real` for `original_ids`."""
        return self.real if self.discriminator_mask is None else self.discriminator_real

    @property
    def views(self) -> int:
        """S, the views of a sentence."""
        return self.input_ids.shape[1]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Chunk:
        """The same chunk on another device."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Chunk:
        """The same chunk in page-locked memory, from which a copy to a GPU need not be waited for."""
        return self._with_each(Tensor.pin_memory)

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> Chunk:
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: change(value) for name, value in tensors.items() if isinstance(value, Tensor)}
        return replace(self, **changed)


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch.

    Attributes:
        step: counted over all epochs, from 0.
        sentences: number of sentences of the global batch, on all ranks together.
    """

    step: int
    epoch: int
    chunks: list[Chunk]
    sentences: int


def share_of(batch: BatchRecipe, world_size: int) -> int:
    """Sentences of the device that has the most. Shares differ by one if the world size does not divide the batch.

    Raises:
        InputError: a device would have no sentence, fewer sentences than length groups, or fewer chunks than others.
    """
    smallest, more = divmod(batch.sentences, world_size)
    if smallest == 0:
        raise InputError(
            f"batch.sentences = {batch.sentences} is fewer than the {world_size} devices, and each needs at least one; "
            "use fewer devices or raise batch.sentences."
        )
    if batch.length_groups > smallest:
        raise InputError(
            f"batch.length_groups = {batch.length_groups} is more than the {smallest} sentences per device."
        )
    if batch.chunk == 1 and more:
        raise InputError(
            f"batch.chunk = 1 would give some of the {world_size} devices one chunk more than others, because "
            f"batch.sentences = {batch.sentences} cannot be shared equally; set batch.chunk=2."
        )
    return smallest + (more > 0)


def shares_of(sentences: int, world_size: int) -> list[int]:
    """The number of sentences of each device in a global batch, by rank."""
    smallest, more = divmod(sentences, world_size)
    return [smallest + 1] * more + [smallest] * (world_size - more)


def _own(count: int, rank: int, world_size: int) -> tuple[int, int]:
    """Where a rank's part of `count` items begins, and how many items it has."""
    smallest, more = divmod(count, world_size)
    return rank * smallest + min(rank, more), smallest + (rank < more)


def chunk_of(share: int, chunk: int | None) -> int | None:
    """The sentences per chunk of a share, from a recipe's `batch.chunk`; None if the share fits in one chunk."""
    return None if chunk is None or chunk >= share else chunk


class Batches:
    """The shares of one rank, by step.

    Global batch b of an epoch has positions [b * B, (b + 1) * B) of the epoch's order, for any number of
    ranks. The last, partial batch is dropped. The sentences of a batch are sorted by length, so that a chunk needs
    little padding. The ranks get equal work (`shares_of`) and the same number of chunks, because ZeRO-3 needs that. If
    `batch.chunk` divides a share, the chunks of all ranks together are the same for any number of ranks, dropout seeds
    included. With fidelity 'official' nothing is sorted, and everything is padded to the longest row of the global
    batch.

    Every rank reads the length of each sentence of the global batch once; docs/results/batches.md has the time.

    Args:
        tokenizers: the tokenizers of `tokens`; their padding, mask and special ids are used.
        recipe: its seed, batch and objective are used.
        edits: edits made before training; with them nothing is corrupted.

    Raises:
        InputError: as `share_of`; fewer sentences than one global batch, or RTD with a tokenizer that has no mask
            token.
    """

    def __init__(
        self,
        tokens: TokenizedCorpus,
        tokenizers: Tokenizers,
        recipe: Recipe,
        rank: int = 0,
        world_size: int = 1,
        edits: Edits | None = None,
    ) -> None:
        self.edits = edits
        self.tokens, self.rank, self.world_size, self.seed = tokens, rank, world_size, recipe.seed
        self.sentences = recipe.batch.sentences
        self.chunk, self.length_groups = recipe.batch.chunk, recipe.batch.length_groups
        self.official = recipe.objective.fidelity == "official"
        # with one column all rows differ: the corpus leaves out rows with the same tokens as an earlier one
        self.names_texts = recipe.objective.masks_false_negatives and tokens.columns > 1
        self.packed, self.max_length = recipe.packed, recipe.data.max_length
        self._longest = [tokens.longest(stream) for stream in range(tokens.streams)]
        self.tokenizers = tokenizers
        self.paddings = [padding_id(tokenizer) for tokenizer in tokenizers.streams]
        self.corruption: Corruption | None = None
        if recipe.objective.rtd_weight > 0 and edits is None:
            seed = derive_seed(recipe.seed, "corruption")
            self.corruption = Corruption.of(tokenizers.discriminator, recipe.objective.masking_ratio, seed)
        share = share_of(recipe.batch, world_size)
        if self.chunk is not None and self.chunk > share:
            self.chunk = None  # with one run for all ranks, one rank would get the shortest and one the longest
        if len(tokens) < self.sentences:
            raise InputError(
                f"The corpus has {len(tokens)} sentences, fewer than one global batch (batch.sentences = "
                f"{self.sentences}); add text or lower batch.sentences."
            )

    def __len__(self) -> int:
        """Steps per epoch."""
        return len(self.tokens) // self.sentences

    def _positions(self, step: int) -> tuple[int, NDArray[np.int64]]:
        """The epoch of a global batch, and the batch's positions in the epoch's order."""
        epoch, index = divmod(step, len(self))
        return epoch, np.arange(index * self.sentences, (index + 1) * self.sentences)

    def sentence_ids(self, step: int) -> NDArray[np.int64]:
        """The sentences of a step's global batch, as row numbers of the corpus, int64 [batch.sentences]."""
        epoch, positions = self._positions(step)
        return epoch_order(positions, len(self.tokens), self.seed, epoch)

    def batch(self, step: int) -> Batch:
        """This rank's share of the global batch of any step, counted over all epochs from 0."""
        epoch, positions = self._positions(step)
        sentences = self.sentence_ids(step)
        parts = self._parts(self._longest[0][sentences])
        of_batch = self._padded_to(sentences) if self.official else None
        chunks = []
        for number, part in enumerate(parts):
            longest = of_batch or self._padded_to(sentences[part])
            # number * world_size + rank: the chunk's index among those of all ranks
            seed = derive_seed(self.seed, "dropout", step, number * self.world_size + self.rank)
            chunk = self._chunk(sentences[part], epoch * len(self.tokens) + positions[part], longest, seed)
            if self.edits is not None:
                chunk = replace(chunk, edited_ids=self._edited(sentences[part], epoch, longest[-1]))
            if self.names_texts:
                chunk = replace(chunk, text_ids=self._text_ids(sentences[part]))
            chunks.append(chunk)
        return Batch(step, epoch, chunks, self.sentences)

    def prefetch(self, start: int, stop: int) -> AbstractContextManager[Iterator[Batch]]:
        """Iterate over the batches of steps [start, stop); a thread makes them ahead of their use.

        with batches.prefetch(0, 100) as iterator:
            for batch in iterator: ...
        """
        if not torch.cuda.is_available():
            return prefetch(self.batch, start, stop)

        def pinned(step: int) -> Batch:
            batch = self.batch(step)
            return replace(batch, chunks=[chunk.pin_memory() for chunk in batch.chunks])

        return prefetch(pinned, start, stop)

    def _parts(self, lengths: NDArray[np.unsignedinteger]) -> list[NDArray[np.int64]]:
        """Which sentences of the global batch are in each of this rank's chunks."""
        # numpy sorts numbers of 8 or 16 bits in one pass over them
        order = np.arange(len(lengths)) if self.official else np.argsort(lengths, kind="stable")
        if self.chunk is not None:
            # all ranks work at the same time on one run of sentences of similar length
            ends = [*range(self.chunk * self.world_size, len(order), self.chunk * self.world_size)]
            if ends and len(order) - ends[-1] < self.world_size:
                ends[-1] -= self.world_size  # so that the last run has a sentence for each rank
            return [self._part(run) for run in np.split(order, ends)]
        share = self._part(order) if self.official else order[self.rank :: self.world_size]
        return np.array_split(share, self.length_groups)

    def _part(self, run: NDArray[np.int64]) -> NDArray[np.int64]:
        """This rank's part of a run of sentences that all ranks share."""
        first, count = _own(len(run), self.rank, self.world_size)
        return run[first : first + count]

    def _padded_to(self, sentences: NDArray[np.int64]) -> list[int]:
        """The padded length of each stream of a chunk, in tokens."""
        longest = [int(lengths[sentences].max()) for lengths in self._longest]
        return [min(repeating_size(length), self.max_length) for length in longest] if self.packed else longest

    def _lengths(self, sentences: NDArray[np.int64], stream: int) -> NDArray[np.int64]:
        """Tokens of each view, [sentences, views]."""
        views = range(self.tokens.views)
        return np.stack([self.tokens.lengths(view, sentences, stream) for view in views], axis=1)

    def _chunk(
        self, sentences: NDArray[np.int64], places: NDArray[np.int64], longest: Sequence[int], seed: int
    ) -> Chunk:
        """Make a chunk; `longest` is what `_padded_to` returns."""
        views = range(self.tokens.views)
        streams = []
        for stream, (length, padding) in enumerate(zip(longest, self.paddings, strict=True)):
            ids = [self.tokens.padded(sentences, view, length, padding, stream) for view in views]
            streams.append((np.stack(ids, axis=1), self._lengths(sentences, stream)))
        row_ids = places[:, None] * len(views) + np.arange(len(views))
        return replace(make_chunk(streams, row_ids, self.corruption, self.packed), seed=seed)

    def _edited(self, sentences: NDArray[np.int64], epoch: int, length: int) -> Tensor:
        assert self.edits is not None
        views = range(self.tokens.views)
        ids = [self.edits.padded(sentences, epoch, view, length, self.paddings[-1]) for view in views]
        return torch.from_numpy(np.stack(ids, axis=1))

    def _text_ids(self, sentences: NDArray[np.int64]) -> Tensor:
        """64-bit hashes, [sentences, views]; `first_occurrences` states how likely two are equal by chance."""
        texts = (self.tokens.rows(sentences, view) for view in range(self.tokens.views))
        return torch.tensor([[row_hash(text.tobytes()) for text in view] for view in texts]).T.contiguous()


def collate(
    streams: Sequence[Sequence[Sequence[Sequence[int]]]],
    tokenizers: Tokenizers,
    masking_ratio: float,
    *,
    seed: int,
    first_row: int = 0,
) -> Chunk:
    """Make one chunk from token lists, padded to the longest and corrupted as in training.

    Args:
        streams: for each of `tokenizers.streams`, for each view, the ids of every sentence, special tokens included.
        first_row: sentence i has the row ids (first_row + i) * views + view.

    Raises:
        InputError: the tokenizer has no mask token.
    """
    padded = []
    for views, tokenizer in zip(streams, tokenizers.streams, strict=True):
        lengths = np.array([[len(ids) for ids in view] for view in views]).T
        ids = np.full((*lengths.shape, lengths.max()), padding_id(tokenizer), dtype=np.int64)
        for view, sentences in enumerate(views):
            for row, tokens in enumerate(sentences):
                ids[row, view, : len(tokens)] = tokens
        padded.append((ids, lengths))
    sentence_count, view_count = padded[0][1].shape
    row_ids = (first_row + np.arange(sentence_count))[:, None] * view_count + np.arange(view_count)
    return make_chunk(padded, row_ids, Corruption.of(tokenizers.discriminator, masking_ratio, seed))


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding id. For tokenizers without one (some decoders) any id will do: the attention mask hides it."""
    return 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def make_chunk(
    streams: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
    row_ids: NDArray[np.int64],
    corruption: Corruption | None,
    packed: bool = False,
) -> Chunk:
    """Make a chunk of padded rows.

    Args:
        streams: ids [C, S, L] and lengths [C, S] for the encoder, and for the discriminator if it has its own.
        row_ids: as `Chunk.row_ids`.
        packed: whether to list the positions that packed networks compute (`Chunk.real`).
    """
    tokens = [
        (torch.from_numpy(ids), torch.from_numpy((np.arange(ids.shape[-1]) < lengths[..., None]).astype(np.int64)))
        for ids, lengths in streams
    ]
    rows, (original_ids, original_mask) = torch.from_numpy(row_ids), tokens[-1]
    corrupted_ids, corrupted = original_ids, torch.empty(0, dtype=torch.int64)
    if corruption is not None:
        corrupted_ids, corrupted = corruption(original_ids, original_mask, rows)
    real = [torch.from_numpy(computed_positions(mask.numpy() > 0)) if packed else None for _, mask in tokens]
    own = (*tokens[1], real[1]) if len(tokens) > 1 else (None, None, None)
    return Chunk(*tokens[0], corrupted_ids, corrupted, rows, None, real[0], *own)
