"""scripts/slurm_train.sh with stand-ins for Slurm's commands: signal, save, queue again, resume."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
JOB = str(os.getpid())
# srun starts one task on each node and passes signals on to them; here two "nodes" are two tasks of this machine.
SRUN = """#!/usr/bin/env bash
shift # --kill-on-bad-exit=1
tasks=()
for node in $(seq 0 $((SLURM_JOB_NUM_NODES - 1))); do
    SLURM_NODEID=$node "$@" &
    tasks+=($!)
done
for name in USR1 TERM; do trap "kill -s $name ${tasks[*]}" $name; done
code=0
for task in "${tasks[@]}"; do
    while kill -0 "$task" 2>/dev/null; do wait "$task" || code=$?; done
done
exit $code
"""
SCONTROL = """#!/usr/bin/env bash
case $1 in
    show) echo localhost ;;
    requeue) echo "$@" >>"$REQUEUED" ;;
esac
"""


@pytest.fixture
def environment(tmp_path):
    """The variables that sbatch sets for a job of two nodes, with one process per node instead of one per GPU."""
    for name, content in (("srun", SRUN), ("scontrol", SCONTROL)):
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(content)
        file.chmod(0o755)
    foreign = ("WORLD_SIZE", "RANK", "LOCAL_RANK")
    return {name: value for name, value in os.environ.items() if name not in foreign} | {
        "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": JOB, "SLURM_JOB_NODELIST": "localhost",
        "SLURM_JOB_NUM_NODES": "2", "NUM_PROCESSES": "1", "OMP_NUM_THREADS": "1",
        "REQUEUED": str(tmp_path / "requeued"),
    }  # fmt: skip


@pytest.fixture
def start(environment, toy_folder, small_toy, tmp_path):
    def start(num_nodes):
        return subprocess.Popen(
            ["bash", "scripts/slurm_train.sh", "--wan_path", str(toy_folder), "--mevis_path", str(small_toy),
             "--device", "cpu", "--num_frames", "5", "--num_workers", "0", "--print_freq", "1", "--report_to", "none",
             "--save_steps", "1000000", "--epochs", "1000000", "--output_dir", str(tmp_path / "run")],
            cwd=ROOT, env=environment | {"SLURM_JOB_NUM_NODES": str(num_nodes)}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start


def steps_done(run_dir):
    file = run_dir / "metrics.jsonl"
    return [json.loads(line)["step"] for line in file.read_text().splitlines()] if file.exists() else []


def signalled_after(job, number, run_dir, num_steps):
    """Signals only the script, as --signal=B: does, after ``num_steps``; returns what it wrote to stderr."""
    while len(steps_done(run_dir)) < num_steps and job.poll() is None:
        time.sleep(0.05)
    job.send_signal(number)
    _, errors = job.communicate(timeout=240)
    assert job.returncode != 0, errors[-2000:]
    return errors


def test_a_job_that_is_warned_saves_and_is_queued_again_and_one_told_to_end_saves_and_is_not(start, tmp_path):
    run_dir, requeued = tmp_path / "run", tmp_path / "requeued"
    errors = signalled_after(start(num_nodes=2), signal.SIGUSR1, run_dir, 1)
    first = len(steps_done(run_dir))
    assert f"Stopped by SIGUSR1 after {first} steps" in errors, errors[-2000:]
    assert (run_dir / "latest").read_text().strip() == f"step_{first:07d}"
    assert requeued.read_text() == f"requeue {JOB}\n"
    errors = signalled_after(start(num_nodes=1), signal.SIGTERM, run_dir, first + 1)
    second = len(steps_done(run_dir))
    assert f"Stopped by SIGTERM after {second} steps" in errors, errors[-2000:]
    assert (run_dir / "latest").read_text().strip() == f"step_{second:07d}"
    assert steps_done(run_dir) == list(range(1, second + 1)), "no step is lost, none made twice"
    assert requeued.read_text() == f"requeue {JOB}\n"


@pytest.mark.parametrize(("code", "expected"), [(0, False), (1, True)])
def test_a_run_that_was_done_when_the_warning_came_is_not_queued_again(environment, tmp_path, code, expected):
    srun = f"#!/usr/bin/env bash\ntrap 'exit {code}' USR1\ntouch {tmp_path}/began\nwhile :; do sleep 0.05; done\n"
    (tmp_path / "bin" / "srun").write_text(srun)
    job = subprocess.Popen(["bash", "scripts/slurm_train.sh"], cwd=ROOT, env=environment)
    while not (tmp_path / "began").exists():
        time.sleep(0.01)
    time.sleep(0.2)  # until the script has set its traps
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=60) == code
    assert (tmp_path / "requeued").exists() == expected
