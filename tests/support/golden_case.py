"""A golden case, and the public classes given its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaModel,
)

from diffcse_scale.model.generator import Generator
from diffcse_scale.model.networks import DiffCSENetworks
from diffcse_scale.recipe import ObjectiveRecipe
from diffcse_scale.text.batches import Chunk

# official name -> ours; what stands in front of a parameter's name
OUR_NAMES = {
    "encoder.": "encoder.backbone.",
    "discriminator.": "discriminator.backbone.",
    "mlp.": "projection.",
    "electra_head.": "rtd_head.",
}
# array -> key of the manifest's `fp32_vs_fp64_max_abs`
RECORDED_AS = {
    "z_before_mlp": "enc_last_hidden",
    "z1": "mlp_out",
    "z2": "mlp_out",
    "contrastive_logits": "logits",
    "disc_last_hidden": "rtd_logits",
}
LOSSES = ("contrastive_loss", "rtd_loss", "total_loss")


@dataclass(frozen=True)
class Case:
    """`manifest` of the folder, `facts` of the case, and its arrays by group (in, out, grad, after, eval)."""

    name: str
    manifest: dict[str, Any]
    facts: dict[str, Any]
    weights: dict[str, Tensor]
    groups: dict[str, dict[str, Tensor]]

    @property
    def roberta(self) -> bool:
        return any(name.startswith("generator.roberta.") for name in self.weights)

    @property
    def projection(self) -> str:
        return "mlp" if "mlp.dense.weight" in self.weights else "batchnorm"

    def objective(self, **changes: float) -> ObjectiveRecipe:
        values = {"temperature": self.manifest["temp"], "rtd_weight": self.manifest["lambda"], **changes}
        return ObjectiveRecipe(fidelity="official", masking_ratio=self.manifest["masking_ratio"], **values)

    def tolerance(self, array: str) -> float:
        recorded = self.facts["fp32_vs_fp64_max_abs"].get(RECORDED_AS.get(array, array), 0.0)
        return max(4 * recorded, 1e-6 if array in LOSSES else 1e-5)


def read_case(folder: Path, name: str) -> Case:
    manifest = json.loads((folder / "manifest.json").read_text())
    facts = manifest["variants"][name]
    files = [facts[part]["file"] for part in ("arrays", "grads", "extra") if part in facts]
    groups: dict[str, dict[str, Tensor]] = {
        "in": {},
        "out": {},
        "grad": {},
        "after": {},
        "eval": {},
        "state": {},
    }
    for file in files:
        for key, array in np.load(folder / file).items():
            group, _, rest = key.partition(".")
            groups.setdefault(group, {})[rest] = _as_computed(array)
    family = next(family for family in sorted(manifest["states"], key=len, reverse=True) if name.startswith(family))
    shared = np.load(folder / manifest["states"][family]["file"])
    weights = {key: _as_computed(array) for key, array in shared.items()} | groups["state"]
    return Case(name, manifest, facts, weights, groups)


def _as_computed(array: np.ndarray) -> Tensor:
    """float32 and int64, where half of the bits were enough to store the same numbers."""
    wide = {np.dtype(np.float16): np.float32, np.dtype(np.int16): np.int64}
    return torch.from_numpy(array.astype(wide.get(array.dtype, array.dtype)))


def under(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights whose name starts with prefix, without it; buffers that are no weights are left out."""
    found = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
    return {name: weight for name, weight in found.items() if not name.endswith("position_ids")}


def config_of(case: Case) -> BertConfig | RobertaConfig:
    config, encoder = case.manifest["config"], under("encoder.", case.weights)
    family, make = ("roberta", RobertaConfig) if case.roberta else ("bert", BertConfig)
    vocabulary, width = encoder["embeddings.word_embeddings.weight"].shape
    return make(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=len({name.split(".")[2] for name in encoder if name.startswith("encoder.layer.")}),
        num_attention_heads=config["heads"],
        intermediate_size=encoder["encoder.layer.0.intermediate.dense.weight"].shape[0],
        max_position_embeddings=encoder["embeddings.position_embeddings.weight"].shape[0],
        type_vocab_size=encoder["embeddings.token_type_embeddings.weight"].shape[0],
        layer_norm_eps=config[f"{family}_ln_eps"],
        pad_token_id=config[f"{family}_pad"],
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def make_model(case: Case, objective: ObjectiveRecipe) -> DiffCSENetworks:
    config = config_of(case)
    backbone = (RobertaModel if case.roberta else BertModel)(config, add_pooling_layer=False)
    model = DiffCSENetworks(backbone, objective, pooling="cls", projection=case.projection)
    official = {
        ours + name: weight
        for theirs, ours in OUR_NAMES.items()
        for name, weight in under(theirs, case.weights).items()
    }
    if objective.rtd_weight == 0:
        official = {name: weight for name, weight in official.items() if name.startswith(("encoder.", "projection."))}
    model.load_state_dict(official)
    return model.train()


def make_generator(case: Case) -> Generator:
    weights = under("generator.", case.weights)
    network: PreTrainedModel
    if case.roberta:
        config = config_of(case)
        config.num_hidden_layers = case.manifest["config"]["generator_layers"]
        network = RobertaForMaskedLM(config)
    else:
        table = "distilbert.embeddings"
        vocabulary, width = weights[f"{table}.word_embeddings.weight"].shape
        network = DistilBertForMaskedLM(
            DistilBertConfig(
                vocab_size=vocabulary,
                dim=width,
                hidden_dim=weights["distilbert.transformer.layer.0.ffn.lin1.weight"].shape[0],
                n_layers=case.manifest["config"]["generator_layers"],
                n_heads=case.manifest["config"]["heads"],
                max_position_embeddings=weights[f"{table}.position_embeddings.weight"].shape[0],
                dropout=0.0,
                attention_dropout=0.0,
            )
        )
    missing, unexpected = network.load_state_dict(weights, strict=False)
    assert not unexpected and all("decoder" in name for name in missing), (
        missing,
        unexpected,
    )  # decoder: tied
    network.tie_weights()
    return Generator(network, "official", special_ids=[], seed=0)


def chunk_of(case: Case) -> Chunk:
    batch = case.groups["in"]
    rows = torch.arange(batch["input_ids"][..., 0].numel()).view(batch["input_ids"].shape[:2])
    corrupted = (batch["input_ids"] != batch["mlm_input_ids"]).flatten().nonzero().flatten()
    return Chunk(batch["input_ids"], batch["attention_mask"], batch["mlm_input_ids"], corrupted, rows)
