"""Several processes, and runs that are killed: main.py on gloo, mostly without torchrun, which starts slowly."""

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
from process_group import ProcessGroup, run_in_group, run_script
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


@pytest.fixture(scope="module")
def flags(toy_folder, toy_root):
    def build(run_dir, *flags):
        return [
            "--wan_path", str(toy_folder), "--mevis_path", str(toy_root), "--device", "cpu", "--num_frames", "5",
            "--num_workers", "1", "--max_steps", str(NUM_STEPS), "--print_freq", "1", "--save_steps", "1",
            "--keep_last", "2", "--output_dir", str(run_dir), "--no-augm_resize", "--ema_decay", "0.9", *flags,
        ]  # fmt: skip

    return build


@pytest.fixture(scope="module")
def whole_runs(flags, tmp_path_factory):
    """Runs that were never stopped, by the number of their processes."""
    folder = tmp_path_factory.mktemp("whole")
    for num_processes in (1, 2):
        train(flags(folder / str(num_processes), "--eval_steps", str(NUM_STEPS)), num_processes)
    return {num_processes: folder / str(num_processes) for num_processes in (1, 2)}


def start(flags, num_processes=1):
    return ProcessGroup(num_processes, run_script, "main", flags)


def train(flags, num_processes=1):
    run_in_group(num_processes, run_script, "main", flags)


def losses(run_dir):
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return [record["loss"] for record in records]


def weights(run_dir, step=NUM_STEPS):
    folder = run_dir / f"step_{step:07d}"
    return {
        f"{network}/{name}": tensor
        for network in ("transformer", "transformer_ema")
        for name, tensor in load_file(folder / network / "diffusion_pytorch_model.safetensors").items()
    }


def assert_equal_runs(ours, theirs):
    assert losses(ours) == losses(theirs)
    ours, theirs = weights(ours), weights(theirs)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_killed_run_goes_on_and_ends_as_the_uninterrupted_one_bit_for_bit(flags, whole_runs, tmp_path, num_processes):
    draw = random.Random(num_processes)
    for trial in range(TRIALS):
        run_dir = tmp_path / f"killed{trial}"
        group = start(flags(run_dir, "--resume", "auto"), num_processes)
        wanted = draw.randrange(1, NUM_STEPS)
        while len(list(run_dir.glob(f"step_{wanted:07d}"))) == 0 and group.is_alive:
            time.sleep(0.01)
        time.sleep(draw.random() * 0.3)  # anywhere in the step, or in the writing of a checkpoint
        group.kill()
        train(flags(run_dir, "--resume", "auto"), num_processes)
        assert_equal_runs(run_dir, whole_runs[num_processes])


def test_two_processes_with_batch_1_make_the_steps_of_one_with_batch_2(flags, whole_runs, tmp_path):
    """Up to the rounding of sums taken in another order: 1e-4 of the losses after eight steps."""
    one, two = tmp_path / "one", whole_runs[2]
    train(flags(one, "--batch_size", "2", "--eval_steps", str(NUM_STEPS)))
    torch.testing.assert_close(torch.tensor(losses(one)), torch.tensor(losses(two)), rtol=1e-4, atol=1e-6)
    scores = [json.loads((run_dir / "validation.jsonl").read_text()) for run_dir in (one, two)]
    assert scores[0]["J&F"] == pytest.approx(scores[1]["J&F"], abs=0.02)


@pytest.mark.parametrize(
    ("num_processes", "number"), [(1, signal.SIGTERM), (1, signal.SIGUSR1), (2, signal.SIGTERM), (2, signal.SIGUSR1)]
)
def test_a_signal_saves_the_step_and_resuming_loses_none(flags, whole_runs, tmp_path, num_processes, number):
    """One of two processes receives it, and both stop after the same step."""
    run_dir = tmp_path / "run"
    arguments = flags(run_dir, "--resume", "auto", "--save_steps", "1000")
    group = start(arguments, num_processes)
    while not (run_dir / "metrics.jsonl").exists() and group.is_alive:
        time.sleep(0.01)
    os.kill(group.processes[-1].pid, number)
    assert group.wait() == [128 + number] * num_processes, "a run that was stopped is not done"
    assert f"Stopped by {number.name} after" in group.errors, group.errors[-2000:]
    done = len(losses(run_dir))
    assert (run_dir / "latest").read_text().strip() == f"step_{done:07d}"
    train(arguments, num_processes)
    assert_equal_runs(run_dir, whole_runs[num_processes])


def test_an_error_in_one_process_ends_all_with_its_message(flags, tmp_path):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "main.py",
        *flags(tmp_path / "run", "--num_frames", "6"),
    ]  # fmt: skip
    foreign = ("WORLD_SIZE", "RANK", "LOCAL_RANK")
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert "main.py: error: " in done.stderr
    assert "4n+1" in done.stderr


def test_an_image_that_a_worker_cannot_read_ends_the_run_with_one_line(flags, toy_root, tmp_path):
    root = tmp_path / "toy"
    shutil.copytree(toy_root, root)
    for image in root.glob("train/JPEGImages/*/*.jpg"):
        image.write_bytes(b"no image")
    group = start(flags(tmp_path / "run", "--mevis_path", str(root), "--num_workers", "2"))
    assert group.wait() == [1]
    last = group.errors.splitlines()[-1]
    assert last.startswith("main.py: error: ") and "damaged or not an image" in last and len(last) < 400
