"""The engine's memory and what it sends, against arithmetic by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.planning.communication import bytes_sent
from diffcse_scale.planning.memory import device_memory
from diffcse_scale.planning.moments import Moment
from diffcse_scale.planning.shape_networks import Networks, Parameter
from diffcse_scale.planning.sharding import read_sharding

MILLION = 1_000_000
PARAMETERS = [
    Parameter("discriminator.a", 6 * MILLION, 2, True, True),
    Parameter("encoder.b", 2 * MILLION, 2, True, True),
    Parameter("encoder.frozen", MILLION, 2, False, True),
]
NETWORKS = Networks(None, None, PARAMETERS, 0, width=10)  # type: ignore[arg-type]
# of so few weights ZeRO-3 would keep all from forward to backward
NOTHING_STAYS = {"stage3_max_reuse_distance": 0}
# 50 MB of activations, of which 5 remain when the first gradient arrives
STEP = [
    Moment("step", 0, 50e6, 5e6, 0, "discriminator.a"),
    Moment("step", 0, 5e6, 1e6, 0, "encoder.b"),
    Moment("step", 0, 1e6, 0, 0, None),
]


def on_gpus(recipe, stage, ranks=2, **config):
    zero = {"stage": stage, "reduce_bucket_size": 10 * MILLION, **NOTHING_STAYS, **config.pop("zero", {})}
    return read_sharding({"zero_optimization": zero, **config}, recipe, ranks, on_cpu=False)


@pytest.mark.parametrize(
    ("stage", "weights", "optimizer"),
    [
        (0, 4 * 9, 8 * 8),  # AdamW's two moments
        (1, 4 * 9, 12 * 8 / 2),  # and a float32 copy of the own partition
        (2, 4 * 9, 12 * 8 / 2),
        (3, 4 * 9 / 2, 12 * 8 / 2),
    ],
)
def test_what_stands_in_float32(recipe, stage, weights, optimizer):
    need = device_memory(STEP, NETWORKS, on_gpus(recipe, stage))
    assert need.largest["weights"] == weights * MILLION
    assert need.largest["optimizer"] == optimizer * MILLION


def test_bfloat16_weights_are_half_as_large_and_keep_a_float32_copy(recipe):
    need = device_memory(STEP, NETWORKS, on_gpus(recipe, 2, bf16={"enabled": True}))
    assert need.largest["weights"] == 2 * 9 * MILLION
    assert need.largest["optimizer"] == 12 * 8 / 2 * MILLION
    assert need.largest["reduce buckets"] == 2 * 10 * MILLION


def test_offloaded_optimizer_state_is_in_the_hosts_memory(recipe):
    plain, offloaded = (
        device_memory(STEP, NETWORKS, on_gpus(recipe, 2, zero={"offload_optimizer": {"device": device}}))
        for device in ("none", "cpu")
    )
    assert (plain.host, offloaded.host) == (0, 4 * MILLION * (16 + 4))
    assert "optimizer" not in offloaded.largest
    assert offloaded.total < plain.total


def test_the_peak_of_a_step_by_hand(recipe):
    """ZeRO-2, two ranks, a bucket of 10 million numbers, which lives from the first gradient to the end of backward."""
    need = device_memory(STEP, NETWORKS, on_gpus(recipe, 2))
    # rank 1 has the end of the matrix of 6 million and that of 2 million: 8 million numbers, counted whole
    standing, bucket, gradients, copy = 36e6 + 48e6, 40e6, 32e6, 32e6
    norm = 8 * 6e6  # of the largest gradient, in float64
    assert need.total == standing + max(50e6, bucket + copy, bucket + gradients, gradients + norm)
    assert need.when == "update"


def test_at_stage_1_gradients_wait_for_the_end_of_the_step(recipe):
    need = device_memory(STEP, NETWORKS, on_gpus(recipe, 1, zero={"reduce_bucket_size": 1000 * MILLION}))
    assert need.largest["gradients"] == pytest.approx(4 * 8 * MILLION + 4 * 4 * MILLION)


def test_gradients_of_a_later_chunk_are_copied_before_they_are_added(recipe):
    chunked = [moment._replace(part="encode again") for moment in STEP]
    whole, chunks = (device_memory(moments, NETWORKS, on_gpus(recipe, 2)) for moments in (STEP, chunked))
    assert chunks.largest["gradients"] == max(2 * 32e6, whole.largest["gradients"])


def test_frozen_parameters_have_no_gradient_and_no_optimizer_state(recipe):
    frozen = [replace(parameter, trained=parameter.name == "encoder.b") for parameter in PARAMETERS]
    networks = replace(NETWORKS, parameters=frozen)
    need = device_memory(STEP[1:], networks, on_gpus(recipe, 2))
    assert need.largest["optimizer"] == 12 * 2 / 2 * MILLION
    assert bytes_sent(networks, on_gpus(recipe, 2), recipe, 16, None)["weights"] == 4 * 2 * MILLION / 2


@pytest.mark.parametrize(
    ("stage", "chunk", "gradients", "weights"),
    [
        # two ranks: an all-reduce sends every byte once, an all-gather half of them
        (0, None, 4 * 8, 0),
        (2, None, 4 * 8, 4 * 8 / 2),
        (1, 4, 4 * 8, 4 * 8 / 2),
        (2, 4, 4 * 4 * 8, 4 * 8 / 2),  # 16 sentences in four chunks
        (3, None, 4 * 8 / 2, 2 * 4 * 9 / 2),
        # every chunk forward and backward, the encoder forward once more, and one pass through everything, which
        # goes back with that of the discriminator's first chunk
        (3, 4, (4 * 6 + (4 + 1) * 2) * 4 / 2, ((4 * 2 + 2) * 4 * 9 + 4 * 4 * 3) / 2),
    ],
)
def test_communication_by_hand(recipe, stage, chunk, gradients, weights):
    sent = bytes_sent(NETWORKS, on_gpus(recipe, stage), recipe, 16, chunk)
    assert sent["gradients"] == gradients * MILLION
    assert sent["weights"] == weights * MILLION
    # 16 keys of width 10 to one neighbour, and the gradients of its 16 back
    assert sent["embeddings"] == 4 * 16 * 10 + 4 * 16 * 10


@pytest.mark.parametrize(
    ("exchange", "autocast", "each"),
    [
        ("auto", False, 3 * 4 + 3 * 4),  # three others
        ("gather", True, 3 * 2 + 3 * 2),
        ("ring", False, 3 * 4 + 3 * 4 + 4 * 4),  # forward, backward, and sums to all and back to their owner
        ("ring", True, 3 * 2 + 3 * 2 + 4 * 4),
    ],
)
def test_embeddings_travel_in_the_dtype_that_they_are_compared_in(recipe, exchange, autocast, each):
    asked = recipe.model_copy(update={"batch": recipe.batch.model_copy(update={"exchange": exchange})})
    sharding = replace(on_gpus(recipe, 2, ranks=4), autocast=autocast)
    assert bytes_sent(NETWORKS, sharding, asked, 16, None)["embeddings"] == 16 * 10 * each


def test_one_device_sends_nothing(recipe):
    assert sum(bytes_sent(NETWORKS, on_gpus(recipe, 2, ranks=1), recipe, 32, None).values()) == 0


def test_a_misspelt_zero_option_is_refused(recipe):
    with pytest.raises(InputError, match="stag"):
        read_sharding({"zero_optimization": {"stag": 2}}, recipe, 2, on_cpu=True)


def test_auto_precision_is_that_of_the_planned_device(recipe):
    config = {"torch_autocast": {"enabled": "auto", "dtype": "bfloat16"}}
    assert read_sharding(config, recipe, 2, on_cpu=False).autocast
    found = read_sharding(config, recipe, 2, on_cpu=True)
    assert not found.autocast and found.weight_dtype == torch.float32
