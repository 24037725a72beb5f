"""What the networks cannot see is counted, told and, where it is most of a corpus, refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.recipe import DataRecipe
from diffcse_scale.text.tokens import tokenize
from diffcse_scale.text.unknown import percent, share_unknown, unknown_id
from tests.support.text_material import WORDS, make_tokenizer, rows

MakeRecipe = Callable[..., DataRecipe]


def corpus(folder: Path, *lines: str, name: str = "corpus.txt") -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_the_share_of_unknown_tokens_is_told(
    tmp_path: Path, recipe: MakeRecipe, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Counted in what is kept of a sentence; special tokens do not count."""
    path = corpus(tmp_path, "w1 other w2 w3", "w4 w5 w6", "w7 w8 w9 w10 w11 many more words")
    tokens = tokenize(recipe(path, max_length=7), [tokenizer])
    assert tokens.unknown == [1 / 12]
    assert str(tokens).endswith("1 sentences (33.3%) truncated to 7 tokens; 8.3% of the tokens unknown")


def test_a_corpus_that_is_mostly_unknown_is_refused_and_one_that_is_half_is_not(
    tmp_path: Path, recipe: MakeRecipe, tokenizer: PreTrainedTokenizerFast
) -> None:
    half, more = corpus(tmp_path, "w1 other", "other w2"), corpus(tmp_path, "other word", "老 w2 公园", name="more.txt")
    assert tokenize(recipe(half), [tokenizer]).unknown == [0.5]
    with pytest.raises(InputError, match=r"more\.txt: 83.3% of its tokens are unknown .*\[UNK\].*choose a model"):
        tokenize(recipe(more), [tokenizer])
    with pytest.raises(InputError, match=r"83\.3%"):  # nothing is kept of it
        tokenize(recipe(more), [tokenizer])


def test_each_of_two_tokenizers_has_its_share(
    tmp_path: Path, recipe: MakeRecipe, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = corpus(tmp_path, "w1 w2 w3 w199", "w5 w6 w7 w8")
    assert tokenize(recipe(path), [tokenizer, make_tokenizer(WORDS[:199])]).unknown == [0, 1 / 8]
    with pytest.raises(InputError, match="100% of its tokens are unknown"):
        tokenize(recipe(path), [tokenizer, make_tokenizer(["nothing"])])


def test_a_column_that_is_unknown_is_named_however_well_known_the_other_is(
    tmp_path: Path, recipe: MakeRecipe, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = corpus(tmp_path, "a,b", *(f"w{n} w2 w3 w4 w5 w6,老师 学生" for n in range(9)), name="pairs.csv")
    with pytest.raises(InputError, match="100% of its tokens in b are unknown to the tokenizer"):
        tokenize(recipe(path, columns=["a", "b"]), [tokenizer])


@pytest.mark.parametrize("words", [["w1"], ["w1", "a"]])
def test_a_vocabulary_without_its_unknown_token_is_told_where_it_is_needed(
    tmp_path: Path, recipe: MakeRecipe, words: list[str]
) -> None:
    backend = Tokenizer(
        models.WordPiece({"[PAD]": 0, **{word: 1 + n for n, word in enumerate(words)}}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", name_or_path="mine")
    with pytest.raises(
        InputError, match=r"mine cannot read a word .* \(WordPiece error: Missing \[UNK\].*unknown token"
    ):
        tokenize(recipe(corpus(tmp_path, "w1", "other")), [tokenizer])


def test_characters_that_a_tokenizer_leaves_out_are_counted_too(tmp_path: Path, recipe: MakeRecipe) -> None:
    """As BPE does that was trained without an unknown token. Spaces do not count."""
    backend = Tokenizer(models.BPE({"[PAD]": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", name_or_path="mine")
    lines = ["ab ba xay", "ab b"]
    assert share_unknown(tokenizer, lines, None) == 2 / 10
    assert tokenize(recipe(corpus(tmp_path, *lines)), [tokenizer]).unknown == [2 / 10]
    with pytest.raises(InputError, match="75% of its characters are unknown to the tokenizer of mine, which leaves"):
        tokenize(recipe(corpus(tmp_path, "axyz", "xyzb")), [tokenizer])
    only_b = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE({"[PAD]": 0, "b": 1}, [])), pad_token="[PAD]"
    )
    with pytest.raises(InputError, match="finds no token in 'a'"):
        tokenize(recipe(corpus(tmp_path, "b", "bb")), [only_b])


def test_a_byte_level_tokenizer_knows_every_text(tmp_path: Path, recipe: MakeRecipe) -> None:
    """Its "unknown" token is the one that ends a text, as in GPT-2."""
    alphabet = {token: index for index, token in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    backend = Tokenizer(models.BPE({**alphabet, "<|end|>": 256}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    end = "<|end|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=end, eos_token=end, pad_token=end)
    assert unknown_id(tokenizer) is None
    tokens = tokenize(recipe(corpus(tmp_path, "老师在公园看书", f"text {end} {end} {end}")), [tokenizer])
    assert tokens.unknown == [0]


def test_rows_with_the_same_tokens_are_one_row(
    tmp_path: Path, recipe: MakeRecipe, tokenizer: PreTrainedTokenizerFast
) -> None:
    """By case, by what follows the cut, by words that are not in the vocabulary; the first stays, and the order."""
    lines = ["w1 w2 w3", "w9", "W1 w2  W3", "w4 w5 w6 w7 first", "w4 w5 w6 w7 second", "w8 one", "w8 two", "w3 w2 w1"]
    tokens = tokenize(recipe(corpus(tmp_path, *lines), max_length=6), [tokenizer])
    kept = [lines[index] for index in (0, 1, 3, 5, 7)]
    assert rows(tokens) == tokenizer(kept, truncation=True, max_length=6)["input_ids"]
    assert (tokens.equal, tokens.truncated) == (3, 1)
    assert "8 rows read, 8 kept; dropped: none; 3 left out because an earlier one has the same tokens" in str(tokens)


@pytest.mark.parametrize("columns", [2, 3])
def test_of_pairs_and_triples_all_columns_count(
    tmp_path: Path, recipe: MakeRecipe, tokenizer: PreTrainedTokenizerFast, columns: int
) -> None:
    """A first sentence may come again with another second one; what ends a column is no part of the next."""
    table = [("w1", "w2 w3", "w4"), ("W1", "W2 w3", "W4"), ("w1", "w2", "w4"), ("w1 w2", "w3", "w4")]
    names = ["one", "two", "three"][:columns]
    lines = ["\t".join(row[:columns]) for row in [names, *table]]
    data = recipe(corpus(tmp_path, *lines, name="rows.tsv"), columns=names)
    tokens = tokenize(data, [tokenizer])
    assert tokens.equal == 1
    for view in range(columns):
        expected = tokenizer([table[index][view] for index in (0, 2, 3)])["input_ids"]
        assert rows(tokens, view) == expected


def test_rows_are_the_same_to_the_encoder_whatever_the_discriminator_reads(
    tmp_path: Path, recipe: MakeRecipe, tokenizer: PreTrainedTokenizerFast
) -> None:
    other = make_tokenizer([*WORDS, "one", "two"])
    tokens = tokenize(recipe(corpus(tmp_path, "w8 one w1", "w8 two w1", "w2 w3 w4")), [tokenizer, other])
    assert (len(tokens), tokens.equal) == (2, 1)


@pytest.mark.parametrize(
    ("share", "words"), [(0, "0%"), (1, "100%"), (0.0830, "8.3%"), (1e-7, "less than 0.1%"), (0.2, "20%")]
)
def test_a_share_in_words(share: float, words: str) -> None:
    assert percent(share) == words
