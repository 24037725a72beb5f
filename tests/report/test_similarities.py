"""Similarities before and after training, against sentence-transformers, transformers and scipy used by themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer, util
from transformers import AutoModel, AutoTokenizer

from diffcse_scale.evaluation.tasks import read_pairs
from diffcse_scale.report.encodings import encode_runs, spread
from diffcse_scale.report.similarities import bands, histograms, neighbours
from diffcse_scale.runs.read import read_runs
from tests.support.toy_run import write_run

# cosines of float32 vectors, computed in batches of other shapes
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def encodings(two_runs):
    return encode_runs(read_runs(two_runs), None, [], 3)


@torch.no_grad()
def untrained(world, sentences: list[str]) -> np.ndarray:
    """The first token's vector by transformers alone, a sentence at a time."""
    model, tokenizer = AutoModel.from_pretrained(world / "model"), AutoTokenizer.from_pretrained(world / "model")
    tokens = [tokenizer(sentence, return_tensors="pt", truncation=True, max_length=32) for sentence in sentences]
    return torch.cat([model.eval()(**each).last_hidden_state[:, 0] for each in tokens]).numpy()


def test_means_and_spearman_are_those_of_the_encoders_by_themselves(world, two_runs, encodings):
    pairs = read_pairs(world / "pairs.tsv")
    scores = np.array([pair[0] for pair in pairs])
    model = SentenceTransformer(str(two_runs[1] / "model"))
    found = histograms(encodings)[1]
    for when, encode in (("before", lambda s: untrained(world, s)), ("after", model.encode)):
        # the untrained encoder is nearly blind: its cosines differ in the fifth digit, and are taken in float64
        first, second = (encode([pair[side] for pair in pairs]).astype(np.float64) for side in (1, 2))
        cosines = util.pairwise_cos_sim(first, second).numpy()
        assert getattr(found, f"spearman_{when}") == pytest.approx(100 * spearmanr(scores, cosines).statistic, abs=0.01)
        top = cosines[scores >= 4].mean()
        assert float(getattr(found.bands[0], when).mean) == pytest.approx(top, abs=0.0005 + TOLERANCE)
    assert sum(band.pairs for band in found.bands) == found.pairs == len(pairs)
    assert found.spearman_before != found.spearman_after


def test_the_untrained_encoder_is_encoded_once_for_runs_that_share_it(encodings):
    assert encodings[1].same_before == 0 and encodings[1].before is encodings[0].before
    assert not np.allclose(encodings[0].after, encodings[1].after)


@pytest.mark.parametrize(
    ("scores", "names", "counts"),
    [
        ([0, 0.9, 1, 4.9, 5, 5], ["0-1", "1-2", "2-3", "3-4", "4-5"], [2, 1, 0, 0, 3]),
        ([-1, 0, 1], ["-1--0.6", "-0.6--0.2", "-0.2-0.2", "0.2-0.6", "0.6-1"], [1, 0, 1, 0, 1]),
    ],
)
def test_bands_have_every_pair_once(scores, names, counts):
    found = bands(np.array(scores, dtype=float))
    assert [name for name, _ in found] == names
    assert [int(inside.sum()) for _, inside in found] == counts


def test_neighbours_are_the_nearest_of_the_set_without_the_sentence_itself(two_runs, encodings):
    samples = neighbours(encodings, 3)
    assert [sample.sentence for sample in samples] == encodings[0].samples
    sentences = encodings[0].sentences
    vectors = SentenceTransformer(str(two_runs[0] / "model")).encode(sentences)
    for sample in samples:
        before, after, other = sample.neighbourhoods
        assert (before.run, after.run, other.run) == (None, 0, 1)
        hits = util.semantic_search(vectors[[sentences.index(sample.sentence)]], vectors, top_k=4)[0]
        expected = [(sentences[hit["corpus_id"]], hit["score"]) for hit in hits][1:]
        assert [one.sentence for one in after.nearest] == [sentence for sentence, _ in expected]
        assert [one.cosine for one in after.nearest] == pytest.approx([score for _, score in expected], abs=TOLERANCE)
        known = {one.sentence for one in before.nearest}
        assert [one.fresh for one in after.nearest] == [one.sentence not in known for one in after.nearest]


def test_embeddings_that_are_not_finite_are_named_and_not_drawn(world, tmp_path):
    run = write_run(world, tmp_path / "run")
    weights = load_file(run / "model" / "model.safetensors")
    weights["embeddings.LayerNorm.weight"][:] = 3e38  # finite, but what is computed with it is not
    save_file(weights, run / "model" / "model.safetensors", {"format": "pt"})
    (own,) = encode_runs(read_runs([run]), None, [], 3)
    assert own.after is None and own.problems == ["The trained encoder's embeddings are not finite."]
    assert histograms([own])[0].bands[0].after is None


def test_samples_are_spread_over_the_set():
    assert spread(["a", "b", "c", "d", "e", "f"], 3) == ["a", "c", "e"]
    assert spread(["a"], 3) == ["a"] and spread([], 3) == []
