"""Flow matching maths against closed forms, in float64 where the identity is exact."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.flow import euler_step, interpolate, sigma_schedule, solve, timestep_of, velocity_target


def latents(seed):
    return torch.randn(2, 3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_path_starts_at_the_mask_and_ends_at_the_video():
    video, mask = latents(0), latents(1)
    assert torch.equal(interpolate(video, mask, torch.ones(2)), video)
    assert torch.equal(interpolate(video, mask, torch.zeros(2)), mask)


def test_each_sample_has_its_own_sigma():
    video, mask = latents(0), latents(1)
    mixed = interpolate(video, mask, torch.tensor([1.0, 0.25]))
    assert torch.equal(mixed[0], video[0])
    torch.testing.assert_close(mixed[1], 0.25 * video[1] + 0.75 * mask[1])


def test_velocity_target_is_the_derivative_of_the_path():
    video, mask = latents(0), latents(1)
    sigma = torch.tensor([0.3, 0.8], dtype=torch.float64)
    ahead, behind = interpolate(video, mask, sigma + 1e-3), interpolate(video, mask, sigma - 1e-3)
    torch.testing.assert_close((ahead - behind) / 2e-3, velocity_target(video, mask), rtol=1e-9, atol=1e-9)


def test_one_euler_step_from_one_to_zero_subtracts_the_velocity():
    video, velocity = latents(0), latents(1)
    stepped = euler_step(video, velocity, torch.tensor(1.0), torch.tensor(0.0))
    assert torch.equal(stepped, video - velocity)


@pytest.mark.parametrize("num_steps", [1, 2, 4, 7])
def test_true_velocity_leads_from_video_to_mask_in_any_number_of_steps(num_steps):
    video, mask = latents(0), latents(1)
    sigmas = sigma_schedule(num_steps)
    solution = solve(lambda *_: velocity_target(video, mask), video, sigmas)
    torch.testing.assert_close(solution, mask, rtol=1e-6, atol=1e-6)  # the grid itself is float32


@pytest.mark.parametrize(
    ("num_steps", "timesteps"), [(1, [1000, 0]), (2, [1000, 750, 0]), (4, [1000, 900, 750, 501, 0])]
)
def test_schedule_is_the_grid_of_the_original(num_steps, timesteps):
    assert timestep_of(sigma_schedule(num_steps)).tolist() == timesteps


@given(st.integers(1, 300))
def test_schedule_falls_strictly_from_one_to_zero(num_steps):
    sigmas = sigma_schedule(num_steps)
    assert len(sigmas) == num_steps + 1
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


def test_shift_one_is_the_uniform_grid():
    torch.testing.assert_close(
        sigma_schedule(4, shift=1.0), torch.tensor([1.0, 0.75, 0.5, 0.251, 0.0]), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("arguments", [{"num_steps": 0}, {"num_steps": 1, "shift": 0.0}, {"num_steps": 2000}])
def test_schedule_refuses_what_it_cannot_place(arguments):
    with pytest.raises(ValueError, match=r"num_steps must|shift must"):
        sigma_schedule(**arguments)


def test_solver_evaluates_the_velocity_once_per_step_at_the_sigmas_of_the_grid():
    seen = []

    def velocity_at(state, sigma):
        seen.append(sigma.tolist())
        return torch.zeros_like(state)

    solve(velocity_at, latents(0), sigma_schedule(4))
    assert [timesteps for timesteps, _ in seen] == sigma_schedule(4)[:-1].tolist()
    assert all(first == second for first, second in seen)


def test_every_whole_timestep_survives_the_way_through_sigma():
    timesteps = torch.arange(0, 1001)
    assert torch.equal(timestep_of(timesteps.double() / 1000).long(), timesteps)
    assert torch.equal(timestep_of(timesteps.float() / 1000).long(), timesteps)
