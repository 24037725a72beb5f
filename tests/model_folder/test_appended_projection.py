"""The projection as dense layers is the projection, to the rounding of float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model_folder.appended_projection import append_projection, dense_layers
from tests.support.hand_made_run import SENTENCES, trained_projection


@pytest.mark.parametrize("kind", ["batchnorm", "mlp"])
def test_dense_layers_compute_what_the_projection_does_in_eval_mode(kind: str) -> None:
    projection, rows = trained_projection(kind), torch.randn(50, 24)
    found = rows
    for layer in dense_layers(projection.state_dict()):
        activation = {"Tanh": torch.tanh, "ReLU": torch.relu, "Identity": lambda x: x}[
            layer.activation.rpartition(".")[2]
        ]
        found = activation(found @ layer.weight.T + layer.bias)

    torch.testing.assert_close(found, projection(rows), rtol=1e-5, atol=1e-5)


def test_encode_gives_z(run: Path) -> None:
    h = SentenceTransformer(str(run / "model"), device="cpu").encode(SENTENCES, convert_to_tensor=True)

    append_projection(run / "model", run, "batchnorm")

    z = SentenceTransformer(str(run / "model"), device="cpu").encode(SENTENCES)
    expected = trained_projection()(h.clone()).detach().numpy()
    np.testing.assert_allclose(z, expected, rtol=0, atol=1e-5)
    assert np.abs(expected - h.numpy()).max() > 0.1


def test_a_run_that_has_none_says_why(run: Path) -> None:
    with pytest.raises(InputError, match="without a projection"):
        append_projection(run / "model", run, "none")
    (run / "projection.safetensors").unlink()
    with pytest.raises(InputError, match=r"no projection\.safetensors"):
        append_projection(run / "model", run, "batchnorm")
