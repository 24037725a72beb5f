"""Use the InfoNCE kernel in sentence-transformers' own trainer. Only one import changes.

    python examples/sentence_transformers_trainer.py OUTPUT [ENCODER]

ENCODER is a folder or Hub name of a transformers model. The default is the tiny model of this package.
"""

from __future__ import annotations

import sys

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from diffcse_scale.embedded import backbone_path
from diffcse_scale.embedded.grammar import graded_pairs, training_sentences
from diffcse_scale.losses import MultipleNegativesRankingLoss  # instead of sentence_transformers.losses

output, name = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else str(backbone_path())
transformer = Transformer(name, max_seq_length=32)
model = SentenceTransformer(modules=[transformer, Pooling(transformer.get_embedding_dimension(), "mean")])
grades, first, second = zip(*graded_pairs(500, seed=1), strict=True)
evaluator = EmbeddingSimilarityEvaluator(first, second, grades)
print(f"Spearman x 100 before: {100 * evaluator(model)['spearman_cosine']:.2f}")

sentences = training_sentences(64 * 60, seed=2)
trainer = SentenceTransformerTrainer(
    model,
    SentenceTransformerTrainingArguments(
        output,
        per_device_train_batch_size=64,
        num_train_epochs=1,
        learning_rate=3e-4,
        seed=42,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    ),
    # unsupervised SimCSE: the same sentence twice, and dropout makes the views differ
    train_dataset=Dataset.from_dict({"anchor": sentences, "positive": sentences}),
    loss=MultipleNegativesRankingLoss(model, scale=20),
)
trainer.train()
print(f"Spearman x 100 after:  {100 * evaluator(model)['spearman_cosine']:.2f}")
model.save_pretrained(output)
