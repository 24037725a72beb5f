"""Use CLIP's loss on several processes: two towers, a learnt temperature, DistributedDataParallel.

    torchrun --nproc_per_node 2 examples/two_towers.py [ENCODER]      # or `python`, on one process

One tower reads a sentence, the other only its words without their order. Each must find its partner in the batch of all
processes. ENCODER is a folder or Hub name of a transformers model. The default is the tiny model of this package.
"""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
from diffcse_kernels.nn import InfoNCE
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModel, AutoTokenizer

from diffcse_scale.embedded import backbone_path
from diffcse_scale.embedded.grammar import training_sentences

name = sys.argv[1] if len(sys.argv) > 1 else backbone_path()
tokenizer = AutoTokenizer.from_pretrained(name)


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reader = AutoModel.from_pretrained(name)
        self.bag = nn.EmbeddingBag(len(tokenizer), self.reader.config.hidden_size, padding_idx=tokenizer.pad_token_id)
        # the temperature is a parameter of the model, so that its gradient is averaged like all others
        self.loss = InfoNCE(temperature=0.07, learnable=True, symmetric=True, group="world")

    def embed(self, sentences: list[str]) -> tuple[Tensor, Tensor]:
        tokens = tokenizer(sentences, padding=True, truncation=True, max_length=32, return_tensors="pt")
        return self.reader(**tokens).last_hidden_state[:, 0], self.bag(tokens["input_ids"])

    def forward(self, sentences: list[str]) -> Tensor:
        return self.loss(*self.embed(sentences))


@torch.no_grad()
def score(towers: TwoTowers) -> float:
    """How many of 200 sentences find their words, in percent."""
    sentences = sorted(set(training_sentences(400, seed=1)))[:200]
    read, bags = (normalize(side) for side in towers.eval().embed(sentences))
    return 100 * ((read @ bags.T).argmax(1) == torch.arange(len(read))).double().mean().item()


torch.manual_seed(42)
if "RANK" in os.environ:
    dist.init_process_group("gloo")
rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
towers = TwoTowers()
# an encoder may have parameters that its hidden states do not need
model = DistributedDataParallel(towers, find_unused_parameters=True) if processes > 1 else towers
before = score(towers)
optimizer = torch.optim.AdamW(towers.parameters(), lr=1e-3, weight_decay=0)
towers.train()
sentences = training_sentences(64 * 60, seed=2)
for start in range(0, len(sentences), 64):
    loss = model(sentences[start : start + 64][rank::processes])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
if rank == 0:
    print(f"found before: {before:.1f} %, after: {score(towers):.1f} %, on {processes} processes, ", end="")
    print(f"temperature {towers.loss.temperature.item():.3f}")
if dist.is_initialized():
    dist.destroy_process_group()
