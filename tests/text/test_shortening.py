"""A long text is cut before it is tokenized, and its tokens are those of the whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from diffcse_scale.embedded import backbone_path
from diffcse_scale.embedded.grammar import training_sentences
from diffcse_scale.text.shortening import CHARACTERS, MOST_CHARACTERS, shortened

TEXT = training_sentences(300, seed=3)


def fast(backend: Tokenizer, trainer: trainers.Trainer) -> PreTrainedTokenizerFast:
    backend.train_from_iterator([*TEXT, "aaaa" * 40, "= = ==== ========", "e\u0301 \u00e9 \ufb01"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<unk>")


def word_piece() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(backbone_path())


def byte_level() -> PreTrainedTokenizerBase:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return fast(backend, trainers.BpeTrainer(vocab_size=600, show_progress=False, initial_alphabet=alphabet))


def unigram() -> PreTrainedTokenizerBase:
    """As a SentencePiece model with its own normalization, and nothing that splits words but the model itself."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400, show_progress=False, unk_token="<unk>", special_tokens=["<unk>"], max_piece_length=16
    )
    return fast(backend, trainer)


@pytest.fixture(scope="module", params=[word_piece, byte_level, unigram], ids=lambda make: make.__name__)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    make: Callable[[], PreTrainedTokenizerBase] = request.param
    return make()


def truncated(tokenizer: PreTrainedTokenizerBase, text: str, max_length: int) -> list[int]:
    ids: list[int] = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
    return ids


BLANKS = st.sampled_from([" ", "  ", "\t", "\n", " \u00a0 ", "\u3000", " " * 90])
WORDS = st.sampled_from(
    [
        *TEXT[0].split(),
        "a" * 7,
        "a" * 130,
        "=" * 301,
        "\u4e2d\u6587" * 5,
        "e\u0301",
        "\u0301" * 40,
        "\u200d",
        "...,,;",
        "\ufb01",
    ]
)
LONG_TEXTS = st.lists(st.tuples(WORDS, st.integers(1, 60), BLANKS), min_size=1, max_size=12).map(
    lambda parts: "".join((word + blank) * count for word, count, blank in parts)
)


LATE_WORD = "\u200d  " * 10 + "a" * 130 + " "  # unknown as a whole, and many tokens if it is cut


@settings(max_examples=60, deadline=None)
@example(text=LATE_WORD, max_length=4)
@given(text=LONG_TEXTS, max_length=st.sampled_from([4, 9, 32]))
def test_the_first_tokens_are_those_of_the_whole_text(
    tokenizer: PreTrainedTokenizerBase, text: str, max_length: int
) -> None:
    (piece,) = shortened(tokenizer, [text], max_length)
    assert text.startswith(piece)
    assert truncated(tokenizer, piece, max_length) == truncated(tokenizer, text, max_length)
    assert len(tokenizer(piece)["input_ids"]) > max_length or piece == text


def test_documents_are_cut_and_sentences_are_not(tokenizer: PreTrainedTokenizerBase) -> None:
    document = " ".join(TEXT)
    sentence, piece = shortened(tokenizer, [TEXT[0], document], 16)
    assert sentence == TEXT[0]
    assert len(piece) == 2 * 16 * CHARACTERS + 1 < len(document) / 10


@pytest.mark.parametrize("word", ["word ", "\u4e2d", "x"])
def test_a_line_of_megabytes_is_never_read_as_a_whole(word: str) -> None:
    """A word without an end is one unknown token, however much of it is looked at: it is cut at the limit."""
    read: list[int] = []
    real = word_piece()

    class Counting:
        truncation_side = "right"
        num_special_tokens_to_add = staticmethod(real.num_special_tokens_to_add)

        def __call__(self, texts: list[str], **options: bool) -> object:
            read.extend(map(len, texts))
            return real([text[:2000] for text in texts], **options)  # the same tokens, for these texts

    text = word * (5_000_000 // len(word))
    (piece,) = shortened(Counting(), [text], 32)  # type: ignore[arg-type]
    assert max(read, default=0) < MOST_CHARACTERS
    assert len(piece) == (MOST_CHARACTERS if word == "x" else 2 * 32 * CHARACTERS + 1)


def test_no_limit_cuts_nothing_and_neither_does_a_tokenizer_that_keeps_the_end() -> None:
    document = " ".join(TEXT)
    tokenizer = word_piece()
    assert shortened(tokenizer, [document], None) == [document]
    assert shortened(tokenizer, [document], 10**30) == [document]
    tokenizer.truncation_side = "left"
    assert shortened(tokenizer, [document], 8) == [document]
