"""Global batches are the same for any number of ranks and known from the step alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.randomness import derive_seed
from diffcse_scale.recipe import DataRecipe
from diffcse_scale.text.batches import Batch, Batches, Chunk, collate, shares_of
from diffcse_scale.text.order import epoch_order
from diffcse_scale.text.sizes import repeating_size
from diffcse_scale.text.tokenizers import Tokenizers
from diffcse_scale.text.tokens import TokenizedCorpus, tokenize
from tests.support.text_material import SPECIALS, WORDS, make_tokenizer, sentence, training_recipe

Corpora = dict[int, TokenizedCorpus]
SIZE = 16
OFFICIAL = {"objective": {"fidelity": "official"}}
WAYS: list[dict[str, Any]] = [
    {},
    {"batch": {"length_groups": 3}},
    {"batch": {"chunk": 4}},
    {"batch": {"chunk": 3}},
    OFFICIAL,
    OFFICIAL | {"batch": {"chunk": 3}},
]
WAYS_IN_WORDS = ["whole", "3 groups", "even chunks", "uneven chunks", "official", "official chunks"]


@pytest.fixture(scope="module")
def make(corpora: Corpora, tokenizer: PreTrainedTokenizerFast) -> Any:
    """make(columns=..., rank=..., world_size=..., recipe sections) -> Batches of 16 sentences out of 101."""

    def make(columns: int = 1, rank: int = 0, world_size: int = 1, **sections: Any) -> Batches:
        batch = {"sentences": SIZE} | sections.pop("batch", {})
        recipe = training_recipe(batch=batch, **sections)
        return Batches(corpora[columns], Tokenizers.shared(tokenizer), recipe, rank, world_size)

    return make


def assert_same(first: Batch, second: Batch) -> None:
    assert (first.step, first.epoch, first.sentences) == (second.step, second.epoch, second.sentences)
    for a, b in zip(first.chunks, second.chunks, strict=True):
        for name in Chunk.__dataclass_fields__:
            one, other = getattr(a, name), getattr(b, name)
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, name


Row = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def rows_of(batches: list[Batch]) -> dict[int, Row]:
    """Row id to (ids, corrupted ids, corrupted positions) without the padding."""
    found: dict[int, Row] = {}
    for chunk in (chunk for batch in batches for chunk in batch.chunks):
        chosen = torch.zeros(chunk.input_ids.numel(), dtype=torch.bool)
        chosen[chunk.corrupted] = True
        tensors = (chunk.row_ids, chunk.attention_mask, chunk.input_ids, chunk.corrupted_ids)
        flat = [tensor.reshape(chunk.row_ids.numel(), -1) for tensor in (*tensors, chosen)]
        for row_id, mask, ids, corrupted_ids, selected in zip(*flat, strict=True):
            length = int(mask.sum())
            assert int(row_id) not in found
            assert not selected[length:].any()
            where = tuple(selected.nonzero().flatten().tolist())
            found[int(row_id)] = (tuple(ids[:length].tolist()), tuple(corrupted_ids[:length].tolist()), where)
    return found


@pytest.mark.parametrize("columns", [1, 2, 3])
@pytest.mark.parametrize("sections", WAYS, ids=WAYS_IN_WORDS)
def test_shares_of_any_number_of_ranks_make_up_the_same_global_batch(
    make: Any, columns: int, sections: dict[str, Any]
) -> None:
    for step in (0, 4, 8):
        whole = rows_of([make(columns).batch(step)])
        for world_size in (1, 2, 4, 5):
            ranks = [make(columns, rank, world_size, **sections) for rank in range(world_size)]
            assert rows_of([batches.batch(step) for batches in ranks]) == whole


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_a_global_batch_holds_its_positions_of_the_epochs_order(make: Any, corpora: Corpora, columns: int) -> None:
    views = corpora[columns].views
    step, epoch, first = 8, 1, 2 * SIZE  # 6 steps an epoch
    sentences = epoch_order(np.arange(first, first + SIZE), 101, 42, epoch)
    expected = {
        (epoch * 101 + first + place) * views + view: tuple(corpora[columns].rows(sentences[[place]], view)[0].tolist())
        for place in range(SIZE)
        for view in range(views)
    }
    batch = make(columns).batch(step)
    assert (batch.step, batch.epoch, batch.sentences) == (step, epoch, SIZE)
    assert {row_id: row[0] for row_id, row in rows_of([batch]).items()} == expected


def test_an_epoch_visits_every_sentence_at_most_once_and_drops_the_partial_batch(make: Any) -> None:
    batches = make()
    assert len(batches) == 101 // SIZE == 6
    epoch = rows_of([batches.batch(step) for step in range(6)])
    assert len({row[0] for row in epoch.values()}) == 6 * SIZE
    assert not epoch.keys() & rows_of([batches.batch(step) for step in range(6, 12)]).keys()


def test_the_order_differs_by_epoch_and_seed(make: Any) -> None:
    contents = [
        {row[0] for row in rows_of([make(seed=seed).batch(step)]).values()} for seed in (1, 2) for step in (0, 6)
    ]
    assert all(first != second for i, first in enumerate(contents) for second in contents[:i])


def test_the_two_views_of_a_sentence_are_corrupted_differently(make: Any) -> None:
    (chunk,) = make().batch(0).chunks
    assert torch.equal(chunk.input_ids[:, 0], chunk.input_ids[:, 1])
    assert not torch.equal(chunk.corrupted_ids[:, 0], chunk.corrupted_ids[:, 1])


def test_iterating_equals_random_access_from_any_step(make: Any) -> None:
    batches = make(columns=2, rank=1, world_size=2, batch={"length_groups": 2})
    with batches.prefetch(4, 15) as iterator:  # resumed in the middle of an epoch, over two epochs' ends
        for step, batch in zip(range(4, 15), iterator, strict=True):
            assert batch.step == step
            assert_same(batch, batches.batch(step))


def test_every_chunk_is_padded_to_its_own_longest_row_and_no_further(make: Any) -> None:
    chunks = make(columns=3, batch={"length_groups": 5, "packed": False}).batch(0).chunks
    assert [len(chunk.input_ids) for chunk in chunks] == [4, 3, 3, 3, 3]
    lengths = [int(chunk.attention_mask.sum(-1).max()) for chunk in chunks]
    assert [chunk.input_ids.shape[-1] for chunk in chunks] == lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]
    for chunk in chunks:
        assert chunk.input_ids.dtype == chunk.attention_mask.dtype == chunk.row_ids.dtype == torch.int64
        assert (chunk.input_ids[chunk.attention_mask == 0] == 0).all()
        assert (chunk.input_ids[chunk.attention_mask == 1] != 0).all()


def test_packed_rows_have_few_sizes(make: Any) -> None:
    """All real tokens are computed, and with them so much padding that the steps of an epoch share a few sizes."""
    chunks = [chunk for step in range(30) for chunk in make(batch={"chunk": 4}).batch(step).chunks]
    for chunk in chunks:
        assert chunk.real is not None
        real = chunk.attention_mask.flatten().nonzero().flatten()
        assert set(real.tolist()) <= set(chunk.real.tolist())
        assert len(chunk.real) <= max(len(real) * 9 / 8, 16)
        assert len(chunk.real) in {repeating_size(len(chunk.real)), chunk.attention_mask.numel() - 1}


@pytest.mark.parametrize(("chunk", "sizes"), [(4, [4, 4]), (3, [3, 3, 2]), (1, [1] * 8), (100, [8])])
def test_a_share_is_cut_into_chunks_the_last_of_which_may_be_smaller(make: Any, chunk: int, sizes: list[int]) -> None:
    for rank in range(2):
        chunks = make(rank=rank, world_size=2, batch={"chunk": chunk}).batch(0).chunks
        assert [len(chunk.input_ids) for chunk in chunks] == sizes


def test_chunks_and_their_seeds_do_not_depend_on_the_ranks_where_they_divide_a_share(make: Any) -> None:
    def chunks(world_size: int) -> dict[int | None, list[int]]:
        ranks = [make(rank=rank, world_size=world_size, batch={"chunk": 4}) for rank in range(world_size)]
        found = [chunk for batches in ranks for chunk in batches.batch(3).chunks]
        return {chunk.seed: chunk.row_ids.flatten().tolist() for chunk in found}

    assert len(chunks(1)) == 4
    assert chunks(1) == chunks(2) == chunks(4)


def test_every_chunk_of_every_step_has_a_seed_of_its_own(make: Any) -> None:
    ranks = [make(rank=rank, world_size=2, batch={"chunk": 3}) for rank in range(2)]
    seeds = [chunk.seed for batches in ranks for step in range(5) for chunk in batches.batch(step).chunks]
    assert len(set(seeds)) == len(seeds) == 2 * 5 * 3


def test_chunks_that_ranks_work_on_together_have_nearly_the_same_length(make: Any) -> None:
    ranks = [make(rank=rank, world_size=2, batch={"chunk": 4}).batch(0).chunks for rank in range(2)]
    for first, second in zip(*ranks, strict=True):
        # sorted by length: no sentence of rank 0's chunk is longer than any of rank 1's at the same time
        assert first.attention_mask.sum(-1).max() <= second.attention_mask.sum(-1).min()


def test_a_batch_is_sorted_by_numbers_that_are_sorted_in_one_pass(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rank sorts the global batch: numpy compares 64-bit numbers, and counts those of at most 16 bits."""
    sort, sorted_by = np.argsort, []
    monkeypatch.setattr(np, "argsort", lambda keys, **options: sorted_by.append(keys.itemsize) or sort(keys, **options))
    make().batch(0)
    assert sorted_by == [1]


@pytest.mark.parametrize("chunk", [None, 5, 100], ids=str)
def test_ranks_hold_equal_shares_with_nearly_equal_work(make: Any, chunk: int | None) -> None:
    """Also where a chunk is more than a share: not the shortest sentences to one rank, and the longest to another."""
    shares = [make(rank=rank, world_size=4, batch={"chunk": chunk}).batch(0).chunks for rank in range(4)]
    assert [sum(len(chunk.input_ids) for chunk in chunks) for chunks in shares] == [4, 4, 4, 4]
    tokens = [sum(int(chunk.attention_mask.sum()) for chunk in chunks) for chunks in shares]
    lengths = make().batch(0).chunks[0].attention_mask.sum(-1)
    # sorted and dealt in turn, two ranks differ by no more than the longest and the shortest sentence do
    assert max(tokens) - min(tokens) <= int(lengths.max() - lengths.min()) * 2


def test_official_pads_all_ranks_to_the_longest_row_of_the_global_batch_in_the_epochs_order(
    make: Any,
) -> None:
    steps = range(6)
    for step in steps:
        shares = [make(rank=rank, world_size=4, **OFFICIAL).batch(step).chunks for rank in range(4)]
        assert [len(chunks) for chunks in shares] == [1, 1, 1, 1]
        longest = max(int(chunk.attention_mask.sum(-1).max()) for (chunk,) in shares)
        assert {chunk.input_ids.shape[-1] for (chunk,) in shares} == {longest}
        row_ids = torch.cat([chunk.row_ids for (chunk,) in shares]).flatten()
        assert row_ids.tolist() == list(range(step * SIZE * 2, (step + 1) * SIZE * 2))


def test_without_replaced_token_detection_nothing_is_corrupted(
    corpora: Corpora, tokenizer: PreTrainedTokenizerFast
) -> None:
    recipe = training_recipe(batch={"sentences": SIZE}, objective={"rtd_weight": 0})
    decoder = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)  # no mask, no padding token
    (chunk,) = Batches(corpora[1], Tokenizers.shared(decoder), recipe).batch(0).chunks
    assert torch.equal(chunk.corrupted_ids, chunk.input_ids)
    assert len(chunk.corrupted) == 0


def test_to_moves_every_tensor(make: Any) -> None:
    (chunk,) = make().batch(0).chunks
    moved = chunk.to("meta", non_blocking=True)
    assert moved.seed == chunk.seed
    tensors = [name for name in Chunk.__dataclass_fields__ if isinstance(getattr(chunk, name), torch.Tensor)]
    assert len(tensors) == 6 and all(getattr(moved, name).is_meta for name in tensors)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"world_size": 17},
            "batch.sentences = 16 is fewer than the 17 devices, and each needs at least one; use fewer",
        ),
        ({"world_size": 3, "batch": {"chunk": 1}}, "one chunk more than others, .* equally; set batch.chunk=2"),
        ({"world_size": 4, "batch": {"length_groups": 5}}, "length_groups = 5 is more than the 4 sentences"),
        ({"world_size": 3, "batch": {"length_groups": 6}}, "length_groups = 6 is more than the 5 sentences"),
        (
            {"batch": {"sentences": 102}},
            "has 101 sentences, fewer than one global batch .batch.sentences = 102",
        ),
    ],
)
def test_sizes_that_cannot_work_are_refused(make: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**arguments)


def _earlier_parts(lengths: np.ndarray, sections: dict[str, Any], rank: int, world_size: int) -> list[np.ndarray]:
    """Which sentences were in a rank's chunks when every rank had to have as many: the function of that time."""
    chunk = sections.get("batch", {}).get("chunk")
    official = "objective" in sections
    if chunk is not None and chunk > SIZE // world_size:
        chunk = None
    narrow = lengths.astype(np.min_scalar_type(lengths.max()))
    order = np.arange(len(lengths)) if official else np.argsort(narrow, kind="stable")
    if chunk is not None:
        runs = np.split(order, range(chunk * world_size, len(order), chunk * world_size))
        return [np.split(run, world_size)[rank] for run in runs]
    share = np.split(order, world_size)[rank] if official else order[rank::world_size]
    return np.array_split(share, sections.get("batch", {}).get("length_groups", 1))


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("sections", WAYS, ids=WAYS_IN_WORDS)
def test_equal_shares_are_what_they_were(make: Any, corpora: Corpora, columns: int, sections: dict[str, Any]) -> None:
    """A run that an earlier version began goes on with the same rows in the same chunks, seeds and padding included."""
    tokens, step, epoch, first = corpora[columns], 8, 1, 2 * SIZE  # 6 steps an epoch
    sentences = epoch_order(np.arange(first, first + SIZE), 101, 42, epoch)
    lengths = np.max([tokens.lengths(view, sentences) for view in range(tokens.views)], axis=0)
    for world_size in (1, 2, 4, 16):
        if SIZE // world_size < sections.get("batch", {}).get("length_groups", 1):
            continue
        for rank in range(world_size):
            chunks = make(columns, rank, world_size, **sections).batch(step).chunks
            parts = _earlier_parts(lengths, sections, rank, world_size)
            for number, (chunk, part) in enumerate(zip(chunks, parts, strict=True)):
                assert chunk.row_ids[:, 0].tolist() == ((epoch * 101 + first + part) * tokens.views).tolist()
                assert chunk.seed == derive_seed(42, "dropout", step, number * world_size + rank)
                longest = int(lengths.max() if "objective" in sections else lengths[part].max())
                packed = "objective" not in sections
                assert chunk.input_ids.shape[-1] == (min(repeating_size(longest), 32) if packed else longest)


@pytest.mark.parametrize("chunk", [None, 2, 3, 5, 6])
@pytest.mark.parametrize("world_size", [3, 5, 6, 7, 11])
def test_any_number_of_ranks_shares_a_batch(make: Any, world_size: int, chunk: int | None) -> None:
    """Shares differ by one sentence; every rank has as many chunks as each other, none empty, none too large."""
    lengths = np.arange(SIZE, dtype=np.uint8) % 5
    ranks = [make(1, rank, world_size, batch={"chunk": chunk})._parts(lengths) for rank in range(world_size)]
    sizes = [[len(part) for part in parts] for parts in ranks]
    assert [sum(own) for own in sizes] == shares_of(SIZE, world_size)
    assert max(map(sum, sizes)) - min(map(sum, sizes)) == 1
    assert len(set(map(len, sizes))) == 1
    assert min(map(min, sizes)) > 0 and max(map(max, sizes)) <= (chunk or SIZE)
    assert sorted(np.concatenate([part for parts in ranks for part in parts]).tolist()) == list(range(SIZE))


def test_collate_makes_a_chunk_of_token_lists(tokenizer: PreTrainedTokenizerFast) -> None:
    first, second = [[2, 9, 3], [2, 10, 11, 12, 3]], [[2, 13, 14, 3], [2, 15, 3]]
    tokenizers = Tokenizers.shared(tokenizer)
    chunk = collate([[first, second]], tokenizers, 1.0, seed=3, first_row=10)
    assert chunk.input_ids.tolist() == [
        [[2, 9, 3, 0, 0], [2, 13, 14, 3, 0]],
        [[2, 10, 11, 12, 3], [2, 15, 3, 0, 0]],
    ]
    assert torch.equal(chunk.attention_mask, (chunk.input_ids != 0).long())
    assert chunk.row_ids.tolist() == [[20, 21], [22, 23]]
    assert chunk.corrupted.tolist() == [1, 6, 7, 11, 12, 13, 16]
    again = collate([[first[1:], second[1:]]], tokenizers, 1.0, seed=3, first_row=11)
    assert torch.equal(again.corrupted_ids[0], chunk.corrupted_ids[1])


def test_a_discriminator_with_its_own_tokenizer_gets_a_stream_of_its_own(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    other = make_tokenizer(["x", *WORDS])  # every word has another id
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(sentence(index) for index in range(40)) + "\n", encoding="utf-8")
    recipe = training_recipe(batch={"sentences": SIZE, "chunk": 6})
    tokenizers = Tokenizers(tokenizer, other)
    data = DataRecipe.model_validate({"files": str(path), "cache_dir": str(tmp_path), "workers": 1})
    tokens = tokenize(data, tokenizers.streams)
    both = Batches(tokens, tokenizers, recipe).batch(1).chunks
    shared = Batches(tokenize(data, [tokenizer]), Tokenizers.shared(tokenizer), recipe).batch(1).chunks
    assert [len(chunk.input_ids) for chunk in both] == [6, 6, 4]
    for chunk, expected in zip(both, shared, strict=True):
        assert torch.equal(chunk.input_ids, expected.input_ids)
        assert torch.equal(chunk.original_mask, expected.attention_mask)
        words = chunk.input_ids >= len(SPECIALS)
        assert torch.equal(chunk.original_ids, chunk.input_ids + words.long())
        # corruption selects the same places and speaks the discriminator's vocabulary
        assert torch.equal(chunk.corrupted, expected.corrupted)
        masked = chunk.corrupted_ids.flatten()[chunk.corrupted] == other.mask_token_id
        assert 0.6 < masked.float().mean() <= 1.0
        untouched = torch.ones(chunk.corrupted_ids.numel(), dtype=torch.bool).index_fill(0, chunk.corrupted, False)
        assert torch.equal(chunk.corrupted_ids.flatten()[untouched], chunk.original_ids.flatten()[untouched])


PAIRS = [("a red dog", "a dog"), ("a red dog", "an animal"), ("a cat", "an animal"), ("an animal", "a cat")]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenizedCorpus, Tokenizers]:
    """Eight rows, whose texts repeat within a column and across."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = [*PAIRS, *((f"{first} and {first}", f"{second} too") for first, second in PAIRS)]
    (folder / "pairs.tsv").write_text("a\tb\n" + "".join(f"{first}\t{second}\n" for first, second in rows))
    tokenizer = make_tokenizer(sorted({word for row in rows for text in row for word in text.split()}))
    data = {"files": str(folder / "pairs.tsv"), "columns": ["a", "b"], "cache_dir": str(folder), "workers": 1}
    return tokenize(DataRecipe.model_validate(data), [tokenizer]), Tokenizers.shared(tokenizer)


@pytest.mark.parametrize("batch", [{}, {"chunk": 3}, {"length_groups": 2}], ids=["whole", "chunks", "groups"])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_texts_have_one_number_wherever_they_are_in_a_global_batch(pairs, world_size, batch):
    recipe = training_recipe(batch={"sentences": 8, **batch})
    of_ranks = [Batches(*pairs, recipe, rank, world_size).batch(0) for rank in range(world_size)]
    chunks = [chunk for batch in of_ranks for chunk in batch.chunks]
    texts = [
        tuple(ids[: int(mask.sum())].tolist())
        for chunk in chunks
        for ids, mask in zip(chunk.input_ids.flatten(0, 1), chunk.attention_mask.flatten(0, 1), strict=True)
    ]
    numbers = torch.cat([chunk.text_ids.flatten() for chunk in chunks]).tolist()
    assert len(texts) == 16 and len(set(texts)) < 12
    assert len(set(zip(texts, numbers, strict=True))) == len(set(texts)) == len(set(numbers))


def test_texts_have_no_number_where_nothing_is_to_be_masked(make, pairs):
    assert make(columns=1).batch(0).chunks[0].text_ids is None  # the corpus has no two rows of the same tokens
    assert make(columns=3).batch(0).chunks[0].text_ids.shape == (SIZE, 3)
    for objective in ({"false_negatives": "keep"}, {"fidelity": "official"}):
        recipe = training_recipe(batch={"sentences": 8}, objective=objective)
        assert Batches(*pairs, recipe).batch(0).chunks[0].text_ids is None
