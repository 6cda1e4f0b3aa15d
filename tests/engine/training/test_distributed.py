"""Several processes, and runs that are killed: main.py under torchrun on gloo."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from datasets.toy import write_toy_mevis

ROOT = Path(__file__).parents[3]
NUM_STEPS = 8
# How often a run is killed at a random moment; the figures of docs/training.md are of FLOWRVS_TRIALS=10.
TRIALS = int(os.environ.get("FLOWRVS_TRIALS", "1"))


@pytest.fixture(scope="module")
def toy_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "toy"
    write_toy_mevis(root, 5, num_train=3, num_valid_u=2, num_valid=1)
    return root


@pytest.fixture
def command(toy_folder, toy_root):
    def build(run_dir, *flags, num_processes=1, batch_size=1):
        launcher = [sys.executable]
        if num_processes > 1:
            launcher = [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                f"--nproc_per_node={num_processes}",
            ]
        return [
            *launcher, "main.py", "--wan_path", str(toy_folder), "--mevis_path", str(toy_root), "--device", "cpu",
            "--num_frames", "5", "--num_workers", "1", "--max_steps", str(NUM_STEPS), "--print_freq", "1",
            "--save_steps", "1", "--keep_last", "2", "--batch_size", str(batch_size), "--output_dir", str(run_dir),
            "--no-augm_resize", "--ema_decay", "0.9", *flags,
        ]  # fmt: skip

    return build


def run(arguments, expected=0):
    done = subprocess.run(arguments, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == expected, done.stderr[-3000:]
    return done


def clean_environment():
    return {name: value for name, value in os.environ.items() if name not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")} | {
        "OMP_NUM_THREADS": "1"
    }


def losses(run_dir):
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return [record["loss"] for record in records]


def weights(run_dir, step=NUM_STEPS):
    folder = run_dir / f"step_{step:07d}"
    return {
        f"{part}/{name}": tensor
        for part in ("transformer", "transformer_ema")
        for name, tensor in load_file(folder / part / "diffusion_pytorch_model.safetensors").items()
    }


def assert_equal_runs(ours, theirs):
    assert losses(ours) == losses(theirs)
    ours, theirs = weights(ours), weights(theirs)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_killed_run_goes_on_and_ends_as_the_uninterrupted_one_bit_for_bit(command, tmp_path, num_processes):
    run(command(tmp_path / "whole", num_processes=num_processes))
    draw = random.Random(num_processes)
    for trial in range(TRIALS):
        run_dir = tmp_path / f"killed{trial}"
        arguments = command(run_dir, "--resume", "auto", num_processes=num_processes)
        process = subprocess.Popen(
            arguments, cwd=ROOT, env=clean_environment(), start_new_session=True, stderr=subprocess.DEVNULL
        )
        wanted = draw.randrange(1, NUM_STEPS)
        while len(list(run_dir.glob(f"step_{wanted:07d}"))) == 0 and process.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.random() * 0.3)  # anywhere in the step, or in the writing of a checkpoint
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        run(arguments)
        assert_equal_runs(run_dir, tmp_path / "whole")


def test_two_processes_with_batch_1_make_the_steps_of_one_with_batch_2(command, tmp_path):
    """Up to the rounding of sums taken in another order: 1e-4 of the losses after eight steps."""
    run(command(tmp_path / "one", "--eval_steps", str(NUM_STEPS), batch_size=2))
    run(command(tmp_path / "two", "--eval_steps", str(NUM_STEPS), num_processes=2))
    torch.testing.assert_close(
        torch.tensor(losses(tmp_path / "one")), torch.tensor(losses(tmp_path / "two")), rtol=1e-4, atol=1e-6
    )
    scores = [json.loads((tmp_path / name / "validation.jsonl").read_text()) for name in ("one", "two")]
    assert scores[0]["J&F"] == pytest.approx(scores[1]["J&F"], abs=0.02)


@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_the_step_and_resuming_loses_none(command, tmp_path, num_processes, number):
    if num_processes == 2 and number == signal.SIGUSR1:
        pytest.skip("torchrun forwards SIGUSR1 only where told to: tests/test_slurm.py")
    run_dir = tmp_path / "run"
    arguments = command(run_dir, "--resume", "auto", "--save_steps", "1000", num_processes=num_processes)
    process = subprocess.Popen(arguments, cwd=ROOT, env=clean_environment(), stderr=subprocess.PIPE, text=True)
    while not (run_dir / "metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0, "a run that was stopped is not done"
    assert f"Stopped by {number.name} after" in errors, errors[-2000:]
    done = len(losses(run_dir))
    assert (run_dir / "latest").read_text().strip() == f"step_{done:07d}"
    run(arguments)
    run(command(tmp_path / "whole", num_processes=num_processes))
    assert_equal_runs(run_dir, tmp_path / "whole")


def test_an_error_in_one_process_ends_all_with_its_message(command, tmp_path):
    done = run(command(tmp_path / "run", "--num_frames", "6", num_processes=2), expected=1)
    assert "main.py: error: " in done.stderr
    assert "4n+1" in done.stderr


def test_a_picture_that_a_worker_cannot_read_ends_the_run_with_one_line(command, toy_root, tmp_path):
    root = tmp_path / "toy"
    shutil.copytree(toy_root, root)
    for picture in root.glob("train/JPEGImages/*/*.jpg"):
        picture.write_bytes(b"no picture")
    arguments = command(tmp_path / "run", "--mevis_path", str(root), "--num_workers", "2")
    done = subprocess.run(
        arguments, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("main.py: error: ") and "no image or damaged" in last and len(last) < 400
