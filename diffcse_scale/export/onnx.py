"""ONNX files of an exported folder, where `SentenceTransformer(folder, backend="onnx")` and optimum look for them.

    onnx/model.onnx          float32: from input_ids and attention_mask (and token_type_ids, if the tokenizer makes
                             them), all int64 [batch, length], to last_hidden_state [batch, length, H]
    onnx/model_qint8.onnx    the same with 8-bit weights and dynamically quantized activations

Pooling and later modules are not included, as both libraries expect. For pooling first_last_mean, `last_hidden_state`
is the average of the embedding output and the last layer; mean pooling must be applied to it.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from diffcse_scale.embedded.grammar import training_sentences
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model_folder.validation import TOLERANCE, largest_difference

FOLDER, FLOAT32, INT8 = "onnx", "model.onnx", "model_qint8.onnx"
# a protobuf file holds at most 2 GiB; the weights of larger models are beside it, under the name that optimum fetches
LARGEST_FILE = 2**31 - 2**24


class OnnxComparison(NamedTuple):
    """Comparison of the ONNX files' vectors with PyTorch's.

    Attributes:
        difference: largest absolute difference of a component in float32, relative to the largest component if that
            is more than 1.
        sentences: number of sentences compared.
        int8_cosine: mean and smallest cosine between int8 and float32 vectors; None without int8.
    """

    difference: float
    sentences: int
    int8_cosine: tuple[float, float] | None


def check_onnx_installed() -> None:
    """Raise InputError if a library for ONNX is missing."""
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if missing:
        raise InputError(f"ONNX needs {', '.join(missing)}: pip install 'diffcse-scale[onnx]'.")


class TokenVectors(nn.Module):
    """A backbone for ONNX: tensors in, token vectors [B, L, H] out.

    Args:
        first_and_last: return the average of embedding output and last layer instead of the last layer.
    """

    def __init__(self, backbone: nn.Module, first_and_last: bool) -> None:
        super().__init__()
        self.backbone, self.first_and_last = backbone, first_and_last

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Token vectors [B, L, H] of `inputs`, each int64 [B, L]."""
        outputs = self.backbone(**inputs, output_hidden_states=self.first_and_last)
        if self.first_and_last:
            return (outputs.hidden_states[0] + outputs.last_hidden_state) / 2
        return outputs.last_hidden_state


def export_onnx(model: SentenceTransformer, folder: Path, int8: bool) -> OnnxComparison:
    """Write the ONNX files of an exported folder and compare their vectors with the model's.

    Args:
        model: the folder's model; it is converted to float32 on the CPU.
        int8: also write the quantized file.

    Raises:
        InputError: the family cannot be exported, or its float32 vectors differ by more than `TOLERANCE`.
    """
    import onnxruntime

    model.to("cpu").float().eval()
    batches = list(_batches(model))
    expected = [model(dict(batch))["sentence_embedding"].detach().numpy() for batch in batches]
    target = folder / FOLDER
    target.mkdir()
    with _quiet():
        _write(model, batches[-1], target / FLOAT32)
        found = _embed(model, onnxruntime.InferenceSession(target / FLOAT32), batches)
        difference = max(largest_difference(a, b) for a, b in zip(found, expected, strict=True))
        if not difference <= TOLERANCE:
            raise InputError(
                f"The ONNX model of {_family(model)} does not reproduce PyTorch's vectors (they differ by "
                f"{difference:.1e}, allowed is {TOLERANCE:.0e}); nothing was written; export without --onnx."
            )
        cosine = None
        if int8:
            _quantize(model, target)
            cosine = _cosine(_embed(model, onnxruntime.InferenceSession(target / INT8), batches), expected)
    return OnnxComparison(difference, sum(len(rows) for rows in expected), cosine)


def _batches(model: SentenceTransformer) -> Iterator[dict[str, Tensor]]:
    """Sentences of many lengths, up to the model's maximum, in batches of 1, 3, 7 and 32."""
    texts = training_sentences(160, seed=0)
    for size, count in ((1, 1), (7, 2), (32, 4), (1, 16), (3, 100)):
        # a text of up to `count` sentences, so that most batches are ragged
        rows = [" ".join(texts[row : row + 1 + (row * 5) % count]) for row in range(size)]
        limit = {"truncation": True, "max_length": model.max_seq_length}
        yield dict(model.tokenizer(rows, padding=True, return_tensors="pt", **limit))


def _write(model: SentenceTransformer, example: dict[str, Tensor], file: Path) -> None:
    import onnx

    backbone = model[0].auto_model
    accepted = inspect.signature(backbone.forward).parameters
    inputs = {name: tensor for name, tensor in example.items() if name in accepted and isinstance(tensor, Tensor)}
    axes = {name: {0: "batch", 1: "length"} for name in inputs}
    network = TokenVectors(backbone, first_and_last=bool(backbone.config.output_hidden_states)).eval()
    # a cache would add an output for every layer of a decoder
    cached, backbone.config.use_cache = getattr(backbone.config, "use_cache", None), False
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                network,
                kwargs={"inputs": inputs},
                input_names=list(inputs),
                output_names=["last_hidden_state"],
                dynamic_shapes={"inputs": axes},
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        onnx.save_model(
            program.model_proto, file, save_as_external_data=_bytes(model) > LARGEST_FILE, location=f"{file.name}_data"
        )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0].rstrip(".")
        raise InputError(f"{_family(model)} cannot be exported to ONNX: {reason}; export without --onnx.") from error
    finally:
        backbone.config.use_cache = cached


def _quantize(model: SentenceTransformer, folder: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    large = _bytes(model) / 4 > LARGEST_FILE
    quantize_dynamic(folder / FLOAT32, folder / INT8, weight_type=QuantType.QInt8, use_external_data_format=large)


def _bytes(model: SentenceTransformer) -> int:
    return sum(parameter.nbytes for parameter in model[0].auto_model.parameters())


def _embed(model: SentenceTransformer, session: Any, batches: list[dict[str, Tensor]]) -> list[np.ndarray]:
    """Sentence embeddings [B, H] of each batch: ONNX gives token vectors, the model's own modules do the rest."""
    names = [entry.name for entry in session.get_inputs()]
    rows = []
    for batch in batches:
        (vectors,) = session.run(["last_hidden_state"], {name: batch[name].numpy() for name in names})
        features: dict[str, Any] = {**batch, "token_embeddings": torch.from_numpy(vectors)}
        for module in list(model)[1:]:
            features = module(features)
        rows.append(features["sentence_embedding"].detach().numpy())
    return rows


def _cosine(found: list[np.ndarray], expected: list[np.ndarray]) -> tuple[float, float]:
    a, b = np.concatenate(found), np.concatenate(expected)
    cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return float(cosines.mean()), float(cosines.min())


def _family(model: SentenceTransformer) -> str:
    return f"a backbone of type {model[0].auto_model.config.model_type}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's and the quantizer's internal messages."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    root = logging.getLogger()
    before = root.level
    try:
        for logger in [*loggers, root]:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip([*loggers, root], [*levels, before], strict=True):
            logger.setLevel(level)
