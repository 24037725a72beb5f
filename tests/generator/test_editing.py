"""Edits that are made before training are the generator's, and training with them needs none.

The truth is the generator itself, asked for the same sentences one at a time.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.randomness import derive_seed
from diffcse_scale.generator import editing
from diffcse_scale.generator.editing import make_edits
from diffcse_scale.model.backbone import load_tokenizers
from diffcse_scale.model.generator import load_generator
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.text.batches import Batches, make_chunk
from diffcse_scale.text.corruption import Corruption
from diffcse_scale.text.edits import edits_folder, load_edits, name_of
from tests.support.forks import spawn
from tests.support.launch import launch, metrics


@pytest.fixture(autouse=True, scope="module")
def _forked() -> Iterator[None]:
    """Processes that edit are forks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(editing.multiprocessing, "spawn", spawn)
        yield


@pytest.fixture(scope="module")
def prepared(toy_world, tmp_path_factory):
    """Recipe, tokenizers and tokens, with three versions of each sentence made by two processes."""
    cache = tmp_path_factory.mktemp("cache")
    recipe = load_recipe(
        str(toy_world / "toy.yaml"), ["objective.edits=3", f"data.cache_dir={cache}", "data.workers=2"]
    )
    tokenizers = load_tokenizers(recipe.model)
    return recipe, tokenizers, make_edits(recipe, tokenizers)


def test_a_version_is_what_the_generator_writes(prepared):
    recipe, tokenizers, tokens = prepared
    objective = recipe.objective.model_copy(update={"edits": None})
    generator = load_generator(recipe.model_copy(update={"objective": objective}), tokenizers, torch.device("cpu"))
    corruption = Corruption.of(tokenizers.discriminator, 0.3, derive_seed(recipe.seed, "corruption"))
    edits, lengths = load_edits(tokens, recipe), tokens.lengths()
    differ = 0
    for sentence in (0, 5, len(tokens) - 1):
        alone = np.array([sentence])
        length = int(lengths[sentence])
        ids = tokens.padded(alone, 0, length, 0)[:, None]
        for version in range(3):
            rows = np.array([[version * len(tokens) + sentence]])
            chunk = make_chunk([(ids, np.array([[length]]))], rows, corruption)
            # version 2 is that of the second epoch's first view
            found = edits.padded(alone, version // 2, version % 2, length, 0)
            assert np.array_equal(found, generator.edit(chunk)[:, 0].numpy())
            differ += int((found != ids[:, 0]).sum())
    assert differ > 0


def test_views_and_epochs_take_turns_and_special_tokens_stay(prepared):
    recipe, _, tokens = prepared
    edits, everything = load_edits(tokens, recipe), np.arange(len(tokens))
    length = int(tokens.lengths().max())
    ids = tokens.padded(everything, 0, length, 0)
    versions = [edits.padded(everything, epoch, view, length, 0) for epoch in range(3) for view in range(2)]
    assert all(np.array_equal(versions[turn], versions[turn + 3]) for turn in range(3))
    assert not any(np.array_equal(versions[a], versions[b]) for a, b in [(0, 1), (0, 2), (1, 2)])
    for version in versions[:3]:
        assert np.array_equal(version[:, 0], ids[:, 0])
        assert 0.05 < (version != ids).sum() / tokens.lengths().sum() < 0.3


def test_more_versions_are_added_and_the_old_ones_stay(prepared, tmp_path):
    recipe, tokenizers, tokens = prepared
    folder = edits_folder(tokens, recipe)
    before = {file.name: file.read_bytes() for file in folder.glob("version_*")}
    assert set(before) == {name_of(version, 0) for version in range(3)}
    copy = tmp_path / "cache"
    shutil.copytree(recipe.data.cache_dir, copy)
    # one process now: the files do not depend on how the work is shared
    data = recipe.data.model_copy(update={"cache_dir": str(copy), "workers": 1})
    objective = recipe.objective.model_copy(update={"edits": 4})
    more = recipe.model_copy(update={"objective": objective, "data": data})
    make_edits(more, tokenizers)
    after = {file.name: file.read_bytes() for file in edits_folder(tokens, more).glob("version_*")}
    assert len(after) == 4 and all(after[name] == content for name, content in before.items())
    shutil.rmtree(edits_folder(tokens, more))
    make_edits(recipe.model_copy(update={"data": data}), tokenizers)
    again = {file.name: file.read_bytes() for file in edits_folder(tokens, more).glob("version_*")}
    assert again == before


@pytest.fixture
def copied(prepared, tmp_path):
    """The same in a cache of the test's own, and the folder of the edits."""
    recipe, tokenizers, tokens = prepared
    shutil.copytree(recipe.data.cache_dir, tmp_path / "cache")
    data = recipe.data.model_copy(update={"cache_dir": str(tmp_path / "cache"), "workers": 1})
    recipe = recipe.model_copy(update={"data": data})
    return recipe, tokenizers, tokens, edits_folder(tokens, recipe)


def zero(file):
    content = file.read_bytes()
    file.write_bytes(content[:128] + bytes(len(content) - 128))


def test_damaged_versions_are_not_trained_on(copied):
    recipe, _, tokens, folder = copied
    zero(folder / name_of(1, 0))
    with pytest.raises(InputError, match=r"2 edited versions .* \(damaged: version_1_0.npy\); make them"):
        load_edits(tokens, recipe)
    (folder / "facts.json").write_bytes(b"")
    with pytest.raises(InputError, match=r"0 edited versions .* \(damaged: facts.json\)"):
        load_edits(tokens, recipe)


@pytest.mark.slow
def test_a_damaged_version_is_made_again_alone(copied, caplog):
    recipe, tokenizers, _, folder = copied
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    inodes = {file.name: file.stat().st_ino for file in folder.iterdir()}
    zero(folder / name_of(1, 0))
    make_edits(recipe, tokenizers)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    made = [file.name for file in sorted(folder.iterdir()) if file.stat().st_ino != inodes[file.name]]
    assert made == ["facts.json", name_of(1, 0)]
    (said,) = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert said == f"Made again, because it is damaged: {folder} (version_1_0.npy)."


def test_edits_of_earlier_versions_without_digests_are_used(copied):
    recipe, _, tokens, folder = copied
    (folder / "facts.json").write_text('{"versions": 3}')
    assert load_edits(tokens, recipe).versions == 3
    os.truncate(folder / name_of(2, 0), 200)
    with pytest.raises(InputError, match="2 edited versions"):
        load_edits(tokens, recipe)


def test_runs_of_about_one_length_are_the_corpus_whatever_is_sorted_at_a_time(prepared, monkeypatch):
    _, _, tokens = prepared
    for sorted_at_a_time in (64, 1000):
        monkeypatch.setattr(editing, "SORTED", sorted_at_a_time)
        monkeypatch.setattr(editing, "SENTENCES", 16)
        runs = list(editing._runs(tokens, 0))
        assert sorted(np.concatenate(runs).tolist()) == list(range(len(tokens)))
        for number, run in enumerate(runs[1:], start=1):
            lengths = tokens.lengths(0, np.concatenate([runs[number - 1], run]))
            assert (np.diff(lengths) >= 0).all() or number * 16 % sorted_at_a_time == 0


def test_batches_hold_the_edits_and_corrupt_nothing(prepared):
    recipe, tokenizers, tokens = prepared
    edits = load_edits(tokens, recipe)
    batches = Batches(tokens, tokenizers, recipe, edits=edits)
    (chunk,) = batches.batch(len(batches) + 1).chunks  # of the second epoch
    assert chunk.edited_ids.shape == chunk.original_ids.shape and len(chunk.corrupted) == 0
    for row, sentence in enumerate((chunk.row_ids[:, 0] // 2 - len(tokens)).tolist()):
        number = int(batches.sentence_ids(len(batches) + 1)[sentence - len(batches.sentence_ids(0))])
        length = int(chunk.attention_mask[row, 1].sum())
        expected = edits.padded(np.array([number]), 1, 1, length, 0)[0]
        assert np.array_equal(chunk.edited_ids[row, 1, :length].numpy(), expected)


def test_training_with_them_needs_no_generator(prepared, toy_world, tmp_path):
    recipe, _, _ = prepared
    arguments = ["objective.edits=3", f"data.cache_dir={recipe.data.cache_dir}", "max_steps=4", "log_every=4"]
    result = launch("--recipe", str(toy_world / "toy.yaml"), "--output", str(tmp_path / "run"), *arguments)
    assert result.returncode == 0, result.stdout
    (row,) = [row for row in metrics(tmp_path / "run") if "rtd" in row]
    assert row["rtd"] > 0 and 0.05 < row["replaced_share"] < 0.3


@pytest.mark.parametrize("versions", [4, 99])
def test_versions_that_are_not_there_are_asked_for(prepared, versions):
    recipe, _, tokens = prepared
    objective = recipe.objective.model_copy(update={"edits": versions})
    with pytest.raises(InputError, match=f"3 edited versions .* `diffcse-scale prepare --edits {versions}`"):
        load_edits(tokens, recipe.model_copy(update={"objective": objective}))


def test_without_rtd_there_is_nothing_to_edit(prepared):
    recipe, tokenizers, _ = prepared
    objective = recipe.objective.model_copy(update={"rtd_weight": 0.0})
    with pytest.raises(InputError, match="nothing to edit"):
        make_edits(recipe.model_copy(update={"objective": objective}), tokenizers)
