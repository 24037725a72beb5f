"""Use InfoNCE in a loop of your own: unsupervised SimCSE in plain PyTorch.

    python examples/plain_pytorch.py [ENCODER]

ENCODER is a folder or Hub name of a transformers model. The default is the tiny model of this package.
"""

from __future__ import annotations

import sys

import torch
from diffcse_kernels.nn import InfoNCE
from scipy.stats import spearmanr
from torch.nn.functional import cosine_similarity
from transformers import AutoModel, AutoTokenizer

from diffcse_scale.embedded import backbone_path
from diffcse_scale.embedded.grammar import graded_pairs, training_sentences

torch.manual_seed(42)
name = sys.argv[1] if len(sys.argv) > 1 else backbone_path()
tokenizer, encoder = AutoTokenizer.from_pretrained(name), AutoModel.from_pretrained(name)


def embed(sentences: list[str]) -> torch.Tensor:
    tokens = tokenizer(sentences, padding=True, truncation=True, max_length=32, return_tensors="pt")
    hidden, mask = encoder(**tokens).last_hidden_state, tokens["attention_mask"].unsqueeze(-1)
    return (hidden * mask).sum(1) / mask.sum(1)


@torch.no_grad()
def score() -> float:
    encoder.eval()
    grades, first, second = zip(*graded_pairs(500, seed=1), strict=True)
    return 100 * spearmanr(grades, cosine_similarity(embed(list(first)), embed(list(second)))).statistic


print(f"Spearman x 100 before: {score():.2f}")
loss_of = InfoNCE(temperature=0.05)
optimizer = torch.optim.AdamW(encoder.parameters(), lr=3e-4)
encoder.train()  # dropout is the only difference between the two views of a sentence
sentences = training_sentences(64 * 60, seed=2)
for start in range(0, len(sentences), 64):
    batch = sentences[start : start + 64]
    loss = loss_of(embed(batch), embed(batch))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print(f"Spearman x 100 after:  {score():.2f}, loss {loss.item():.3f}")
