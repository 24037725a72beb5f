"""Ranks write, copy and read the files of a large model side by side; the folder is the one that one writer makes.

The truth is what transformers saves of the same weights in one process. Files of weights are cut at a few kilobytes, so
that tiny models have as many as large ones.
"""

from __future__ import annotations

import errno
import os
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deepspeed
import pytest

from diffcse_scale.distributed import barrier, gather_objects, is_main, rank
from diffcse_scale.engine.launch import start_process_group
from diffcse_scale.export import export_sentence_transformer
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.ownership import MARK
from diffcse_scale.foundation.run_files import PROJECTION
from diffcse_scale.model.networks import DiffCSENetworks
from diffcse_scale.model_folder import weight_files
from diffcse_scale.recipe import ObjectiveRecipe
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.runs.directory import RunDirectory
from diffcse_scale.training import writers
from diffcse_scale.training.best_model import BestModel, digests, numbered
from diffcse_scale.training.writers import owners, side_by_side, write_encoder
from tests.support.file_events import FileEvents, fail, kill
from tests.support.files import contents
from tests.support.ranks import run_ranks
from tests.support.tiny_models import tiny_backbone, tiny_tokenizer

SMALL, LARGE = 6000, 10**6  # bytes of a file: several files, and one
LENGTH = 16


def test_fewer_files_than_ranks_go_to_ranks_that_are_far_apart():
    assert owners(5, [0, 1]) == [0, 1, 0, 1, 0]
    assert owners(2, range(8)) == [0, 4]
    assert owners(11, range(8)) == [*range(8), 0, 2, 5]
    assert owners(3, [0]) == [0, 0, 0]


class Watched:
    """What this rank opens for writing, gathers, and holds of what it has gathered."""

    def __init__(self, folder: Path) -> None:
        self.opened: list[str] = []
        self.gathers, self.largest = 0, 0
        self._held: list[Any] = []
        self._events = FileEvents([folder], self._open, only="open", named=".safetensors")
        self._patch = pytest.MonkeyPatch()

    def _open(self, event: Any) -> None:
        self.opened.append(Path(event.path).name)

    def __enter__(self) -> Watched:
        gathered, of_one = writers.gathered, deepspeed.zero.GatheredParameters

        def seen(*arguments: Any) -> dict[str, Any]:
            tensors = gathered(*arguments)
            self._held += map(weakref.ref, tensors.values())
            alive = [tensor for held in self._held if (tensor := held()) is not None]
            self.largest = max(self.largest, sum(tensor.nbytes for tensor in alive))
            return tensors

        def counted(*arguments: Any) -> Any:
            self.gathers += 1
            return of_one(*arguments)

        self._patch.setattr(writers, "gathered", seen)
        self._patch.setattr(deepspeed.zero, "GatheredParameters", counted)
        self._events.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._events.__exit__()
        self._patch.undo()


def partitioned_best(family: str, run: Path) -> BestModel:
    """Of a run whose encoder ZeRO-3 has partitioned."""
    start_process_group()
    recipe = load_recipe("quickstart", [f"evaluation.max_length={LENGTH}", "model.pooling=mean"])
    network = DiffCSENetworks(tiny_backbone(family), ObjectiveRecipe(rtd_weight=0.0), projection="batchnorm")
    deepspeed.zero.Init(module=network.encoder.backbone)
    assert all(parameter.numel() == 0 for parameter in network.encoder.backbone.parameters())
    checkpoints: Any = SimpleNamespace(states=list)
    return BestModel(recipe, network, tiny_tokenizer(), RunDirectory(run), checkpoints)


def kept(folder: Path, family: str, file_bytes: int) -> dict[str, Any]:
    """What a rank sees while the encoder becomes the best of a run, is found again, and becomes its model."""
    weight_files.FILE_BYTES = file_bytes
    best = partitioned_best(family, folder / "run")
    with Watched(folder) as watched:
        best.keep({"step": 4}, lambda doing: None)
    state = {"best": best.facts, "best_files": best.files}
    with FileEvents([folder], lambda event: read.append(event.path), only="read", named=".safetensors", reads=True):
        read: list[str] = []
        best.restore(gather_objects(state)[0])
    with Watched(folder) as placed:
        best.place({})
    barrier()
    return {
        "opened": watched.opened,
        "largest": watched.largest,
        "gathers": watched.gathers,
        "files": best.files,
        "read": [Path(path).name for path in read],
        "copied": placed.opened,
        "expected gathers": len(best._model.encoder.backbone.state_dict()) + len(best._model.projection.state_dict()),
    }


def one_process(folder: Path, family: str) -> dict[str, bytes]:
    """What one process writes that has all weights."""
    export_sentence_transformer(tiny_backbone(family), tiny_tokenizer(), "mean", LENGTH, folder)
    return contents(folder)


@pytest.mark.parametrize(("family", "count"), [pytest.param("bert", 4, marks=pytest.mark.slow), ("qwen3", 2)])
def test_each_rank_writes_files_and_the_folder_is_that_of_one_writer(family, count, tmp_path, monkeypatch):
    monkeypatch.setattr(weight_files, "FILE_BYTES", SMALL)
    truth = one_process(tmp_path / "truth", family)
    ranks = run_ranks(kept, count, tmp_path, tmp_path, family, SMALL)
    best = contents(tmp_path / "run" / "best" / "step-00000004")
    assert best.pop(PROJECTION)
    weights = sorted(name for name in truth if name.startswith("model-"))
    assert len(weights) > 2 * count
    del truth[MARK], best[MARK]  # it lists the projection too
    assert best == truth
    own = [[name for name in one["opened"] if name in weights] for one in ranks]
    assert sorted(name for names in own for name in names) == weights and all(len(names) > 1 for names in own)
    # a gather for each tensor, however many write
    assert [one["gathers"] for one in ranks] == [ranks[0]["expected gathers"]] * count
    largest = max(len(truth[name]) for name in weights)
    assert all(0 < one["largest"] < largest for one in ranks)
    # what ranks say of their own files is what lies there, all of them read when the run goes on, and copied at its end
    assert ranks[0]["files"] == digests(tmp_path / "run" / "best" / "step-00000004")
    assert sorted(name for one in ranks for name in one["read"] if name in weights) == weights
    assert sorted(name for one in ranks for name in one["copied"] if name in weights) == weights
    for what in ("read", "copied"):
        assert all(set(one[what]) & set(weights) for one in ranks)
    model = contents(tmp_path / "run" / "model")
    assert {name: model[name] for name in truth} == truth


def test_a_model_of_one_file_has_one_writer(tmp_path):
    ranks = run_ranks(kept, 2, tmp_path, tmp_path, "bert", LARGE)
    truth = one_process(tmp_path / "truth", "bert")
    assert contents(tmp_path / "run" / "model")["model.safetensors"] == truth["model.safetensors"]
    assert ranks[0]["opened"] == ["model.safetensors", PROJECTION] and ranks[1]["opened"] == []
    assert [one["gathers"] for one in ranks] == [ranks[0]["expected gathers"]] * 2


def refused(folder: Path) -> tuple[str, bool]:
    """What a rank raises when the disk refuses rank 1 a file, and whether the best of before is as it was."""
    weight_files.FILE_BYTES = SMALL
    best = partitioned_best("bert", folder / "run")
    best.keep({"step": 4}, lambda doing: None)
    before = contents(folder / "run" / "best") if is_main() else {}
    act = fail(2 if rank() == 1 else 10**6, errno.ENOSPC)
    with FileEvents([folder], act, only="open", named="model-"), pytest.raises(InputError) as said:
        best.keep({"step": 8}, lambda doing: None)
    barrier()
    return str(said.value), not is_main() or contents(folder / "run" / "best") == before


def test_what_the_disk_refuses_one_rank_is_told_by_all_and_leaves_no_folder(tmp_path):
    for said, as_before in run_ranks(refused, 2, tmp_path, tmp_path):
        assert said.startswith("Rank 1 on ") and "No space left on device; free disk space" in said
        assert as_before


def killed(folder: Path) -> None:
    """Rank 1 ends without a word before its second file."""
    weight_files.FILE_BYTES = SMALL
    best = partitioned_best("bert", folder / "run")
    with FileEvents([folder], kill(2 if rank() == 1 else 10**6), only="open", named="model-"):
        best.keep({"step": 4}, lambda doing: None)


def test_a_kill_in_the_middle_leaves_no_folder_of_that_name_and_the_next_start_writes_it_whole(tmp_path, monkeypatch):
    with pytest.raises(AssertionError):
        run_ranks(killed, 2, tmp_path, tmp_path)
    best = tmp_path / "run" / "best"
    assert not (best / "step-00000004").exists()
    run_ranks(kept, 2, tmp_path, tmp_path, "bert", SMALL)
    monkeypatch.setattr(weight_files, "FILE_BYTES", SMALL)
    truth = one_process(tmp_path / "truth", "bert")
    found = contents(best / "step-00000004")
    assert {name: found[name] for name in numbered(tmp_path / "truth")} == {
        name: truth[name] for name in numbered(tmp_path / "truth")
    }
    assert [path.name for path in best.iterdir()] == ["step-00000004"]  # the half-written one is gone


def apart(folder: Path) -> dict[str, Any]:
    """With a working folder of its own for each rank, as nodes have that share no disk."""
    weight_files.FILE_BYTES = SMALL
    model = partitioned_best("bert", folder / "run")._model
    own = folder / f"node{rank()}"
    own.mkdir()
    os.chdir(own)
    with Watched(own) as watched:
        write_encoder(model.encoder.backbone, Path("model") if is_main() else None)
    read = side_by_side(lambda name: str(os.getpid()), numbered(Path("model")), Path("model"))
    return {
        "opened": watched.opened,
        "largest": watched.largest,
        "read": sorted(set(read.values())),
        "pid": os.getpid(),
    }


def test_where_no_other_rank_sees_the_folder_the_main_rank_does_all_and_holds_one_file_at_a_time(tmp_path, monkeypatch):
    main, other = run_ranks(apart, 2, tmp_path, tmp_path)
    monkeypatch.setattr(weight_files, "FILE_BYTES", SMALL)
    truth = one_process(tmp_path / "truth", "bert")
    found = contents(tmp_path / "node0" / "model")
    assert found == {name: truth[name] for name in found} and len(found) > 3
    weights = numbered(tmp_path / "truth")
    assert sorted(name for name in main["opened"] if name in weights) == weights
    assert other["opened"] == [] and not any((tmp_path / "node1").iterdir())
    assert main["largest"] < max(len(truth[name]) for name in weights) and other["largest"] == 0
    assert main["read"] == [str(main["pid"])]


def tied(folder: Path) -> bool:
    """Whether a network in which one weight has two names is written file by file."""
    weight_files.FILE_BYTES = SMALL
    backbone = partitioned_best("bert", folder / "run")._model.encoder.backbone
    once = weight_files.in_several_files(backbone)
    layers = backbone.encoder.layer
    layers[1].output.dense.weight = layers[0].output.dense.weight
    return once and not weight_files.in_several_files(backbone)


def test_a_weight_with_two_names_keeps_one_writer(tmp_path):
    assert run_ranks(tied, 1, tmp_path, tmp_path) == [True]
