"""The manifest of `kubernetes/` is one that Kubernetes takes, its numbers agree, and its pods train."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.rendezvous import free_port
from diffcse_scale.training import train_arguments
from tests.support.launch import environment

ROOT = Path(__file__).parents[1]
MANIFEST = ROOT / "kubernetes" / "train.yaml"
PARTS: dict[str, Any] = {part["kind"]: part for part in yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8"))}
JOB = PARTS["Job"]["spec"]
POD = JOB["template"]["spec"]
(TRAINER,) = POD["containers"]
VARIABLES = {variable["name"]: variable["value"] for variable in TRAINER["env"]}


def complaints(part: dict[str, Any], version: str) -> str:
    """What the schema of that version of Kubernetes says of it; a field that is not known is a complaint."""
    schemas = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate, of the extra `dev`, is not here")
    try:
        schemas.validate(part, version, strict=True)
    except schemas.ValidationError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_every_part_is_valid_by_the_schema_of_kubernetes(version: str):
    assert list(PARTS) == ["Service", "PersistentVolumeClaim", "Job"]
    assert {kind: complaints(part, version) for kind, part in PARTS.items()} == dict.fromkeys(PARTS, "")


def test_a_misspelt_field_and_a_wrong_type_are_noticed():
    for planted in ({"completions": "two"}, {"completion": 2}):
        assert complaints({**PARTS["Job"], "spec": {**JOB, **planted}}, "1.37")


def test_the_numbers_of_nodes_and_gpus_agree():
    assert JOB["completionMode"] == "Indexed"
    assert JOB["completions"] == JOB["parallelism"] == int(VARIABLES["NODES"])
    assert TRAINER["resources"]["limits"]["nvidia.com/gpu"] == VARIABLES["GPUS"]


def test_the_ranks_meet_at_the_name_that_the_service_gives_to_the_first_pod():
    name, service = PARTS["Job"]["metadata"]["name"], PARTS["Service"]
    assert VARIABLES["FIRST"] == f"{name}-0.{POD['subdomain']}"
    assert POD["subdomain"] == service["metadata"]["name"] and service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"].items() <= JOB["template"]["metadata"]["labels"].items()
    (port,) = TRAINER["ports"]
    assert f"--master-port={port['containerPort']}" in TRAINER["command"][-2]


def test_volumes_and_times_fit_each_other():
    claims = [volume["persistentVolumeClaim"]["claimName"] for volume in POD["volumes"] if "emptyDir" not in volume]
    assert claims == [PARTS["PersistentVolumeClaim"]["metadata"]["name"]]
    assert {volume["name"] for volume in POD["volumes"]} == {mount["name"] for mount in TRAINER["volumeMounts"]}
    assert POD["terminationGracePeriodSeconds"] > int(VARIABLES["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])


def test_the_program_is_where_the_image_has_it():
    image = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert "WORKDIR /opt/diffcse-scale\n" in image and "COPY . .\n" in image
    assert " /opt/diffcse-scale/train.py " in TRAINER["command"][-2]


def test_its_arguments_are_those_of_the_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    model = load_recipe("bert_large").model
    for network in filter(None, (model.encoder, model.discriminator, model.generator)):
        (tmp_path / network).mkdir(parents=True, exist_ok=True)  # they would be on the Hub
    assert train_arguments.parse_arguments(None, TRAINER["args"]).start == "auto"


class Pods:
    """The two pods as processes of this machine: the manifest's command, with other arguments and one rank a pod."""

    def __init__(self, output: Path) -> None:
        here = {"FIRST": "127.0.0.1", "GPUS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "120"}
        script = TRAINER["command"][-2].replace("/opt/diffcse-scale", str(ROOT))
        script = script.replace("--master-port=29500", f"--master-port={free_port()}")
        arguments = ["--recipe=quickstart", "--deepspeed_config=zero2", f"--output={output}", "--auto-resume"]
        arguments += ["max_steps=12", "data.limit=2000", "batch.sentences=8", "evaluation.data=null"]
        arguments += ["checkpoint_every=4", "log_every=1"]
        self.processes = [
            subprocess.Popen(
                [*TRAINER["command"][:-2], script, TRAINER["command"][-1], *arguments],
                env={
                    **environment(),
                    **VARIABLES,
                    **here,
                    "HOME": os.environ["HOME"],
                    "JOB_COMPLETION_INDEX": str(pod),
                },
                cwd=output.parent,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            for pod in range(int(VARIABLES["NODES"]))
        ]

    def end(self) -> list[int]:
        """Their exit codes, when all have ended."""
        self.printed = [process.communicate(timeout=600)[0] for process in self.processes]
        return [process.returncode for process in self.processes]


@pytest.mark.slow
def test_two_pods_train_leave_a_checkpoint_when_they_are_told_to_go_and_go_on(tmp_path: Path):
    output = tmp_path / "run"
    pods = Pods(output)
    metrics, patience = output / "metrics.jsonl", time.monotonic() + 300
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2) and time.monotonic() < patience:
        assert all(process.poll() is None for process in pods.processes), pods.end()
        time.sleep(0.2)
    for process in pods.processes:  # as the kubelet does when a pod has to leave its node
        process.send_signal(signal.SIGTERM)
    assert 0 not in pods.end()
    kept = [int(folder.name.removeprefix("step-")) for folder in (output / "checkpoints").glob("step-*")]
    assert kept and max(kept) < 12
    pods = Pods(output)
    assert pods.end() == [0, 0], pods.printed
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 13))
    assert json.loads((output / "run.json").read_text())["plan"]["world_size"] == 2
    assert (output / "result.json").is_file() and (output / "model" / "model.safetensors").is_file()
