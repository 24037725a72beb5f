"""`plan --scaling`: what is simulated is the recipe's step, and sends what the plan says and ranks have sent."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from diffcse_scale.engine.config_file import load_deepspeed_config
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.planning.command import plan
from diffcse_scale.planning.communication import bytes_sent
from diffcse_scale.planning.scaling import Assumptions, Scaling, read_ways
from diffcse_scale.planning.scaling_command import plan_scaling
from diffcse_scale.planning.shape_networks import Networks, load_networks, parameters_of
from diffcse_scale.planning.sharding import read_sharding
from tests.support.command_line import diffcse_scale
from tests.support.ranks import run_ranks
from tests.support.sent_bytes import SENTENCES, Case, count

ALL_TRAVEL = {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 0}
ALL_TRAVEL |= {"stage3_max_reuse_distance": 0}  # nothing that was gathered stays
ROUNDS = {"all_reduce": 2, "all_gather_into_tensor": 1, "reduce_scatter_tensor": 1}  # of a ring
ROUNDS |= {"all_gather_single": 1, "all_to_all_single": 1}


@pytest.fixture(scope="module")
def networks(recipe):
    return load_networks(recipe)


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("chunk", [None, 4])
def test_a_step_sends_what_the_plan_says(recipe, networks, stage, chunk):
    config = load_deepspeed_config(f"zero{stage}")
    recipe = recipe.model_copy(update={"batch": recipe.batch.model_copy(update={"chunk": chunk})})
    sharding = read_sharding(config, recipe, 16, on_cpu=False)
    scaling = Scaling(recipe, sharding, networks, 8, Assumptions(), read_ways(config))
    sent, planned = scaling.point(16, 8).step.sent, bytes_sent(networks, sharding, recipe, 8, chunk)
    for kind in ("gradients", "weights", "embeddings"):
        assert sent.get(kind, 0.0) == pytest.approx(planned[kind], rel=1e-9), kind


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "zero"), [(2, ALL_TRAVEL), (2, {"stage": 2}), (4, {"stage": 1})])
def test_a_step_sends_what_ranks_on_cpus_have_sent(tmp_path, ranks, zero):
    """But for padding to equal parts: within 1%."""
    case = Case(zero)
    found = run_ranks(count, ranks, tmp_path, case)[0]
    total = sum(ROUNDS[name] * (group - 1) / group * size for (name, _, group), size in found.items() if name in ROUNDS)
    recipe, model = case.recipe(), case.model()
    sharding = read_sharding(case.config(), recipe, ranks, on_cpu=True)
    toy = Networks(model, None, parameters_of(model), 0, 32)
    scaling = Scaling(recipe, sharding, toy, 8, Assumptions(), read_ways(case.config()))
    step = scaling.point(ranks, SENTENCES // ranks).step
    assert sum(step.sent.values()) == pytest.approx(total, rel=0.01), (step.sent, found)


def gathered(case: Case) -> tuple[int, float]:
    """How often this rank gathers in three steps, and the bytes of the last."""
    import torch.distributed as dist

    calls, original = [], dist.all_gather_into_tensor

    def counted(*arguments, **options):
        calls.append(1)
        return original(*arguments, **options)

    dist.all_gather_into_tensor = counted
    found = count(case)
    return len(calls), sum(size for (name, *_), size in found.items() if name == "all_gather_into_tensor")


@pytest.mark.slow
def test_a_leaf_module_is_gathered_at_once(tmp_path):
    """The same bytes in fewer collectives: what docs/scaling.md recommends where latency limits."""
    calls, size = run_ranks(gathered, 2, tmp_path, Case(ALL_TRAVEL))[0]
    of_layers = {**ALL_TRAVEL, "leaf_module": {"classes": ["BertLayer"]}}
    fewer, as_much = run_ranks(gathered, 2, tmp_path, Case(of_layers))[0]
    assert as_much == size and fewer < 0.7 * calls


def test_the_report_is_the_table(recipe_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    file = tmp_path / "scaling.json"
    report = plan_scaling(str(recipe_file), "zero3", ("objective.rtd_weight=0",), 1, 8, ["between_us=20"], file)
    written = json.loads(file.read_text())
    assert written.pop("written_by") == "diffcse-scale plan --scaling" and written == json.loads(json.dumps(report))
    assert [point["devices"] for point in report["weak"]] == [8, 64, 256, 1024, 4096]
    assert {point["share"] for point in report["weak"]} == {4}
    assert [point["share"] for point in report["strong"]] == [4]  # 32 sentences are too few for 64 devices
    assert report["assumptions"]["between_us"] == 20
    said = capsys.readouterr().out
    assert "This is a simulation" in said and "4,096" in said and max(map(len, said.splitlines())) <= 80


def test_a_plan_and_a_simulation_do_not_replace_each_other(recipe_file, tmp_path):
    file, simulate = tmp_path / "report.json", partial(plan_scaling, str(recipe_file), "zero1", devices_per_node=8)
    simulate(json_file=file)
    simulate(json_file=file)  # an earlier simulation is replaced
    before = file.read_text()
    with pytest.raises(InputError, match=r"is not a plan of .* but a file of diffcse-scale plan --scaling; "):
        plan(str(recipe_file), None, devices_per_node=8, json_file=file)
    assert file.read_text() == before
    for other in ({"written_by": "diffcse-scale plan"}, {"recipe": "soup"}):
        file.write_text(json.dumps(other))
        with pytest.raises(InputError, match="is not a simulation of diffcse-scale plan --scaling"):
            simulate(json_file=file)
        assert json.loads(file.read_text()) == other


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "h100"], "does not use --device: "),
        (["--tflops", 500, "--network-gbs", 25], "does not use --tflops, --network-gbs: "),
        (["--gpu-memory", 80], "does not use --gpu-memory: "),
        (["--cpu"], "simulates GPUs: leave out --cpu."),
    ],
)
def test_what_a_simulation_would_not_heed_is_refused(recipe_file, arguments, words):
    result = diffcse_scale("plan", "--scaling", "--recipe", recipe_file, "--gpus-per-node", 8, *arguments)
    assert result.returncode == 2 and not result.stdout
    assert f"error: --scaling {words}" in result.stderr
    assert "--assume" in result.stderr or "--cpu" in arguments


@pytest.mark.parametrize(
    ("change", "words"),
    [("betwen_us=3", "did you mean between_us?"), ("efficiency=2", "efficiency: "), ("within_gb", "within_gb: ")],
)
def test_an_assumption_that_cannot_be_is_one_sentence(change, words):
    with pytest.raises(InputError, match="--assume: ") as error:
        Assumptions.changed([change])
    assert words in str(error.value)


def test_the_page_lists_every_assumption():
    page = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
    for name, field in Assumptions.model_fields.items():
        assert f"| `{name}` | {field.default:,g} |" in page, name


def test_ways_are_those_of_the_configuration():
    plain = read_ways({"zero_optimization": {"stage": 3}})
    assert plain.overlap and plain.group == 1 and plain.bucket == 5e7
    section = {"stage": 3, "zero_hpz_partition_size": 8, "leaf_module": {"classes": ["BertLayer"]}}
    layers = read_ways({"zero_optimization": {**section, "stage3_prefetch_bucket_size": 200_000_000}})
    assert replace(layers, bucket=plain.bucket, group=1) == plain
    assert layers.bucket == 2e8 and layers.group == 8
    assert not read_ways({"zero_optimization": {"stage": 1}}).overlap
