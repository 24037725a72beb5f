"""The step's benchmark: real cells, small; speed itself is never asserted."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace

import pytest
import torch
from transformers import BertConfig, DistilBertConfig

from diffcse_scale.benchmark.cells import SHAPES, batches_of, check
from diffcse_scale.benchmark.command import benchmark_step, check_rows, describe
from diffcse_scale.benchmark.grid import Cell, grid
from diffcse_scale.benchmark.phases import PHASES, Phases
from diffcse_scale.benchmark.step_cell import build, is_trace, maker, measure
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model.arithmetic import step_flop
from diffcse_scale.objective.objective import Objective

CPU = torch.device("cpu")
TINY = Cell(backbone="bert-tiny", sentences=4, length=8)
SIZES = {"vocab_size": 9000, "max_position_embeddings": 64}


@pytest.fixture(autouse=True)
def _tiny_shape(monkeypatch):
    encoder = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, **SIZES)
    generator = DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=24, **SIZES)
    monkeypatch.setitem(SHAPES, "bert-tiny", (encoder, generator))


def test_time_belongs_to_the_innermost_phase(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 7.0, 15.0, 31.0])  # seconds at the start, at each change of phase, and at the end
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    phases = Phases(CPU)
    phases.start()
    with phases.phase("backward"), phases.phase("communication"):
        pass
    found = phases.stop()
    assert found == {**dict.fromkeys(PHASES, 0.0), "backward": 2.0 + 8.0, "communication": 4.0, "other": 1.0 + 16.0}


def test_flop_is_that_of_the_products_that_a_plain_step_makes():
    from torch.utils.flop_counter import FlopCounterMode

    networks, batch = build(TINY, CPU), batches_of(TINY).batch(0)
    (chunk,) = batch.chunks
    chunk = replace(chunk, real=None)
    with FlopCounterMode(display=False) as counter:
        edited = networks.generator.edit(chunk)
        networks.model(Objective(networks.model.objective).step, [chunk], [edited]).loss.backward()
    # the counter sees no products inside our operators: sampling, InfoNCE and RTD's one column
    corrupted, width = len(chunk.corrupted), 16
    sampling = 2 * networks.generator.head.weight.numel() * corrupted
    contrast = 6 * width * 4 * 4
    expected = step_flop(*networks, batch) - sampling - contrast
    # the embeddings' gradients need no product, but the first layer's input does have one
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.03)


def test_padding_is_no_work(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{'a dog runs ' * (1 + number % 4)}{number}\n" for number in range(200)))
    cell = replace(TINY, text=str(text), tokenizer="embedded", length=32)
    networks, batch = build(cell, CPU), batches_of(cell).batch(0)
    (chunk,) = batch.chunks
    full = replace(chunk, attention_mask=torch.ones_like(chunk.attention_mask))
    assert step_flop(*networks, batch) < step_flop(*networks, replace(batch, chunks=[full]))


def test_the_official_step_has_the_loss_of_the_official_fidelity():
    cell = replace(TINY, implementation="official")
    networks, batch = build(cell, CPU), batches_of(cell).batch(0)
    for network in (networks.model, networks.generator.model):
        for module in network.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    networks.model.projection.eval()
    losses = []
    backward = torch.Tensor.backward

    def keep(loss, *arguments, **options):
        losses.append(float(loss.detach()))
        backward(loss, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", keep)
        patch.setattr(torch.nn, "Sequential", lambda *layers: networks.model.projection)
        step = maker("official")(cell, networks, CPU, Phases(CPU))
        before = [parameter.clone() for parameter in networks.model.encoder.parameters()]
        edited = networks.generator.edit(batch.chunks[0])
        expected = float(networks.model(Objective(networks.model.objective).step, batch.chunks, [edited]).loss.detach())
        step.compute(batch)
    assert losses == [pytest.approx(expected, rel=1e-5)]
    changed = [not torch.equal(a, b) for a, b in zip(before, networks.model.encoder.parameters(), strict=True)]
    assert sum(changed) > len(changed) / 2


@pytest.mark.slow
def test_cells_are_measured_and_rows_appended(tmp_path, capsys):
    # processes of their own know only the shipped shapes
    cells = grid(["diffcse-scale", "official", "sentence-transformers"], ["bert-small"], [4], [8], ["fp32"], [2])
    assert [(cell.implementation, cell.chunk, cell.rtd_weight > 0) for cell in cells] == [
        ("diffcse-scale", 2, True),
        ("diffcse-scale", 2, False),
        ("official", None, True),
        ("sentence-transformers", None, False),
    ]
    file = tmp_path / "rows.jsonl"
    benchmark_step(cells, 1, file)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["implementation"] for row in rows] == [cell.implementation for cell in cells]
    for row in rows:
        assert row["step_seconds"] == pytest.approx(sum(row["phases"].values()))
        assert row["phases"]["backward"] > row["phases"]["data"] > 0
        assert (row["phases"]["generator"] > 0) == (row["rtd_weight"] > 0)
        assert row["environment"]["packages"]["torch"]
    assert all(describe(cell)[:20] in capsys.readouterr().out for cell in cells[:1])


@pytest.mark.slow
def test_two_ranks_are_measured_and_what_they_exchange_is_told(tmp_path):
    trace = tmp_path / "trace.json"
    trace.write_text("{}")
    assert not is_trace(trace)
    row = measure(Cell(backbone="bert-small", sentences=4, length=8, ranks=2), 1, trace=trace)
    assert row["phases"]["communication"] > 0
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"generator", "encoder", "optimizer"} <= names
    assert is_trace(trace)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "bert-smal"}, "did you mean bert-small?"),
        ({"text": "nowhere.txt", "tokenizer": "embedded"}, "Text nowhere.txt is not a file"),
        ({"text": __file__}, "--text needs --tokenizer"),
        ({"length": 65}, "--length 65 is more than the 64 positions of bert-tiny; lower it"),
        ({"sentences": 2, "ranks": 3}, "batch.sentences = 2 is fewer than the 3 devices"),
    ],
)
def test_what_cannot_be_measured_is_said_first(changes, message):
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        check([replace(TINY, **changes)])


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"generator_precision": "bf16"}], ids=str)
def test_products_that_the_device_lacks_are_not_measured(changes, monkeypatch):
    monkeypatch.setattr("diffcse_scale.benchmark.cells.has_bfloat16", lambda: False)
    with pytest.raises(InputError, match="no bfloat16 products; leave out --precision and --generator-precision bf16"):
        check([replace(TINY, **changes)])


def test_unknown_words_and_two_traces_are_refused(tmp_path):
    with pytest.raises(InputError, match="Precision 'fp8' is not known"):
        grid(["diffcse-scale"], ["bert-small"], [4], [8], ["fp8"], [0])
    with pytest.raises(InputError, match="Implementation 'simcse' is not known"):
        grid(["simcse"], ["bert-small"], [4], [8], ["fp32"], [0])
    with pytest.raises(InputError, match="the trace of one step, but 2 cells"):
        benchmark_step([TINY, TINY], 1, trace=tmp_path / "trace.json")
    with pytest.raises(InputError, match="cannot be written"):
        benchmark_step([TINY], 1, tmp_path / "nowhere" / "rows.jsonl")


def test_rows_are_appended_to_rows_only_and_only_a_trace_is_replaced_by_one(tmp_path):
    file = tmp_path / "notes.json"
    file.write_text('{"my": "notes"}\n')
    with pytest.raises(InputError, match=r"is not a file of such rows, but another JSON file; give another name.$"):
        benchmark_step([TINY], 1, json_file=file)
    with pytest.raises(InputError, match=r"is not a trace of diffcse-scale benchmark, .*--overwrite"):
        benchmark_step([TINY], 1, trace=file)
    assert file.read_text() == '{"my": "notes"}\n'
    file.write_text(json.dumps(asdict(TINY)) + "\n")
    check_rows(file)
