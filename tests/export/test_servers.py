"""What `export` says of servers, against the rules by which their own sources read a folder (docs/serving.md)."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any, NamedTuple

import pytest
from tokenizers import Tokenizer, normalizers
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerFast

from diffcse_scale.export import export_sentence_transformer
from diffcse_scale.export.command import ExportOptions, export_model
from diffcse_scale.export.servers import serving_notes
from diffcse_scale.model_folder.appended_projection import dense_layers
from diffcse_scale.model_folder.save import append_module, write_modules
from tests.support.hand_made_run import trained_projection, write_run
from tests.support.tiny_models import tiny_bert, tiny_tokenizer

TEI, VLLM, OLLAMA = "text-embeddings-inference", "vLLM", "Ollama"
PREFIX = "sentence_transformers.models."


class Refused(Exception):
    """The server does not start, or the converter stops: the user is told."""


class Served(NamedTuple):
    pooling: str
    layers_averaged: bool
    activations: list[str]


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def by_text_embeddings_inference(folder: Path) -> Served:
    """router/src/lib.rs, backends/src/lib.rs and backends/candle/src/models/{bert,dense}.rs."""
    config = read(folder, "config.json")
    assert isinstance(config["architectures"], list) and config["model_type"] == "bert"
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        assert isinstance(config[name], int)
    for name in ("max_position_embeddings", "type_vocab_size", "pad_token_id"):
        assert isinstance(config[name], int)
    for name in ("hidden_dropout_prob", "initializer_range", "layer_norm_eps"):
        assert isinstance(config[name], float)
    assert isinstance(config["hidden_act"], str)
    assert isinstance(read(folder, "sentence_bert_config.json")["max_seq_length"], int)
    assert isinstance(read(folder, "config_sentence_transformers.json")["prompts"], dict)
    Tokenizer.from_file(str(folder / "tokenizer.json"))
    pooling = "cls"  # where there is no such file
    if (folder / "1_Pooling" / "config.json").is_file():
        flags = read(folder, "1_Pooling/config.json")
        modes = {"cls": flags["pooling_mode_cls_token"], "mean": flags["pooling_mode_mean_tokens"]}
        if not any(modes.values()):  # pooling_mode_lasttoken, which its BERT refuses
            raise Refused
        pooling = next(mode for mode, chosen in modes.items() if chosen)
    if (folder / "onnx" / "model.onnx").is_file():
        return Served(pooling, False, [])
    modules = read(folder, "modules.json")
    if {module["type"] for module in modules} - {
        PREFIX + name for name in ("Transformer", "Pooling", "Dense", "Normalize")
    }:
        return Served(pooling, False, [])
    activations = activations_of(folder, modules)
    if any(name not in ("Tanh", "Identity") for name in activations):
        raise Refused
    return Served(pooling, False, activations)


def by_vllm(folder: Path) -> Served:
    """vllm/transformers_utils/config.py and vllm/model_executor/layers/activation.py."""
    modules = read(folder, "modules.json")
    return Served(pooling_of(folder, modules), False, activations_of(folder, modules))


def by_ollama(folder: Path) -> Served:
    """convert/convert.go and convert/convert_bert.go."""
    if read(folder, "config.json")["architectures"][0] != "BertModel":
        raise Refused
    pooling = pooling_of(folder, read(folder, "modules.json"))
    if pooling == "lasttoken":
        raise Refused
    return Served(pooling, False, [])


def activations_of(folder: Path, modules: list[dict[str, str]]) -> list[str]:
    paths = [module["path"] for module in modules if module["type"] == PREFIX + "Dense"]
    for path in paths:
        assert (folder / path / "model.safetensors").is_file()
    return [read(folder, f"{path}/config.json")["activation_function"].rpartition(".")[2] for path in paths]


def pooling_of(folder: Path, modules: list[dict[str, str]]) -> str:
    (path,) = (module["path"] for module in modules if module["type"] == PREFIX + "Pooling")
    flags = read(folder, f"{path}/config.json")
    (chosen,) = (name for name, value in flags.items() if value is True)
    return chosen.removeprefix("pooling_mode_").partition("_")[0]


TRUTH = {
    "cls": ("cls", False),
    "mean": ("mean", False),
    "last": ("lasttoken", False),
    "first_last_mean": ("mean", True),
}
READERS = {TEI: by_text_embeddings_inference, VLLM: by_vllm, OLLAMA: by_ollama}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_sentence_transformer(tiny_bert(), tiny_tokenizer(), "mean", 8, folder)
    return folder


@pytest.mark.parametrize("projection", ["none", "mlp", "batchnorm"])
@pytest.mark.parametrize("pooling", TRUTH)
def test_a_server_is_named_if_it_gives_other_vectors_without_a_word(
    exported: Path, tmp_path: Path, pooling: str, projection: str
) -> None:
    folder = copytree(exported, tmp_path / "model")
    rmtree(folder / "1_Pooling")
    write_modules(folder, pooling, 8, 24, 3)
    layers = [] if projection == "none" else dense_layers(trained_projection(projection).state_dict())
    for layer in layers:
        config = {"in_features": 24, "out_features": 24, "bias": True, "activation_function": layer.activation}
        append_module(folder, "Dense", config, {"linear.weight": layer.weight, "linear.bias": layer.bias})
    truth = Served(*TRUTH[pooling], [layer.activation.rpartition(".")[2] for layer in layers])

    check_notes(folder, truth)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").touch()
    check_notes(folder, truth)


def check_notes(folder: Path, truth: Served) -> None:
    """Those that refuse the folder may be named, too: they would be wrong if they did not."""
    notes = " ".join(serving_notes(folder))
    for server, reads in READERS.items():
        with suppress(Refused):
            assert (server in notes) == (reads(folder) != truth), server


@pytest.mark.parametrize("lowercase", [True, False])
def test_capitals_that_a_server_would_lose_are_named(tmp_path: Path, lowercase: bool) -> None:
    words = Tokenizer(WordPiece({"[UNK]": 0, "[PAD]": 1, "a": 2}, unk_token="[UNK]"))
    words.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")
    export_sentence_transformer(tiny_bert(), tokenizer, "mean", 8, tmp_path / "model")

    assert ("lower-cases" in " ".join(serving_notes(tmp_path / "model"))) != lowercase


def test_export_says_what_servers_would_get_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_model(write_run(tmp_path / "plain"), tmp_path / "a", ExportOptions(normalize=True))
    assert "Served elsewhere" not in capsys.readouterr().out
    export_model(write_run(tmp_path / "mine", "first_last_mean"), tmp_path / "b", ExportOptions())
    assert "Served elsewhere: text-embeddings-inference takes the first token's" in capsys.readouterr().out
