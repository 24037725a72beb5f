"""The official program's step written out in plain tensor arithmetic, from the description of its behaviour.

An independent truth: no transformers model, no module of the project, only a dictionary of named weights.
The golden numbers of the official program hold it to account on BERT; it then speaks for RoBERTa, of which a
folder of golden numbers may have none. Dropout is 0. Everything runs in the weights' dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """Where BERT and RoBERTa differ."""

    cls_id: int
    pad_id: int
    layer_norm_eps: float
    counts_positions_from_pad: bool  # RoBERTa: padding keeps position pad_id, tokens count on from pad_id + 1


BERT = Family(cls_id=101, pad_id=0, layer_norm_eps=1e-12, counts_positions_from_pad=False)
ROBERTA = Family(cls_id=0, pad_id=1, layer_norm_eps=1e-5, counts_positions_from_pad=True)


@dataclass(frozen=True)
class Reference:
    """weights: official names (`encoder.*`, `discriminator.*`, `generator.*`, `mlp.*`, `electra_head.*`)."""

    weights: Weights
    family: Family
    heads: int
    temperature: float
    rtd_weight: float

    def step(self, batch: dict[str, Tensor], edited: Tensor | None = None) -> dict[str, Tensor]:
        """One training step's forward pass, by the names of the golden arrays.

        Args:
            batch: input_ids, attention_mask, mlm_input_ids [N, S, L].
            edited: [N * S, L] ids that a generator wrote; None to let the RoBERTa generator below write.
        """
        ids, mask, corrupted = (batch[name].flatten(0, 1) for name in ("input_ids", "attention_mask", "mlm_input_ids"))
        views = batch["input_ids"].shape[1]
        h = self.layers("encoder.", self.embed("encoder.", ids), mask)[:, 0]
        z = self.project(h)
        if edited is None:
            edited = self.generate(corrupted, mask)
        edited = torch.cat([torch.full_like(edited[:, :1], self.family.cls_id), edited[:, 1:]], dim=1)
        replaced = (edited != ids).long() * mask
        edited = edited * mask  # padding becomes id 0, whatever the padding id is

        conditioned = torch.cat([z[:, None], self.embed("discriminator.", edited)[:, 1:]], dim=1)
        hidden = self.layers("discriminator.", conditioned, mask)
        logits = F.linear(hidden, self.weights["electra_head.weight"], self.weights["electra_head.bias"])
        rtd_loss = F.cross_entropy(logits.flatten(0, 1), replaced.flatten())

        by_view = z.unflatten(0, (-1, views))
        cosine = F.normalize(by_view[:, 0], dim=-1) @ F.normalize(by_view[:, 1], dim=-1).T
        contrastive_loss = F.cross_entropy(cosine / self.temperature, torch.arange(len(cosine)))
        return {
            "z_before_mlp": h.unflatten(0, (-1, views)),
            "z1": by_view[:, 0],
            "z2": by_view[:, 1],
            "cos_sim": cosine,
            "e_inputs": edited,
            "replaced": replaced,
            "disc_last_hidden": hidden,
            "rtd_logits": logits,
            "contrastive_loss": contrastive_loss,
            "rtd_loss": rtd_loss,
            "total_loss": contrastive_loss + self.rtd_weight * rtd_loss,
        }

    def embed(self, prefix: str, ids: Tensor) -> Tensor:
        """[B, L] ids to [B, L, H]: word + position + type 0, then LayerNorm."""
        table = f"{prefix}embeddings."
        if self.family.counts_positions_from_pad:
            real = (ids != self.family.pad_id).long()
            positions = real.cumsum(dim=1) * real + self.family.pad_id
        else:
            positions = torch.arange(ids.shape[1]).expand_as(ids)
        # a padding row takes no gradient, in either table that has one
        pad = self.family.pad_id
        words = F.embedding(ids, self.weights[f"{table}word_embeddings.weight"], padding_idx=pad)
        position_pad = pad if self.family.counts_positions_from_pad else None
        places = F.embedding(positions, self.weights[f"{table}position_embeddings.weight"], padding_idx=position_pad)
        return self.norm(f"{table}LayerNorm", words + places + self.weights[f"{table}token_type_embeddings.weight"][0])

    def layers(self, prefix: str, hidden: Tensor, mask: Tensor) -> Tensor:
        """All post-norm transformer layers; keys at padding are masked."""
        keys = torch.zeros(mask.shape, dtype=hidden.dtype).masked_fill(mask == 0, -1e4)[:, None, None]
        number = 0
        while f"{prefix}encoder.layer.{number}.output.dense.weight" in self.weights:
            layer = f"{prefix}encoder.layer.{number}."
            query, key, value = (
                self.linear(f"{layer}attention.self.{name}", hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for name in ("query", "key", "value")
            )
            scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + keys
            attended = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
            attended = self.linear(f"{layer}attention.output.dense", attended)
            hidden = self.norm(f"{layer}attention.output.LayerNorm", hidden + attended)
            inner = F.gelu(self.linear(f"{layer}intermediate.dense", hidden))
            hidden = self.norm(f"{layer}output.LayerNorm", hidden + self.linear(f"{layer}output.dense", inner))
            number += 1
        return hidden

    def project(self, h: Tensor) -> Tensor:
        """The plain or the BatchNorm head, statistics over all rows of all views."""
        if "mlp.dense.weight" in self.weights:
            return torch.tanh(self.linear("mlp.dense", h))
        inner = F.linear(h, self.weights["mlp.net.0.weight"])
        scale, shift = self.weights["mlp.net.1.weight"], self.weights["mlp.net.1.bias"]
        inner = F.batch_norm(inner, None, None, scale, shift, training=True)
        outer = F.linear(F.relu(inner), self.weights["mlp.net.3.weight"])
        return F.batch_norm(outer, None, None, training=True)

    @torch.no_grad()
    def generate(self, corrupted: Tensor, mask: Tensor) -> Tensor:
        """The most likely token at every position, by RoBERTa's masked-language-model head."""
        hidden = self.layers("generator.roberta.", self.embed("generator.roberta.", corrupted), mask)
        hidden = self.norm("generator.lm_head.layer_norm", F.gelu(self.linear("generator.lm_head.dense", hidden)))
        words = self.weights["generator.roberta.embeddings.word_embeddings.weight"]
        return (hidden @ words.T + self.weights["generator.lm_head.bias"]).argmax(-1)

    def linear(self, name: str, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, name: str, hidden: Tensor) -> Tensor:
        shape = hidden.shape[-1:]
        return F.layer_norm(
            hidden,
            shape,
            self.weights[f"{name}.weight"],
            self.weights[f"{name}.bias"],
            self.family.layer_norm_eps,
        )


def random_roberta_case(projection: str, manifest: dict[str, Any], seed: int) -> tuple[Weights, dict[str, Tensor]]:
    """Random weights (float64) under official names, and a ragged batch, of the sizes in the manifest."""
    config = manifest["config"]
    width, inner, vocabulary = config["hidden"], config["intermediate"], config["vocab"]
    draw = torch.Generator().manual_seed(seed)
    weights: Weights = {}

    def add(name: str, *shape: int, bias: bool = True) -> None:
        weights[f"{name}.weight"] = 0.2 * torch.randn(shape, generator=draw, dtype=torch.float64)
        if bias:
            weights[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=draw, dtype=torch.float64)

    def add_trunk(prefix: str, layers: int) -> None:
        add(f"{prefix}embeddings.word_embeddings", vocabulary, width, bias=False)
        add(f"{prefix}embeddings.position_embeddings", config["max_pos"], width, bias=False)
        add(f"{prefix}embeddings.token_type_embeddings", config["roberta_type_vocab"], width, bias=False)
        add(f"{prefix}embeddings.LayerNorm", width)
        for number in range(layers):
            layer = f"{prefix}encoder.layer.{number}."
            for name in ("self.query", "self.key", "self.value", "output.dense"):
                add(f"{layer}attention.{name}", width, width)
            add(f"{layer}intermediate.dense", inner, width)
            add(f"{layer}output.dense", width, inner)
            add(f"{layer}attention.output.LayerNorm", width)
            add(f"{layer}output.LayerNorm", width)

    add_trunk("encoder.", config["layers"])
    add_trunk("discriminator.", config["layers"])
    add_trunk("generator.roberta.", config["generator_layers"])
    add("generator.lm_head.dense", width, width)
    add("generator.lm_head.layer_norm", width)
    weights["generator.lm_head.bias"] = torch.zeros(vocabulary, dtype=torch.float64)
    add("electra_head", 2, width)
    if projection == "mlp":
        add("mlp.dense", width, width)
    else:
        add("mlp.net.0", 2 * width, width, bias=False)
        add("mlp.net.1", 2 * width)
        add("mlp.net.3", width, 2 * width, bias=False)
    for name, weight in weights.items():
        if weight.ndim == 1 and name.endswith(".weight"):
            weight += 1  # the scale of a normalisation
    return weights, _ragged_batch(manifest, draw)


def _ragged_batch(manifest: dict[str, Any], draw: torch.Generator) -> dict[str, Tensor]:
    """Two views a sentence, of different tokens and lengths, and their corruption."""
    config = manifest["config"]
    lengths = torch.tensor(manifest["lens"])
    lengths = torch.stack([lengths, lengths.flip(0)], dim=1)[..., None]
    length = int(lengths.max())
    places = torch.arange(length)
    mask = (places < lengths).long()
    ids = torch.randint(5, config["vocab"] - 1, mask.shape, generator=draw)
    ids[..., 0] = config["cls_id"]["roberta"]
    ids = torch.where(places == lengths - 1, config["sep_id"]["roberta"], ids)
    ids = torch.where(mask.bool(), ids, config["roberta_pad"])
    chosen = (
        (torch.rand(mask.shape, generator=draw) < manifest["masking_ratio"]) & (places > 0) & (places < lengths - 1)
    )
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "mlm_input_ids": torch.where(chosen, config["mask_id"]["roberta"], ids),
    }
