"""The sigmoid loss: N queries against N keys, cosine similarity, with SigLIP's initial temperature and bias."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import sigmoid_loss
from .info_nce import InfoNCE, tangent, unit_rows
from .workload import Implementation, Outcome, array, compared_rows, truth_blocks

TEMPERATURE, BIAS = 0.1, -10.0


def eager(queries: Tensor, keys: Tensor) -> Tensor:
    """As in open_clip: one matrix product, the labels, and a log-sigmoid."""
    logits = (F.normalize(queries) @ F.normalize(keys).T).float() / TEMPERATURE + BIAS
    labels = 2 * torch.eye(len(queries), device=queries.device) - 1
    return -F.logsigmoid(labels * logits).sum() / len(queries)


class SigmoidLoss(InfoNCE):
    """The inputs and the least work are the same as for InfoNCE."""

    name = "sigmoid_loss"
    implementations = (
        Implementation("triton", partial(sigmoid_loss, impl="triton"), gpu_only=True),
        Implementation("reference", partial(sigmoid_loss, impl="reference")),
        Implementation("eager", eager),
        Implementation("compiled", eager, compiled=True),
    )

    def truth(self, *inputs: Tensor) -> Outcome:
        """Loss and gradients from the written-out derivatives; the gradients only at the compared rows."""
        (queries, query_norms), (keys, key_norms) = (unit_rows(rows.double()) for rows in inputs)
        positives = torch.linalg.vecdot(queries, keys) / TEMPERATURE + BIAS
        # the loop adds softplus(x) for every pair; a positive needs softplus(-x) = softplus(x) - x, so subtract x here
        total = -positives.sum()
        for rows in truth_blocks(len(queries), len(keys)):
            total += F.softplus(queries[rows] @ keys.T / TEMPERATURE + BIAS, threshold=40.0).sum()
        chosen = compared_rows(len(queries), queries.device)
        gradients = []
        for own, others, norms in ((queries, keys, query_norms), (keys, queries, key_norms)):
            slopes = torch.sigmoid(own[chosen] @ others.T / TEMPERATURE + BIAS)
            slopes[torch.arange(len(chosen), device=chosen.device), chosen] -= 1
            gradients.append(tangent(slopes @ others, own[chosen]) / norms[chosen] / (TEMPERATURE * len(queries)))
        return Outcome(array(total / len(queries)), tuple(map(array, gradients)))
