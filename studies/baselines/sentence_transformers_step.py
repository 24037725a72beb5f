"""The baseline for the contrastive part alone: MultipleNegativesRankingLoss, used as in sentence-transformers' trainer.

Each view has its own forward pass. The sentences are already tokenized, as for the other implementations.
"""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers import SentenceTransformer, models
from sentence_transformers.losses import MultipleNegativesRankingLoss
from torch import nn

from diffcse_scale.benchmark.grid import Cell
from diffcse_scale.benchmark.phases import Phases
from diffcse_scale.benchmark.step_cell import Networks, Step
from diffcse_scale.text.batches import Batch


class _Transformer(nn.Module):
    """The module that sentence-transformers would load from a folder, around an existing backbone."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        outputs = self.backbone(input_ids=features["input_ids"], attention_mask=features["attention_mask"])
        return {**features, "token_embeddings": outputs.last_hidden_state}


def sentence_transformers_step(cell: Cell, networks: Networks, device: torch.device, phases: Phases) -> Step:
    """A step of `cell` on one device, with the encoder's backbone of `networks`."""
    backbone = networks.model.encoder.backbone
    pooling = models.Pooling(backbone.config.hidden_size, pooling_mode="cls")
    model = SentenceTransformer(modules=[_Transformer(backbone), pooling], device=str(device)).train()
    loss_function = MultipleNegativesRankingLoss(model, scale=20.0)
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=7e-6, weight_decay=0.0, fused=True)

    def step(batch: Batch) -> None:
        (chunk,) = batch.chunks
        features = [
            {
                "input_ids": chunk.input_ids[:, view].to(device),
                "attention_mask": chunk.attention_mask[:, view].to(device),
            }
            for view in range(chunk.views)
        ]
        with phases.phase("encoder"), torch.autocast(device.type, torch.bfloat16, enabled=cell.precision == "bf16"):
            loss = loss_function(features, torch.zeros(len(chunk.input_ids)))
        with phases.phase("backward"):
            loss.backward()
        with phases.phase("optimizer"):
            nn.utils.clip_grad_norm_(backbone.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return Step(step)
