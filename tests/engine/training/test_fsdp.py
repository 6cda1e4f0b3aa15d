"""Sharded training equals plain training, and resumes on any number of processes: gloo, since --fsdp needs GPUs."""

import json

import pytest
import sharded_run
import torch
from process_group import run_in_group
from safetensors.torch import load_file
from tiny_training import flow_task, make_trainer

from util.errors import UserError

STEP_2, STEP_4 = "step_0000002", "step_0000004"
NETWORKS = ("transformer", "transformer_ema")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of two processes; by_three is step 2 of the sharded one, loaded and saved by three."""
    folder = tmp_path_factory.mktemp("runs")
    run_in_group(2, sharded_run.train_and_resume, folder)
    run_in_group(2, sharded_run.fail_and_resume, folder / "failed")
    run_in_group(3, sharded_run.load_and_save, folder / "sharded" / STEP_2, folder / "by_three")
    return folder


def weights(run_dir, step, name):
    return load_file(run_dir / step / name / "diffusion_pytorch_model.safetensors")


def optimizer_state(checkpoint):
    return torch.load(checkpoint / "optimizer.pt", weights_only=True)


def losses(run_dir):
    return [json.loads(line)["loss"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def assert_same_state(ours, theirs):
    assert ours["param_groups"] == theirs["param_groups"]
    assert list(ours["state"]) == list(theirs["state"]) != []
    for key, entries in theirs["state"].items():
        assert ours["state"][key].keys() == entries.keys() == {"step", "exp_avg", "exp_avg_sq"}
        for name, value in entries.items():
            assert value.any(), "moments are not zero"
            assert torch.equal(ours["state"][key][name], value)


def test_sharded_blocks_train_like_whole_ones(runs):
    """Losses, weights, EMA weights and moments agree to rounding."""
    sharded, plain = runs / "sharded", runs / "plain"
    torch.testing.assert_close(torch.tensor(losses(sharded)), torch.tensor(losses(plain)), rtol=1e-4, atol=1e-6)
    for network in NETWORKS:
        ours, theirs = (weights(folder, STEP_4, network) for folder in (sharded, plain))
        assert ours.keys() == theirs.keys()
        for name in theirs:
            if not name.endswith("to_k.bias"):  # no effect on the softmax: its gradient is rounding, which Adam scales
                torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=5e-4)  # four steps move by 4e-3
    ours, theirs = (optimizer_state(folder / STEP_4) for folder in (sharded, plain))
    assert ours["param_groups"] == theirs["param_groups"]
    for key, entries in theirs["state"].items():
        for name, value in entries.items():
            torch.testing.assert_close(ours["state"][key][name], value, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("name", ["resumed", "resumed_from_slices"])
def test_a_sharded_run_resumes_bit_for_bit_also_from_the_layout_of_one_file_per_process(runs, name):
    files = sorted(path.name for path in (runs / name / STEP_2).glob("optimizer*"))
    assert files == (["optimizer.pt"] if name == "resumed" else ["optimizer_0of2.pt", "optimizer_1of2.pt"])
    assert losses(runs / name) == losses(runs / "sharded")
    for network in NETWORKS:
        ours, theirs = (weights(runs / folder, STEP_4, network) for folder in (name, "sharded"))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert_same_state(optimizer_state(runs / name / STEP_4), optimizer_state(runs / "sharded" / STEP_4))


def test_a_sharded_run_without_moments_resumes_like_a_new_one(runs):
    assert losses(runs / "failed") == losses(runs / "sharded")


def test_a_sharded_run_resumes_on_another_number_of_processes(runs):
    assert_same_state(*(optimizer_state(runs / name / STEP_2) for name in ("by_three", "sharded")))
    for network in NETWORKS:
        ours, theirs = (weights(runs / name, STEP_2, network) for name in ("by_three", "sharded"))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_sharded_run_resumes_without_sharding_and_slices_do_not(runs, pipeline, tmp_path):
    trainer = make_trainer(flow_task(pipeline), tmp_path)
    trainer.load(runs / "sharded" / STEP_2)
    assert_same_state(trainer.optimizer.state_dict(), optimizer_state(runs / "sharded" / STEP_2))
    with pytest.raises(UserError, match=r"split over 2 processes, got a run without --fsdp; resume with --fsdp on 2"):
        trainer.load(runs / "resumed_from_slices" / STEP_2)
