"""The baseline: a training step in plain PyTorch with the official program's arithmetic.

The step has one forward pass over both views, which computes padding like words. Attention is eager. The generator is
in train mode, with its vocabulary head at every position. The RTD loss has two classes and covers all positions.
Cosines are an N x N matrix. AdamW and clipping are torch's. The loss is read right after the step. This file has none
of the official program's code: we wrote it from a description.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from diffcse_scale.benchmark.grid import Cell
from diffcse_scale.benchmark.phases import Phases
from diffcse_scale.benchmark.step_cell import Networks, Step
from diffcse_scale.text.batches import Batch


def official_step(cell: Cell, networks: Networks, device: torch.device, phases: Phases) -> Step:
    """A step of `cell` on one device, with the backbones, the generator and the RTD head of `networks`."""
    model, generator = networks
    encoder, width = model.encoder.backbone, model.encoder.backbone.config.hidden_size
    projection = nn.Sequential(
        nn.Linear(width, 2 * width, bias=False),
        nn.BatchNorm1d(2 * width),
        nn.ReLU(),
        nn.Linear(2 * width, width, bias=False),
        nn.BatchNorm1d(width, affine=False),
    ).to(device)
    trained = [*encoder.parameters(), *projection.parameters()]
    backbones = [encoder]
    if generator is not None:
        trained += [*model.discriminator.parameters(), *model.rtd_head.parameters()]
        backbones += [model.discriminator.backbone, generator.model]
    for backbone in backbones:
        backbone.set_attn_implementation("eager")
    optimizer = torch.optim.AdamW(trained, lr=7e-6, weight_decay=0.0)

    def forward(batch: Batch) -> torch.Tensor:
        (chunk,) = batch.chunks
        ids, mask, corrupted = (
            tensor.flatten(0, 1).to(device) for tensor in (chunk.input_ids, chunk.attention_mask, chunk.corrupted_ids)
        )
        with phases.phase("encoder"):
            h = encoder(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
        with phases.phase("loss"):
            z = projection(h)
            first, second = z.view(-1, 2, width).unbind(1)
            cosines = F.cosine_similarity(first[:, None], second[None], dim=-1) / 0.05
            loss = F.cross_entropy(cosines, torch.arange(len(cosines), device=device))
        if generator is None:
            return loss
        with phases.phase("generator"), torch.no_grad():
            edited = generator.head(generator.model(input_ids=corrupted, attention_mask=mask).logits).argmax(-1)
            edited[:, 0] = ids[:, 0]
            replaced = (edited != ids).long() * mask
            edited = edited * mask
        with phases.phase("discriminator"):
            hidden = model.discriminator(edited, mask, z)
            logits = F.linear(hidden, model.rtd_head.weight, model.rtd_head.bias)
            rtd = F.cross_entropy(logits.view(-1, 2), replaced.view(-1))
        return loss + cell.rtd_weight * rtd

    def step(batch: Batch) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=cell.precision == "bf16"):
            loss = forward(batch)
        with phases.phase("backward"):
            loss.backward()
        with phases.phase("optimizer"):
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        loss.item()

    return Step(step)
