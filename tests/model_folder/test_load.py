"""One loader for all commands: a model folder is what its files say, or one sentence says what is wrong with it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import BertModel

from diffcse_scale.encoding import EncodeOptions, encode
from diffcse_scale.evaluation.command import evaluate_models
from diffcse_scale.export import export_sentence_transformer
from diffcse_scale.export.command import ExportOptions, export_model
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model.backbone import load_backbone, load_masked_lm, load_tokenizer
from diffcse_scale.model.lora import add_adapters
from diffcse_scale.model_folder.load import load_model
from diffcse_scale.model_folder.save import append_module, write_modules
from diffcse_scale.recipe import LoraRecipe
from tests.support.tiny_models import tiny_bert, tiny_config, tiny_masked_lm, tiny_tokenizer

WEIGHTS, MATRIX = "model.safetensors", "encoder.layer.1.output.dense.weight"
SENTENCES = ["a dog runs", "the cat sleeps"]
Change = Callable[[dict[str, torch.Tensor]], Any]


def change_weights(folder: Path, change: Change, file: str = WEIGHTS) -> None:
    weights = load_file(folder / file)
    change(weights)
    save_file(weights, folder / file, metadata={"format": "pt"})


def change_json(file: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An exported BERT with mean pooling."""
    export_sentence_transformer(tiny_bert(), tiny_tokenizer(), "mean", 16, tmp_path / "model")
    return tmp_path / "model"


def set_nan(key: str) -> Change:
    return lambda weights: weights[key].view(-1)[3:4].fill_(float("nan"))


DAMAGES: dict[str, tuple[Change, str]] = {
    "missing": (lambda w: w.pop(MATRIX), rf"has no trained weights for {MATRIX} \(1 in all\), which \w+ needs"),
    "another shape": (lambda w: w.update({MATRIX: torch.zeros(3, 4)}), rf"{MATRIX} is \[3, 4\], not \[24, 32\]"),
    "of a layer too many": (
        lambda w: w.update({"encoder.layer.3.output.dense.weight": torch.zeros(1)}),
        r"has no place for: encoder\.layer\.3\.output\.dense\.weight",
    ),
    "of nothing known": (lambda w: w.update({"extra.weight": torch.zeros(1)}), r"has no place for: extra\.weight"),
    "NaN": (set_nan(MATRIX), rf"weights that are not finite numbers: \S*{MATRIX} \(1 in all\)"),
    "infinite": (lambda w: w["embeddings.LayerNorm.bias"].fill_(float("-inf")), r"not finite numbers: \S*embeddings"),
}
LOADERS: dict[str, Callable[[Path], object]] = {
    "its own modules": load_model,
    "another pooling": lambda folder: load_model(folder, "cls"),
    "training": lambda folder: load_backbone(str(folder)),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_refused_by_every_loader(folder: Path, damage: str, loader: str) -> None:
    change, message = DAMAGES[damage]
    change_weights(folder, change)
    with pytest.raises(InputError, match=message):
        LOADERS[loader](folder)


def _encode(folder: Path, text: Path, out: Path) -> None:
    encode(EncodeOptions(model=str(folder), input=[str(text)], output=str(out), devices="cpu"), progress=False)


COMMANDS: dict[str, Callable[[Path, Path, Path], object]] = {
    "encode": _encode,
    "evaluate": lambda folder, text, out: evaluate_models([folder], text, json_file=out / "embeddings"),
    "export": lambda folder, text, out: export_model(folder, out / "embeddings", ExportOptions()),
}


UNUSABLE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no weights": (lambda folder: change_weights(folder, DAMAGES["missing"][0]), "has no trained weights for"),
    "pooling first": (
        lambda folder: change_json(folder / "modules.json", lambda modules: modules.reverse()),
        "begins with Pooling, which reads no text; give a model whose",
    ),
    "no pooling": (
        lambda folder: change_json(folder / "modules.json", lambda modules: modules.pop()),
        "has no pooling where its modules need one .* choose one with --pooling",
    ),
}


@pytest.mark.parametrize("fault", UNUSABLE)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_before_there_is_a_result(
    folder: Path, tmp_path: Path, monkeypatch: Any, command: str, fault: str
) -> None:
    monkeypatch.setenv("DIFFCSE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "pairs.tsv").write_text("1\ta dog\ta cat\n2\tthe cat\ta horse\n")
    (tmp_path / "text.txt").write_text("a dog\n")
    change, message = UNUSABLE[fault]
    change(folder)
    text = tmp_path / ("pairs.tsv" if command == "evaluate" else "text.txt")
    with pytest.raises(InputError, match=message):
        COMMANDS[command](folder, text, tmp_path / "out")
    assert not list(tmp_path.glob("out/embeddings*"))


def test_a_generator_or_discriminator_with_damaged_weights_is_refused(tmp_path: Path) -> None:
    tiny_masked_lm("bert").save_pretrained(tmp_path)
    load_masked_lm(str(tmp_path))
    change_weights(tmp_path, set_nan("cls.predictions.transform.dense.weight"))
    with pytest.raises(InputError, match=r"not finite numbers: cls\.predictions\.transform\.dense\.weight"):
        load_masked_lm(str(tmp_path))
    load_backbone(str(tmp_path))  # has no such part
    change_weights(tmp_path, lambda w: w.update({"bert.encoder.layer.9.x": torch.zeros(1)}))
    for load in (load_masked_lm, load_backbone):
        with pytest.raises(InputError, match=r"has no place for: bert\.encoder\.layer\.9\.x"):
            load(str(tmp_path))


def test_the_heads_of_other_tasks_are_left_out(tmp_path: Path) -> None:
    whole = tiny_masked_lm("bert")
    whole.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    change_weights(tmp_path, lambda w: w.update({"cls.seq_relationship.weight": torch.zeros(2, 24)}))
    load_masked_lm(str(tmp_path))
    model, _ = load_model(tmp_path, "mean")
    assert torch.equal(model[0].auto_model.embeddings.word_embeddings.weight, whole.get_input_embeddings().weight)


def test_a_pooler_may_be_missing_and_is_then_not_made_up(folder: Path, tmp_path: Path) -> None:
    model, _ = load_model(folder)
    assert model[0].auto_model.pooler is None
    BertModel(tiny_config("bert")).save_pretrained(tmp_path / "pooler")
    tiny_tokenizer().save_pretrained(tmp_path / "pooler")
    change_weights(tmp_path / "pooler", lambda w: w.pop("pooler.dense.bias"))
    load_backbone(str(tmp_path / "pooler"))
    load_model(tmp_path / "pooler", "cls")


@pytest.mark.parametrize("left", [[], ["tokenizer_config.json"]])
def test_a_model_without_its_tokenizer_files_is_refused(folder: Path, left: list[str]) -> None:
    for file in folder.glob("tokenizer*"):
        if file.name not in left:
            file.unlink()
    for load in (load_model, lambda folder: load_tokenizer(str(folder))):
        with pytest.raises(InputError, match=r"Tokenizer of .* (has no vocabulary|cannot be loaded)|cannot be read"):
            load(folder)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """The same model in several files of weights."""
    tiny_bert().save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    tiny_tokenizer().save_pretrained(tmp_path / "shards")
    write_modules(tmp_path / "shards", "mean", 16, 24, 3)
    return tmp_path / "shards"


def test_shards_are_read_whole(shards: Path, folder: Path) -> None:
    assert len(list(shards.glob("model-*.safetensors"))) > 1
    np.testing.assert_array_equal(load_model(shards)[0].encode(SENTENCES), load_model(folder)[0].encode(SENTENCES))


@pytest.mark.parametrize("damage", ["a weight", "a file", "a number"])
def test_shards_that_are_not_whole_are_refused(shards: Path, damage: str) -> None:
    file = shards / json.loads((shards / "model.safetensors.index.json").read_text())["weight_map"][MATRIX]
    if damage == "a file":
        file.unlink()
    else:
        change_weights(shards, DAMAGES["missing" if damage == "a weight" else "NaN"][0], file.name)
    for load in (load_model, lambda folder: load_backbone(str(folder))):
        with pytest.raises(InputError, match=rf"{MATRIX}|cannot be (read|loaded): .*{file.name}"):
            load(shards)


@pytest.fixture
def adapters(folder: Path, tmp_path: Path) -> Path:
    """Adapters whose base is `folder`."""
    pytest.importorskip("peft")
    backbone = load_backbone(str(folder))
    add_adapters(backbone, LoraRecipe(rank=2))
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    export_sentence_transformer(backbone, tiny_tokenizer(), "mean", 16, tmp_path / "adapters", adapter=True)
    return tmp_path / "adapters"


def test_adapters_are_loaded_on_their_base(adapters: Path, folder: Path) -> None:
    found, expected = (SentenceTransformer(str(adapters)), load_model(adapters)[0])
    np.testing.assert_array_equal(found.encode(SENTENCES), expected.encode(SENTENCES))
    assert np.abs(found.encode(SENTENCES) - load_model(folder)[0].encode(SENTENCES)).max() > 1e-2


ADAPTER = "base_model.model.encoder.layer.1.output.dense.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(ADAPTER), r"no trained weights for encoder\.layer\.1\.output\.dense\.lora_A"),
        (lambda w: w.update({ADAPTER: torch.zeros(2, 5)}), r"lora_A\S* is \[2, 5\], not \[2, 32\]"),
        (lambda w: w.update({"base_model.model.extra.lora_A.weight": torch.zeros(1)}), r"no place for: extra\.lora_A"),
        (set_nan(ADAPTER), r"not finite numbers: \S*lora_A"),
    ],
)
def test_damaged_adapters_are_refused(adapters: Path, change: Change, message: str) -> None:
    change_weights(adapters, change, "adapter_model.safetensors")
    with pytest.raises(InputError, match=message):
        load_model(adapters)


@pytest.mark.parametrize("damage", DAMAGES)
def test_adapters_on_a_damaged_base_are_refused(adapters: Path, folder: Path, damage: str) -> None:
    change_weights(folder, DAMAGES[damage][0])
    message = DAMAGES[damage][1].replace("dense.weight", r"dense\.(base_layer\.)?weight")
    with pytest.raises(InputError, match=message):
        load_model(adapters)


def test_adapters_in_the_folder_of_their_base_are_loaded_and_both_checked(adapters: Path, folder: Path) -> None:
    for name in ("config.json", WEIGHTS):
        shutil.copyfile(folder / name, adapters / name)
    load_model(adapters)
    change_weights(adapters, DAMAGES["missing"][0])
    with pytest.raises(InputError, match=DAMAGES["missing"][1]):
        load_model(adapters)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("linear.bias"), r"cannot be read: .*Missing key.*linear\.bias"),
        (set_nan("linear.weight"), r"not finite numbers: 2\.linear\.weight"),
    ],
)
def test_the_weights_of_further_modules_count_too(folder: Path, change: Change, message: str) -> None:
    config = {"in_features": 24, "out_features": 8, "bias": True, "activation_function": "torch.nn.Tanh"}
    append_module(folder, "Dense", config, {"linear.weight": torch.ones(8, 24), "linear.bias": torch.ones(8)})
    load_model(folder)
    change_weights(folder / "2_Dense", change)
    with pytest.raises(InputError, match=message):
        load_model(folder)


def test_a_pooling_that_is_asked_for_takes_the_place_of_one_that_is_missing(folder: Path) -> None:
    expected = load_model(folder)[0].encode(SENTENCES)
    change_json(folder / "modules.json", lambda modules: modules.pop())
    np.testing.assert_array_equal(load_model(folder, "mean")[0].encode(SENTENCES), expected)


TRAP = "from pathlib import Path\nPath(__file__).with_name('sprung').touch()\n\n\nclass Own:\n    pass\n"


@pytest.mark.parametrize(
    "kind",
    ["trap.Own", "os.system", "sentence_transformers.util.fullname", "sentence_transformers.models.trap.Own",
     "sentence_transformers_extra.Pooling", "sentence_transformers.sparse_encoder.modules.SpladePooling"],
)  # fmt: skip
def test_a_module_that_is_not_sentence_transformers_own_is_refused(folder: Path, kind: str) -> None:
    (folder / "trap.py").write_text(TRAP)
    change_json(folder / "modules.json", lambda modules: modules.append({**modules[-1], "name": "2", "type": kind}))
    with pytest.raises(InputError, match=rf"has a module of type {kind} \(modules\.json\), which is not run"):
        load_model(folder)
    assert not (folder / "sprung").exists()


def test_the_modules_inside_a_router_are_looked_at_too(folder: Path) -> None:
    change_json(folder / "modules.json", lambda modules: modules.append({**modules[-1], "path": "2_Router"}))
    (folder / "2_Router").mkdir()
    (folder / "2_Router" / "router_config.json").write_text('{"types": {"x": "trap.Own"}, "structure": {"a": ["x"]}}')
    with pytest.raises(InputError, match=r"has a module of type trap\.Own \(router_config\.json\)"):
        load_model(folder)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("family", ["bert", "strange"], ids=["known family", "unknown family"])
def test_a_models_own_code_is_refused_where_nobody_asked_for_it(folder: Path, file: str, family: str) -> None:
    (folder / "trap.py").write_text(TRAP)
    own = {"AutoConfig": "trap.Own", "AutoModel": "trap.Own", "AutoTokenizer": ["trap.Own", "trap.Own"]}
    change_json(folder / file, lambda settings: settings.update(auto_map=own))
    change_json(folder / "config.json", lambda settings: settings.update(model_type=family))
    training = load_backbone if file == "config.json" else load_tokenizer
    for load in (load_model, lambda folder: training(str(folder))):
        with pytest.raises(InputError, match=rf"brings code of its own \(auto_map in {file}\), which is not run"):
            load(folder)
    assert not (folder / "sprung").exists()


def test_the_option_for_remote_code_is_what_lets_a_models_own_code_be(folder: Path) -> None:
    change_json(folder / "config.json", lambda settings: settings.update(auto_map={"AutoModel": "trap.Own"}))
    with pytest.raises(InputError, match=r"model\.trust_remote_code=true"):
        load_backbone(str(folder))
    with pytest.raises(InputError, match=r"trap\.py"):  # is looked for, and is not there
        load_backbone(str(folder), trust_remote_code=True)


def test_adapters_whose_base_has_its_own_code_are_refused(adapters: Path, folder: Path) -> None:
    change_json(folder / "config.json", lambda settings: settings.update(auto_map={"AutoModel": "trap.Own"}))
    with pytest.raises(InputError, match=rf"Model {folder} brings code of its own"):
        load_model(adapters)


def test_a_list_beside_the_model_is_no_configuration(folder: Path) -> None:
    """Published models carry the list of their training data as data_config.json."""
    (folder / "data_config.json").write_text('[{"name": "reddit.jsonl.gz", "weight": 1}]')
    load_model(folder)


class Sprung:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.file,)


def test_nothing_but_weights_is_unpickled(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(state, folder / "pytorch_model.bin")
    load_model(folder)
    torch.save({**state, "x": Sprung(tmp_path / "sprung")}, folder / "pytorch_model.bin")
    for load in (load_model, lambda folder: load_backbone(str(folder))):
        with pytest.raises(InputError, match="holds Python objects beside weights, which are not unpickled"):
            load(folder)
    # sentence-transformers would pass it on
    change_json(folder / "sentence_bert_config.json", lambda c: c.update(model_args={"weights_only": False}))
    with pytest.raises(InputError, match=r"asks for the loading option weights_only \(sentence_bert_config\.json\)"):
        load_model(folder)
    assert not (tmp_path / "sprung").exists()


def hub_cache(folder: Path, cache: Path) -> Path:
    """The snapshot of a model as huggingface_hub lays it out: every file a link to a blob without an ending."""
    snapshot, blobs = cache / "models--me--model" / "snapshots" / ("a" * 40), cache / "models--me--model" / "blobs"
    blobs.mkdir(parents=True)
    for number, file in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        shutil.copyfile(file, blobs / f"{number:040x}")
        place = snapshot / file.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(os.path.relpath(blobs / f"{number:040x}", place.parent))
    return snapshot


def test_a_snapshot_in_the_hubs_cache_is_loaded_and_exported_by_content(folder: Path, tmp_path: Path) -> None:
    snapshot = hub_cache(folder, tmp_path / "hub")
    expected = load_model(folder)[0].encode(SENTENCES)
    np.testing.assert_array_equal(load_model(snapshot)[0].encode(SENTENCES), expected)
    load_backbone(str(snapshot))
    export_model(snapshot, tmp_path / "out", ExportOptions())
    assert not [file for file in (tmp_path / "out").rglob("*") if file.is_symlink()]
    shutil.rmtree(tmp_path / "hub")
    np.testing.assert_array_equal(load_model(tmp_path / "out")[0].encode(SENTENCES), expected)
