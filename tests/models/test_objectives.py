"""The method's flow and the baselines of the paper's table, in closed form and from training to inference."""

import json
from unittest.mock import Mock

import numpy as np
import pytest
import torch

import main
from datasets.toy import write_toy_mevis
from models import mask_vae
from models.flow import interpolate, sample_sigma, sigma_schedule, velocity_target
from models.flowrvs import FlowRVS
from models.objectives import OBJECTIVES, check_num_steps, predict_mask_latents, training_example
from models.weights import load_flowrvs
from util.errors import UserError


@pytest.fixture
def latents():
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 2, 4, 4, generator=draw, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("num_steps", [1, 4])
def test_a_perfect_predictor_of_the_targets_gives_the_mask(objective, num_steps, latents):
    """What training asks for is what inference needs: round trip by a network that knows the answer."""
    video, mask, noise = latents
    if num_steps > 1 and objective in ("velocity1", "direct", "rem"):
        pytest.skip("one-step objectives")
    example = training_example(objective, video, mask, torch.tensor([1.0, 1.0]), noise)
    solved = predict_mask_latents(
        objective, lambda *_: example.target, video, sigma_schedule(num_steps).double(), noise
    )
    torch.testing.assert_close(solved, mask)


def test_training_asks_where_inference_asks(latents):
    video, mask, noise = latents
    for objective in OBJECTIVES:
        example = training_example(objective, video, mask, torch.tensor([1.0, 1.0]), noise)
        network = Mock(side_effect=lambda x, _: torch.zeros_like(x))
        predict_mask_latents(objective, network, video, sigma_schedule(1), noise)
        asked_latents, asked_sigma = network.call_args.args
        torch.testing.assert_close(asked_latents, example.latents)
        torch.testing.assert_close(asked_sigma.double(), example.sigma.double())


def test_flow_and_noise_lie_on_their_paths(latents):
    video, mask, noise = latents
    sigma = torch.tensor([0.3, 0.8])
    flow = training_example("flow", video, mask, sigma, noise)
    torch.testing.assert_close(flow.latents, interpolate(video, mask, sigma))
    torch.testing.assert_close(flow.target, velocity_target(video, mask))
    from_noise = training_example("noise", video, mask, sigma, noise)
    torch.testing.assert_close(from_noise.latents, interpolate(noise, mask, sigma))
    torch.testing.assert_close(from_noise.target, noise - mask)
    assert training_example("velocity1", video, mask, sigma, noise).sigma.tolist() == [1, 1]
    assert training_example("rem", video, mask, sigma, noise).sigma.tolist() == [0, 0]


@pytest.mark.parametrize("beta", [-3.0, -0.5, 0.0, 0.5, 3.0])
def test_timestep_beta_has_its_law(beta):
    """u ** (1 / (1 + beta)) has mean (1 + beta) / (2 + beta); below 0 it is mirrored."""
    timesteps = 1000 * sample_sigma(40000, 0.0, torch.Generator().manual_seed(0), beta)
    assert timesteps.min() >= 1
    assert torch.equal(timesteps.round(), timesteps.round().clamp(1, 1000))
    bias = abs(beta)
    mean = (1 + bias) / (2 + bias)
    assert timesteps.mean().item() == pytest.approx(1000 * (mean if beta >= 0 else 1 - mean), abs=8)


def test_normalising_and_back_is_the_identity(toy_pipeline):
    latents = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    there = mask_vae.normalise(toy_pipeline.vae, latents)
    torch.testing.assert_close(mask_vae.denormalise(toy_pipeline.vae, there), latents)


@pytest.mark.parametrize("objective", ["velocity1", "direct", "rem"])
def test_several_steps_are_refused_where_one_was_learnt(objective):
    with pytest.raises(UserError, match=objective):
        check_num_steps(objective, 2)
    check_num_steps(objective, 1)


@pytest.fixture(scope="module")
def toy_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "toy"
    write_toy_mevis(root, 5, num_train=2, num_valid_u=1, num_valid=1)
    return root


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_objective_is_saved_with_the_weights_and_inference_follows_it(objective, toy_root, toy_folder, tmp_path):
    main.main([
        "--wan_path", str(toy_folder), "--mevis_path", str(toy_root), "--output_dir", str(tmp_path / "run"),
        "--device", "cpu", "--num_frames", "9", "--num_workers", "0", "--max_steps", "1", "--eval_steps", "1",
        "--objective", objective, "--timestep_beta", "0.5",
    ])  # fmt: skip
    pipeline = load_flowrvs(str(toy_folder), dit_ckpt=str(tmp_path / "run" / "step_0000001")).pipeline
    assert pipeline.config.objective == objective
    frames = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    logits = pipeline(frames, "a dog").logits
    pipeline.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "model_index.json").read_text())["objective"] == objective
    for reloaded in (FlowRVS.from_pretrained(tmp_path / "saved"), load_flowrvs(str(tmp_path / "saved")).pipeline):
        assert torch.equal(reloaded(frames, "a dog").logits, logits)
    other_seed = pipeline(frames, "a dog", seed=1).logits
    assert torch.equal(other_seed, logits) == (objective != "noise")


def test_noise_without_injection_is_refused(toy_root, toy_folder, tmp_path):
    with pytest.raises(SystemExit, match=r"objective noise: .* --use_dvi"):
        main.main([
            "--wan_path", str(toy_folder), "--mevis_path", str(toy_root), "--output_dir", str(tmp_path / "run"),
            "--device", "cpu", "--num_frames", "9", "--num_workers", "0", "--max_steps", "1", "--no-use_dvi",
            "--objective", "noise",
        ])  # fmt: skip
