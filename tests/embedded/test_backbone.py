"""The embedded backbone: small, loadable as encoder and as generator, and really trained."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from diffcse_scale.embedded import backbone_path
from diffcse_scale.embedded.grammar import training_sentences

# written for this test: in no corpus
PLAIN = [
    "The old bridge was built in the middle of the century by a local company.",
    "She was born in the south of the country and moved to the capital with her family.",
    "He became a member of the team in the summer and played for two years.",
    "The river flows through the city and into a lake near the border.",
    "Many of the people who live in the village work in the fields.",
    "It is one of the oldest churches in this part of the country.",
    "The first part of the book was published at the end of the year.",
    "In the same year he was elected as the president of the council.",
    "There are several schools and a small hospital in the town.",
    "The band released their second album after a tour of Europe.",
    "After the war he returned to the university and taught history.",
    "The film was directed by a young woman and won three awards.",
    "A large number of birds can be seen on the island in the spring.",
    "The station is on the main line between the two cities.",
    "Most of the houses in the street were destroyed by the fire.",
    "They have been used for a long time as a source of food.",
    "The king gave the land to his son, who was the head of the army.",
    "Some of these words are also found in other languages.",
    "The new law was passed by the government at the beginning of the month.",
    "The game was played in front of a large crowd and ended in a draw.",
]

FLOOR = 0.35  # of the tokens of PLAIN


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(backbone_path())


@pytest.fixture(scope="module")
def masked_lm():
    return AutoModelForMaskedLM.from_pretrained(backbone_path(), dtype=torch.float32).eval()


def test_the_folder_is_under_six_megabytes():
    files = [path for path in backbone_path().rglob("*") if path.is_file()]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in files}
    assert sum(path.stat().st_size for path in files) < 6_000_000


def test_it_is_the_documented_network(masked_lm, tokenizer):
    config = masked_lm.config
    size = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.intermediate_size)
    assert size == (2, 128, 2, 512)
    assert config.max_position_embeddings == 128
    assert config.vocab_size == len(tokenizer) == 8192
    assert config.hidden_dropout_prob > 0, "two views differ by dropout only"
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert all(parameter.dtype == torch.float32 for parameter in masked_lm.parameters())


def test_it_loads_as_an_encoder_with_the_same_weights(masked_lm):
    encoder = AutoModel.from_pretrained(backbone_path(), add_pooling_layer=False)
    assert encoder.dtype == torch.float32
    expected = masked_lm.base_model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in encoder.state_dict().items())


def test_text_is_lower_cased(tokenizer):
    assert tokenizer("The Old Bridge").input_ids == tokenizer("the old bridge").input_ids


def _guesses(model, tokenizer) -> tuple[float, Counter[int]]:
    """Share of the tokens of PLAIN that the model guesses when each is masked in turn, and the tokens."""
    right, tokens = 0, Counter()
    for sentence in PLAIN:
        ids = tokenizer(sentence, return_tensors="pt").input_ids
        positions = torch.arange(1, ids.shape[1] - 1)
        rows = ids.repeat(len(positions), 1)
        rows[torch.arange(len(positions)), positions] = tokenizer.mask_token_id
        with torch.inference_mode():
            logits = model(input_ids=rows).logits[torch.arange(len(positions)), positions]
        right += int((logits.argmax(-1) == ids[0, positions]).sum())
        tokens.update(ids[0, positions].tolist())
    return right / tokens.total(), tokens


def test_it_guesses_masked_tokens_of_plain_sentences(masked_lm, tokenizer):
    accuracy, tokens = _guesses(masked_lm, tokenizer)
    torch.manual_seed(0)
    untrained, _ = _guesses(type(masked_lm)(masked_lm.config).eval(), tokenizer)
    commonest = tokens.most_common(1)[0][1] / tokens.total()
    assert untrained < 0.01
    assert accuracy > FLOOR > commonest, f"{accuracy:.3f}; always the commonest token would be {commonest:.3f}"


def test_the_vocabulary_covers_the_grammar(tokenizer):
    sentences = training_sentences(500, seed=4)
    words = sum(len(sentence.replace(",", " ,").split()) for sentence in sentences)
    tokens = [tokenizer.tokenize(sentence) for sentence in sentences]
    assert sum(map(len, tokens)) < 1.25 * words
    assert not any("[UNK]" in sentence for sentence in tokens)


def test_the_record_says_how_it_was_made_without_naming_a_machine():
    text = (backbone_path() / "training_record.json").read_text()
    record = json.loads(text)
    assert record["command"].startswith("diffcse-scale pretrain-generator --files '$DIFFCSE_DATA/")
    assert record["held_out_after"]["accuracy"] > 10 * record["held_out_before"]["accuracy"]
    assert '"/' not in text
