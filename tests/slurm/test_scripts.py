"""The job scripts by themselves; what they start is a stand-in."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from diffcse_scale.runs.status import read_status, status_line
from tests.support.local_cluster import ROOT, Cluster, Job

SCRIPTS = sorted((ROOT / "slurm").glob("*.sbatch"))
SOURCED = sorted((ROOT / "slurm").glob("*.sh"))
names = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)


def _common(commands: str, cwd: Path, **environment: str) -> str:
    """Output of `commands` after common.sh, outside of any job."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHON"}  # which may be whatever made .venv
    return subprocess.run(
        ["bash", "-euc", f'source "{ROOT}/slurm/common.sh"; {commands}'],
        cwd=cwd,
        env={**own, "DIFFCSE_HOME": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_shellcheck_finds_nothing():
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck here: tests/support/local_cluster.sh install")
    files = [*SCRIPTS, *SOURCED, ROOT / "tests/support/local_cluster.sh"]
    done = subprocess.run(["shellcheck", *files], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_local_cluster_whose_port_is_taken_says_so(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        places = {"LOCAL_CLUSTER": str(tmp_path / "cluster"), "LOCAL_CLUSTER_PORT": str(port)}
        done = subprocess.run(
            [ROOT / "tests/support/local_cluster.sh", "start"],
            env={**os.environ, **places},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr == (
        f"local_cluster: port {port} is taken; set LOCAL_CLUSTER_PORT to the first of 3 that are free\n"
    )


def test_a_task_knows_its_rank():
    done = subprocess.run(
        [ROOT / "slurm/rank.sh", "bash", "-c", "echo $RANK $WORLD_SIZE $LOCAL_RANK"],
        env={**os.environ, "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["5", "8", "1"]


@pytest.mark.parametrize(
    ("tool", "expected"),
    [
        ("apptainer", "--wait=60 | apptainer exec --nv --pwd {cwd} --bind {cwd}:{cwd},{root}:{root},/data:/data image"),
        (
            "pyxis",
            "--wait=60 --container-image=image --container-mounts={cwd}:{cwd},{root}:{root},/data:/data "
            "--container-workdir={cwd} |",
        ),
    ],
)
def test_a_container_is_put_around_the_command(tool: str, expected: str, tmp_path: Path):
    printed = _common(
        'echo "${step[@]} | ${contained[@]}"',
        tmp_path,
        CONTAINER="image",
        CONTAINER_TOOL=tool,
        CONTAINER_MOUNTS="/data:/data",
    )
    assert printed.strip().endswith(expected.format(cwd=tmp_path, root=ROOT)), printed


@pytest.mark.parametrize(("job", "image"), [({"SLURM_JOB_ID": "7"}, "/local/image"), ({}, "image")])
def test_an_image_is_copied_to_the_nodes_of_a_job_and_used_there(job: dict[str, str], image: str, tmp_path: Path):
    (tmp_path / "sbcast").write_text('#!/bin/sh\necho "$@" >asked\n')
    (tmp_path / "sbcast").chmod(0o755)
    variables = {"CONTAINER": "image", "CONTAINER_COPY": "/local/image", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert _common('echo "${contained[@]}"', tmp_path, **variables, **job).split()[-1] == image
    asked = tmp_path / "asked"
    assert (asked.read_text().split() if asked.exists() else []) == (["--force", "image", image] if job else [])


@pytest.mark.parametrize("tool", ["apptainer", "pyxis"])
def test_the_last_words_are_written_by_the_containers_python(tool: str, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "status.json").touch()
    tools = 'srun() { echo "srun $*"; }; apptainer() { echo "apptainer $*"; }'
    printed = _common(f'{tools}; output=run; last_words "no end"', tmp_path, CONTAINER="image", CONTAINER_TOOL=tool)
    assert printed.startswith("srun" if tool == "pyxis" else "apptainer") and printed.endswith(" run no end\n")
    if tool == "pyxis":
        assert " --container-image=image " in printed
        assert " --nodes=1 --ntasks=1 --ntasks-per-node=1 python -c " in printed


def test_what_the_environment_sets_wins_over_the_defaults(tmp_path: Path):
    show = 'echo "$OMP_NUM_THREADS $PYTHON $NCCL_DEBUG"'
    assert _common(show, tmp_path, OMP_NUM_THREADS="3", PYTHON="/my/python", NCCL_DEBUG="INFO").split() == [
        "3",
        "/my/python",
        "INFO",
    ]


def _starts(cwd: Path, *steps: int | None, job: str = "7", restart: int = 0, output: str = "run") -> list[str]:
    """How each start of a job leaves that is told to stop when the run stands at the next of `steps`."""
    ends = []
    for step in steps:
        file = cwd / "run" / "checkpoints" / "latest"
        if step is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            (file.parent / "next").write_text(f"step-{step:08d}\n" if step else "none\n")
        moves = f"if [ -e {file.parent}/next ]; then mv {file.parent}/next {file}; fi"
        printed = _common(
            f"scontrol() {{ echo again; }}; output={output}; before=$(reached); {moves}; code=75; (leave) || echo $?",
            *(cwd,),
            **{"SLURM_JOB_ID": job, "SLURM_RESTART_COUNT": str(restart), "REQUEUES": "2"},
        )
        ends.append(printed.split()[-1])
        restart += 1
    return ends


@pytest.mark.parametrize(
    ("steps", "ends"),
    [
        pytest.param([None] * 3, ["again", "again", "78"], id="never opens its run"),
        pytest.param([None, 0, 0], ["again", "again", "78"], id="never gets to a checkpoint"),
        pytest.param([None, None, 8, None, None, None], ["again"] * 5 + ["78"], id="stands still after one"),
        pytest.param([8, 9, 10, 11, 12, 13], ["again"] * 6, id="gets on"),
    ],
)
def test_a_job_is_queued_again_as_long_as_it_makes_checkpoints(steps: list[int | None], ends: list[str], tmp_path):
    assert _starts(tmp_path, *steps) == ends


def test_what_another_job_has_tried_does_not_count_and_what_a_failed_node_has_saved_does(tmp_path: Path):
    assert _starts(tmp_path, 8, None, None) == ["again"] * 3
    assert _starts(tmp_path, None, None, None, job="8") == ["again", "again", "78"]
    # a start that has made a checkpoint and died with its node left no word
    (tmp_path / "run/checkpoints/latest").write_text("step-00000009\n")
    assert _starts(tmp_path, None, None, None, job="8", restart=4) == ["again", "again", "78"]


def test_the_status_of_a_run_that_is_not_queued_again_says_so(tmp_path: Path):
    last = {"state": "stopped", "step": 5, "updated": 1.0, "message": "Stopped by signal USR1.", "exit_code": 75}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "status.json").write_text(json.dumps(last))
    for number, end in enumerate(("again", "again", "78")):
        assert _starts(tmp_path, None, restart=number) == [end]
        status = read_status(tmp_path / "run")
        assert (status["state"], status["exit_code"]) == (("failed", 78) if end == "78" else ("stopped", 75))
    assert status["step"] == 5
    assert "Job 7 was queued again 2 times in a row" in status_line(status)


def test_a_job_without_a_run_or_whose_disk_is_full_is_queued_again_so_often_in_all(tmp_path: Path):
    assert _starts(tmp_path, *[None] * 3, output="") == ["again", "again", "78"]
    (tmp_path / "run").write_text("no folder")
    assert _starts(tmp_path, *[None] * 3) == ["again", "again", "78"]


def test_every_script_notes_signals_before_all_else_and_ends_alike():
    beginnings, ends = set(), set()
    for script in SCRIPTS:
        commands = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
        beginnings.add(tuple(commands[:4]))
        ends.add(commands[-1].split()[0] if script.name != "sweep.sbatch" else "")
    assert len(beginnings) == 1 and ends == {"leave", "train", ""}
    *traps, _, source = beginnings.pop()
    assert [trap.split()[-1] for trap in traps] == ["USR1", "TERM"] and source.startswith("source ")


@pytest.mark.parametrize(
    ("number", "printed", "code"), [(signal.SIGUSR1, "queues itself again", 0), (signal.SIGTERM, "", 143)]
)
def test_a_signal_while_the_site_loads_its_modules_is_noted_and_no_step_begins(
    number: int, printed: str, code: int, tmp_path: Path
):
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm")
    (tmp_path / "slurm" / "site.sh").write_text(f"kill -{number} $$; REQUEUE_ON=75 REQUEUES=5 CONTAINER=\n")
    for program in ("scontrol", "srun"):
        (tmp_path / program).write_text(f"#!/bin/sh\necho {program} $1\n")
        (tmp_path / program).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node1", "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS_PER_NODE": "1"}
    done = subprocess.run(
        ["bash", ROOT / "slurm" / "train.sbatch", "--output", "run"],
        **{"cwd": tmp_path, "env": {**os.environ, **job, "PATH": path, "DIFFCSE_HOME": str(tmp_path)}},
        **{"capture_output": True, "text": True},
    )
    assert done.returncode == code and printed in done.stdout and "srun" not in done.stdout, done


@pytest.mark.parametrize(("word", "kept"), [("older", "137"), ("newer", "77")])
def test_an_exit_code_in_the_status_counts_only_if_this_start_has_written_it(word: str, kept: str, tmp_path: Path):
    (tmp_path / "run").mkdir()
    status = tmp_path / "run" / "status.json"
    status.write_text('{"message": "older", "exit_code": 77}')
    step = f'run() {{ printf \'{{"message": "{word}", "exit_code": 77}}\' >run/status.json; code=137; }}'
    quiet = "meeting_place() { :; }; leave() { echo $code; }"
    printed = _common(f"{step}; {quiet}; train --output run", tmp_path, SLURM_JOB_ID="7")
    assert printed.split() == [kept]


@pytest.mark.slurm
@names
def test_sbatch_accepts(script: Path, cluster: Cluster):
    cluster.ask("sbatch", "--test-only", str(script))


@pytest.mark.slurm
def test_sbatch_accepts_many_gpus_on_many_nodes(cluster: Cluster):
    wide = ["--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8"]
    cluster.ask("sbatch", "--test-only", *wide, str(ROOT / "slurm/train.sbatch"))


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """Stands in for Python: shows its rank and arguments, and does what $ACT says."""
    file = tmp_path / "stand-in"
    file.write_text(
        "#!/usr/bin/env bash\n"
        'echo "rank $RANK of $WORLD_SIZE, asked for $DIFFCSE_WORLD_SIZE, $MASTER_ADDR $MASTER_PORT: ${*:2}"\n'
        'run=$(dirname "$0")/run\n'
        "restart=${SLURM_RESTART_COUNT:-0}\n"
        'eval "$ACT"\n'
    )
    file.chmod(0o755)
    (tmp_path / "run").mkdir()
    return file


FINISH = 'touch "$run/result.json"; exit 0'


@pytest.mark.slurm
def test_ranks_ports_and_the_world_asked_for(cluster: Cluster, stand_in: Path):
    job = cluster.submit(
        *("--nodes=2", "--ntasks-per-node=2", "train.sbatch", "--output", "run", "a=1 2"),
        cwd=stand_in.parent,
        PYTHON=str(stand_in),
        ACT=f"if [ $restart = 0 ]; then exit 75; fi; {FINISH}",
    ).end(60)
    lines = [line for line in job.log.splitlines() if line.startswith("rank")]
    port = 20000 + int(job.number) * 16 % 12000
    expected = [
        f"rank {rank} of 4, asked for 4, node1 {port + restart}: --auto-resume --output run a=1 2"
        for restart in (0, 1)
        for rank in range(4)
    ]
    assert sorted(lines) == sorted(expected), job.log


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("act", "state", "code", "restarts"),
    [
        pytest.param(FINISH, "COMPLETED", "0:0", "0", id="finished"),
        pytest.param(f"[ $restart = 2 ] || exit 75; {FINISH}", "COMPLETED", "0:0", "2", id="preempted twice"),
        pytest.param(f"[ $restart = 1 ] || kill -USR1 $$; {FINISH}", "COMPLETED", "0:0", "1", id="while starting"),
        pytest.param(f"[ $restart = 1 ] || exit 80; {FINISH}", "COMPLETED", "0:0", "1", id="a rank was gone"),
        pytest.param("exit 0", "FAILED", "1:0", "0", id="0 without result.json"),
        pytest.param("exit 74", "FAILED", "74:0", "0", id="stopped"),
        pytest.param("exit 2", "FAILED", "2:0", "0", id="mistake"),
    ],
)
def test_a_job_ends_or_starts_again(act: str, state: str, code: str, restarts: str, cluster: Cluster, stand_in: Path):
    job = cluster.submit("train.sbatch", "--output=run", cwd=stand_in.parent, PYTHON=str(stand_in), ACT=act).end(
        90, state
    )
    assert (job.fact("ExitCode"), job.fact("Restarts")) == (code, restarts), job.log
    assert ("has not finished" in job.log) == (act == "exit 0")


@pytest.mark.slurm
def test_codes_to_start_again_after_are_the_sites_choice(cluster: Cluster, stand_in: Path):
    job = cluster.submit(
        "train.sbatch",
        "--output=run",
        cwd=stand_in.parent,
        PYTHON=str(stand_in),
        ACT=f"[ $restart = 1 ] || exit 74; {FINISH}",
        REQUEUE_ON="75 74",
    ).end(60)
    assert job.fact("Restarts") == "1"


@pytest.mark.slurm
def test_a_cancelled_job_stays_cancelled_whatever_its_exit_code(cluster: Cluster, stand_in: Path):
    job = cluster.submit(
        "train.sbatch",
        "--output=run",
        cwd=stand_in.parent,
        PYTHON=str(stand_in),
        ACT="trap 'exit 75' TERM; echo ready; while :; do sleep 0.2; done",
    )
    job.until("its start", lambda: "ready" in job.log, 30)
    job.cancel()
    job.end(30, "CANCELLED")
    assert job.fact("Restarts") == "0"


@pytest.mark.slurm
def test_without_an_output_every_restart_gets_the_same(cluster: Cluster, stand_in: Path):
    job = cluster.submit(
        "--job-name=mine",
        "train.sbatch",
        cwd=stand_in.parent,
        PYTHON=str(stand_in),
        ACT="[ $restart = 1 ] || exit 75; exit 2",
    ).end(60, "FAILED")
    given = [line.partition(": ")[2] for line in job.log.splitlines() if line.startswith("rank")]
    assert given == [f"--auto-resume --output runs/mine-{job.number}"] * 2, job.log


@pytest.mark.slurm
def test_each_run_of_a_sweep_starts_again_by_itself_and_the_summary_waits(cluster: Cluster, stand_in: Path):
    printed = cluster.ask(
        "bash",
        str(ROOT / "slurm/sweep.sbatch"),
        *("--cpus-per-task=1", "seed=1,2", "model.encoder=a/b,c", "--", "--recipe", "r", "--output=sweep", "x=1"),
        cwd=stand_in.parent,
        PYTHON=str(stand_in),
        ACT='out=${@: -1}; if [ -z "$RANK" ]; then ls sweep/*/result.json; exit 0; fi; mkdir -p "$out"; '
        'if [ $restart = 0 ] && [[ $out = *seed=2* ]]; then exit 75; fi; touch "$out/result.json"; exit 0',
    )
    array, summary = re.findall(r"job (\d+)", printed)
    folders = [f"sweep/seed={seed},model.encoder={encoder}" for encoder in ("a_b", "c") for seed in (1, 2)]
    assert Job(cluster, summary, stand_in.parent).end(90).log.splitlines() == [
        f"rank  of , asked for ,  : diffcse_scale summarize {' '.join(folders)}",
        *sorted(f"{folder}/result.json" for folder in folders),
    ]
    log = Job(cluster, array, stand_in.parent).log
    assert log.count("queues itself again") == 2
    given = [line.partition(": ")[2] for line in log.splitlines() if line.startswith("rank")]
    assert given.count(f"--auto-resume --recipe r x=1 seed=2 model.encoder=a/b --output {folders[1]}") == 2, log
