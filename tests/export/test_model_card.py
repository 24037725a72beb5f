"""The card says what the run's files say, its programs run, and it gives away nothing of the machine."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from sentence_transformers import SentenceTransformer

from diffcse_scale.export.command import ExportOptions, export_model
from diffcse_scale.export.footprint import energy, hardware, run_seconds
from diffcse_scale.export.model_card import HERE, write_run_card
from diffcse_scale.export.onnx import OnnxComparison
from diffcse_scale.export.origin import backbone_of, data_sets
from diffcse_scale.model.pooling import POOLINGS
from diffcse_scale.recipe_file import load_recipe
from tests.support.hand_made_run import METRICS, RECORD, SECRETS, write_run


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_both_programs_in_the_card_run_and_give_the_same_vectors(pooling: str, normalize: bool, tmp_path: Path) -> None:
    export_model(write_run(tmp_path / "mine", pooling), tmp_path / "out", ExportOptions(normalize=normalize))
    found = []
    for program in re.findall(r"```python\n(.*?)```", card_of(tmp_path / "out"), re.DOTALL):
        names: dict = {}
        exec(program.replace(HERE, str(tmp_path / "out")), names)
        found.append(np.asarray(names["embeddings"]))

    assert len(found) == 2
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-6)
    assert np.abs(found[0][0] - found[0][1]).max() > 1e-3


def test_the_program_of_a_model_with_projection_gives_z(run: Path, tmp_path: Path) -> None:
    export_model(run, tmp_path / "out", ExportOptions(projection=True))
    (program,) = re.findall(r"```python\n(.*?)```", card_of(tmp_path / "out"), re.DOTALL)
    names: dict = {}
    exec(program.replace(HERE, str(tmp_path / "out")), names)

    z = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(["A man is playing a guitar."])
    np.testing.assert_allclose(names["embeddings"][:1], z, rtol=0, atol=1e-5)


def test_it_names_no_folder_person_or_host(run: Path, tmp_path: Path) -> None:
    export_model(run, tmp_path / "out", ExportOptions())

    card = card_of(tmp_path / "out")
    for secret in (*SECRETS, str(tmp_path), "cache_dir"):
        assert secret not in card
    assert "corpus.txt.gz" in card  # the last names say what it was trained on


def test_results_with_their_intervals_stand_in_the_text_and_in_the_front_matter(run: Path, tmp_path: Path) -> None:
    export_model(run, tmp_path / "out", ExportOptions())

    card = card_of(tmp_path / "out")
    assert "| before training, mean pooling | 40.00 |" in card
    assert "| step 100 of 100 (this model) | 61.50 |" in card
    assert "| STS-B test | Spearman x 100 | 57.12 | 55.00 to 59.50 | 1,379 |" in card
    assert "| STS13 (constant) | Spearman x 100 | undefined |" in card
    data = ModelCard.load(tmp_path / "out" / "README.md").data
    assert data.library_name == "sentence-transformers"
    assert data.pipeline_tag == "sentence-similarity"
    assert [(r.dataset_name, r.metric_value) for r in data.eval_results] == [("STS-B test", 57.125), ("MR", 57.125)]


def test_numbers_of_other_vectors_are_left_out(run: Path, tmp_path: Path) -> None:
    export_model(run, tmp_path / "unit", ExportOptions(normalize=True))
    export_model(run, tmp_path / "z", ExportOptions(projection=True))

    unit, z = (ModelCard.load(tmp_path / name / "README.md").data.eval_results for name in ("unit", "z"))
    assert [result.dataset_name for result in unit] == ["STS-B test"]  # a cosine does not see lengths; accuracies do
    assert z is None
    assert "*h* before it" in card_of(tmp_path / "z")


def test_training_is_described_by_the_runs_own_files(run: Path, tmp_path: Path) -> None:
    export_model(run, tmp_path / "out", ExportOptions())

    card = card_of(tmp_path / "out")
    assert "fingerprint `859a4a3463e44a77`" in card
    assert "at least 19,968 sentences" in card
    assert "100 steps of 64 sentences, 6,400 in all" in card
    assert "2 x NVIDIA A100-SXM4-80GB, world size 2, float32, ZeRO-2" in card
    assert "0.50 hours" in card
    assert "about 0.4 kWh: an estimate, not a measurement: 2 x NVIDIA A100-SXM4-80GB at an assumed 400 W each" in card
    assert "| model.generator | generator | embedded |" in card
    assert "![losses and development score against steps](curves.png)" in card
    assert (tmp_path / "out" / "curves.png").read_bytes() == (run / "curves.png").read_bytes()
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)```", card, re.DOTALL)[1])
    assert recipe["model"]["pooling"] == "mean"
    assert recipe["evaluation"]["data"] == "sts"


def test_time_and_energy_by_hand() -> None:
    assert run_seconds(METRICS) == 90 + 1000 + 10 + 700
    assert run_seconds([{"step": 1, "loss": 1.0}]) == 0
    found = energy(RECORD, 1800.0)
    assert found is not None
    assert (found.devices, found.watts) == (2, 400)
    assert found.kwh == pytest.approx(2 * 0.5 * 0.4)
    on_cpus = {**RECORD, "environment": {**RECORD["environment"], "devices": []}}
    assert energy(on_cpus, 3600.0).kwh == pytest.approx(2 * 8 * 0.010)
    moved = {**RECORD, "resumed": [on_cpus, RECORD]}
    assert energy(moved, 3600.0) is None
    assert len(hardware(moved)) == 2


def test_names_that_people_give_are_shown_and_do_nothing(run: Path, tmp_path: Path) -> None:
    name, file = "a|b <script> `c` **d** [e](x:f) ``` h", "my_corpus|[of](x) <b>\n# g\n\n```.txt"
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["name"], recipe["data"]["files"] = name, [file]
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    export_model(run, tmp_path / name, ExportOptions())

    card = ModelCard.load(tmp_path / name / "README.md")
    assert card.data.model_name == name
    html = MarkdownIt("commonmark").enable("table").render(card.text)
    assert "<script>" not in html and "<strong>d" not in html and 'href="x:f"' not in html and "<b>" not in html
    title, *_ = re.findall(r"<h1>(.*?)</h1>", html)
    assert unescape(title) == " ".join(name.split()) and html.count("<h1>") == 1
    (text,) = re.findall(r"<td>text</td>\s*<td>(.*?);", unescape(html))
    assert text == " ".join(file.split())
    (shown,) = re.findall(r'<pre><code class="language-yaml">(.*?)</code></pre>', html, re.DOTALL)
    assert yaml.safe_load(unescape(shown))["name"] == name


def test_what_training_left_out_of_the_backbones_folder_is_told(run: Path, tmp_path: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "left_out": ["its mean pooling", "its prompts a|b"]}))
    export_model(run, tmp_path / "out", ExportOptions())
    row = r"| parts of the backbone's folder not used | its mean pooling; its prompts a\|b |"
    assert row in card_of(tmp_path / "out")


def test_a_licence_is_read_and_never_made_up(run: Path, tmp_path: Path) -> None:
    export_model(run, tmp_path / "out", ExportOptions())
    assert "licence of the backbone is not known" in card_of(tmp_path / "out")
    assert ModelCard.load(tmp_path / "out" / "README.md").data.license is None

    (run / "model" / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: some/bert\n---\n# mine\n")
    backbone = backbone_of(load_recipe("bert_base_sts", ["data.files=x.txt"]), run)
    assert (backbone.hub, backbone.license) == ("some/bert", "apache-2.0")  # the card of the run's end is believed
    own = load_recipe("bert_base_sts", ["data.files=x.txt", f"model.encoder={tmp_path}"])
    assert backbone_of(own, tmp_path / "no run").license is None
    (tmp_path / "config.json").write_text(json.dumps({"license": "mit"}))
    assert backbone_of(own, tmp_path / "no run").license == "mit"


@pytest.mark.parametrize(("repo", "title"), [(None, "mail search v2"), ("me/mail-search", "me/mail-search")])
def test_the_title_is_the_folders_name_or_the_repositorys(run: Path, tmp_path: Path, repo, title) -> None:
    write_run_card(run / "model", run, title="mail search v2", model_id=repo)
    assert ModelCard.load(run / "model" / "README.md").data.model_name == title
    assert f"\n# {title}\n" in card_of(run / "model")


def test_a_run_whose_model_is_not_exported_is_called_by_its_folder(run: Path) -> None:
    write_run_card(run / "model", run)
    assert f"\n# {run.name}\n" in card_of(run / "model")


def test_languages_and_data_sets_stand_in_the_front_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "mine", encoder="bert-base-uncased")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    entries = ["hf://datasets/org/news/2024/a.txt", "hf://datasets/org/news@main/b.txt", "org/pairs:train", "own.csv"]
    (run / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "data": {**recipe["data"], "files": entries}}))
    (run / "model" / "README.md").unlink(missing_ok=True)
    write_run_card(run / "model", run)

    data = ModelCard.load(run / "model" / "README.md").data
    assert data.datasets == ["org/news", "org/pairs"]
    assert (data.language, data.license, data.base_model) == (["en"], "apache-2.0", "bert-base-uncased")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "pairs").mkdir(parents=True)  # came later
    write_run_card(run / "model", run)
    assert ModelCard.load(run / "model" / "README.md").data.datasets == ["org/news", "org/pairs"]

    (run / "model" / "README.md").write_text("---\nlanguage: [de, fr]\nbase_model: some/bert\n---\n# mine\n")
    write_run_card(run / "model", run)
    assert ModelCard.load(run / "model" / "README.md").data.language == ["de", "fr"]  # a user's are kept


@pytest.mark.parametrize("entry", ["embedded", "data.csv", "s3://bucket/a.jsonl", "https://host/a/b.txt.gz", "/data/a"])
def test_no_data_set_is_made_up(entry: str, tmp_path: Path) -> None:
    assert data_sets(load_recipe("bert_base_sts", [f"data.files=['{entry}']"]), tmp_path) == []


@pytest.mark.parametrize(
    ("encoder", "hub"),
    [("bert-base-uncased", "bert-base-uncased"), ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"), ("/models/bert", None),
     ("./bert", None), ("models/a/bert", None), ("here/bert", None)],
)  # fmt: skip
def test_only_a_name_on_the_hub_is_a_base_model(encoder, hub, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "bert").mkdir(parents=True)
    recipe = load_recipe("bert_base_sts", ["data.files=x.txt", f"model.encoder={encoder}"])
    backbone = backbone_of(recipe, tmp_path)
    assert backbone.hub == hub
    assert backbone.name == (hub or "bert")


def test_a_folder_that_is_called_like_a_known_backbone_has_not_its_licence(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("bert_base_sts", ["data.files=x.txt", "model.encoder=roberta-base"])
    assert backbone_of(recipe, tmp_path).license == "mit"
    (tmp_path / "roberta-base").mkdir()
    assert backbone_of(recipe, tmp_path).license is None


def test_onnx_is_reported_as_it_was_measured(run: Path) -> None:
    write_run_card(run / "model", run, model_id="some/name", onnx=OnnxComparison(3.2e-7, 44, (0.9991, 0.9876)))

    card = card_of(run / "model")
    assert "at most\n3.2e-07 from PyTorch's" in card
    assert "0.9991" in card and "0.9876" in card
    assert 'SentenceTransformer("some/name"' in card and HERE not in card


def test_a_run_without_a_development_set_has_a_card_too(run: Path) -> None:
    write_run_card(run / "model", run, result={"steps": 100})
    assert "Nothing was measured while training" in card_of(run / "model")
