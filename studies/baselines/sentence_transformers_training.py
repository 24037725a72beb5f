"""Complete runs of sentence-transformers' own trainer, as in its documentation: text in, model folder out.

    python -m studies.baselines.sentence_transformers_training '{"method": "simcse", ...}'   # the fields of `Training`

simcse: unsupervised SimCSE (Gao et al. 2021), MultipleNegativesRankingLoss on each sentence twice; dropout differs.
tsdae: DenoisingAutoEncoderLoss (Wang et al. 2021), its decoder tied to the encoder; 60% of the words are deleted.
pairs: MultipleNegativesRankingLoss on pairs of columns "anchor" and "positive".
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

DELETED = 0.6  # share of the words, as in the paper and in the library's own noise


@dataclass(frozen=True)
class Training:
    """One run.

    Attributes:
        text: file with one sentence per line; with the method `pairs`, two sentences separated by a tab.
        steps: maximum number of steps; -1 for all epochs.
    """

    method: str
    backbone: str
    pooling: str
    text: str
    output: str
    seed: int
    batch: int
    epochs: int
    learning_rate: float
    warmup: float
    max_length: int
    steps: int


def without_most_words(sentence: str, rng: random.Random) -> str:
    """Delete about `DELETED` of a sentence's words, which spaces separate; at least one word stays."""
    words = sentence.split()
    kept = [word for word in words if rng.random() >= DELETED]
    return " ".join(kept or [rng.choice(words)])


def columns(training: Training) -> dict[str, list[str]]:
    """The columns that the loss reads, in its order."""
    rows = Path(training.text).read_text(encoding="utf-8").splitlines()
    if training.method == "pairs":
        anchors, positives = zip(*(row.split("\t") for row in rows), strict=True)
        return {"anchor": list(anchors), "positive": list(positives)}
    if training.method == "tsdae":
        rng = random.Random(training.seed)
        return {"noisy": [without_most_words(row, rng) for row in rows], "text": rows}
    return {"anchor": rows, "positive": rows}


def train(training: Training) -> None:
    transformer = Transformer(training.backbone, max_seq_length=training.max_length)
    pooling = Pooling(transformer.get_embedding_dimension(), training.pooling)
    model = SentenceTransformer(modules=[transformer, pooling], device="cpu")
    if training.method == "tsdae":
        loss = losses.DenoisingAutoEncoderLoss(model, tie_encoder_decoder=True)
    else:
        loss = losses.MultipleNegativesRankingLoss(model, scale=20.0)
    arguments = SentenceTransformerTrainingArguments(
        f"{training.output}.work",
        per_device_train_batch_size=training.batch,
        num_train_epochs=training.epochs,
        max_steps=training.steps,
        learning_rate=training.learning_rate,
        warmup_steps=training.warmup,
        lr_scheduler_type="linear",
        max_grad_norm=1.0,
        weight_decay=0.0,
        dataloader_drop_last=True,
        seed=training.seed,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    data = Dataset.from_dict(columns(training))
    SentenceTransformerTrainer(model, arguments, train_dataset=data, loss=loss).train()
    model.save_pretrained(training.output)


if __name__ == "__main__":
    train(Training(**json.loads(sys.argv[1])))
