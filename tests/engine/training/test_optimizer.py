"""The optimizers: what decays, rounding that keeps small steps, state that repeats."""

import sys

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Generator, nn

from engine.training.optimizer import (
    StochasticAdamW,
    build_optimizer,
    decay_groups,
    set_learning_rate,
    stochastic_round,
)
from util.errors import UserError

BETAS = (0.9, 0.95)


def tiny_dit():
    return WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=32, out_channels=16, text_dim=64, freq_dim=16,
        ffn_dim=32, num_layers=1,
    )  # fmt: skip


def tiny_vae():
    return AutoencoderKLWan(base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False])


def named_groups(model):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [{names[id(parameter)] for parameter in group["params"]} for group in decay_groups(model, 0.1)]


def weights(dtype, count=64, seed=0):
    """Weights of about 1, as near to bfloat16 as to float32."""
    values = torch.empty(count, 4).uniform_(0.75, 1.5, generator=Generator().manual_seed(seed))
    return nn.Parameter(values.bfloat16().to(dtype))


def train(optimizer, parameters, steps, start=0):
    """Steps on gradients that depend on the number of the step alone."""
    for step in range(start, start + steps):
        generator = Generator().manual_seed(step)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        optimizer.step()


# -- decay -------------------------------------------------------------------------------------------------------


def test_of_the_dit_the_matrices_of_the_blocks_and_the_head_decay():
    decayed, exempt = named_groups(tiny_dit())
    attention = {f"blocks.0.attn{n}.{part}.weight" for n in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0")}
    assert decayed == attention | {"blocks.0.ffn.net.0.proj.weight", "blocks.0.ffn.net.2.weight", "proj_out.weight"}
    assert {"scale_shift_table", "blocks.0.scale_shift_table", "patch_embedding.weight"} <= exempt
    assert {"condition_embedder.text_embedder.linear_1.weight", "condition_embedder.time_proj.weight"} <= exempt
    assert {"blocks.0.attn1.norm_q.weight", "blocks.0.norm2.bias", "proj_out.bias"} <= exempt


def test_of_the_decoder_the_kernels_decay_and_norms_of_many_axes_do_not():
    vae = tiny_vae()
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    decayed, exempt = named_groups(vae)
    assert all(name.endswith(".weight") for name in decayed)
    assert all(name.endswith((".bias", ".gamma")) for name in exempt)
    assert {name.split(".")[0] for name in decayed | exempt} == {"decoder", "post_quant_conv"}
    assert len(decayed) + len(exempt) == sum(parameter.requires_grad for parameter in vae.parameters())


def test_tables_of_embeddings_and_frozen_weights_do_not_decay():
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[2].requires_grad_(False)
    assert named_groups(model) == [{"1.weight"}, {"0.weight", "1.bias"}]
    assert [group["weight_decay"] for group in decay_groups(model, 0.1)] == [0.1, 0.0]


# -- rounding ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [1.001, -1.001, 2.0001, 1.9999, -3.14159, 0.1, 1e-30, -3e-40, 1e-41, 3.3e38, -3.3e38, 1.0, -0.25, 0.0]
)
def test_rounding_takes_one_of_the_two_neighbours_and_the_value_in_the_mean(value):
    number = 100_000
    values = torch.full((number,), value)
    rounded = stochastic_round(values, Generator().manual_seed(0))
    low = (values[:1].view(torch.int32) & -1 << 16).view(torch.float32).double().item()  # towards zero
    high = ((values[:1].view(torch.int32) & -1 << 16) + (1 << 16)).view(torch.float32).double().item()
    assert rounded.dtype is torch.bfloat16
    assert set(rounded.double().tolist()) <= {low, high}
    exact = values[0].double().item()
    share = (exact - low) / (high - low)
    standard_error = abs(high - low) * (share * (1 - share) / number) ** 0.5
    assert abs(rounded.double().mean().item() - exact) <= 4 * standard_error


def test_every_bfloat16_stays_and_no_number_stays_none():
    values = (torch.arange(1 << 16, dtype=torch.int32) << 16).view(torch.float32)
    rounded = stochastic_round(values, Generator().manual_seed(0))
    finite = ~values.isnan()  # and both infinities
    assert torch.equal(rounded[finite].view(torch.int16), values[finite].bfloat16().view(torch.int16))
    assert rounded[~finite].isnan().all()
    low_bits_only = torch.tensor([0x7F800001, 0x7FFFFFFF, -1, -(1 << 31) + 0x7F800001], dtype=torch.int32)
    assert stochastic_round(low_bits_only.view(torch.float32), Generator().manual_seed(0)).isnan().all()


def test_the_memory_layout_does_not_change_the_draw():
    values = torch.randn(2, 3, 4, 5, generator=Generator().manual_seed(0))
    turned = values.contiguous(memory_format=torch.channels_last)
    rounded = [stochastic_round(form, Generator().manual_seed(1)) for form in (values, turned)]
    assert torch.equal(*rounded)


# -- steps -------------------------------------------------------------------------------------------------------


def test_on_float32_weights_it_is_torchs_adamw():
    ours, theirs = weights(torch.float32), weights(torch.float32)
    train(StochasticAdamW([ours], 1e-2, BETAS, weight_decay=0.1), [ours], 20)
    train(torch.optim.AdamW([theirs], 1e-2, BETAS, weight_decay=0.1), [theirs], 20)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert not torch.equal(ours, weights(torch.float32))


def test_rounding_to_nearest_loses_small_steps_and_stochastic_rounding_keeps_them():
    moved = {}
    for name, dtype, optimizer_class in (
        ("float32", torch.float32, torch.optim.AdamW),
        ("nearest", torch.bfloat16, torch.optim.AdamW),
        ("stochastic", torch.bfloat16, StochasticAdamW),
    ):
        weight = weights(dtype, count=4096)
        before = weight.detach().double()
        optimizer = optimizer_class([weight], lr=5e-5, betas=BETAS, weight_decay=5e-4)
        for _ in range(200):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        moved[name] = (weight.detach().double() - before).mean().item()
    assert moved["nearest"] == 0
    assert moved["float32"] == pytest.approx(-200 * 5e-5, rel=0.01)
    # Of 16384 weights, each with a deviation of about 0.008: 4 standard errors are 2.5 %.
    assert moved["stochastic"] == pytest.approx(moved["float32"], rel=0.025)


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    results = []
    for seed in (3, 3, 4):
        parameters = [weights(torch.bfloat16), weights(torch.float32), weights(torch.bfloat16)]
        train(StochasticAdamW(parameters, 1e-3, BETAS, seed=seed), parameters, 5)
        results.append(parameters)
    assert all(torch.equal(*pair) for pair in zip(results[0], results[1], strict=True))
    assert not torch.equal(results[0][0], results[2][0])
    assert torch.equal(results[0][1], results[2][1])  # float32 is not rounded


def test_equal_parameters_are_not_rounded_alike():
    parameters = [weights(torch.bfloat16), weights(torch.bfloat16)]
    optimizer = StochasticAdamW(parameters, 1e-3, BETAS)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert not torch.equal(*parameters)


def test_a_run_resumed_from_a_file_equals_the_uninterrupted_one_bit_for_bit(tmp_path):
    whole = [weights(torch.bfloat16), weights(torch.float32)]
    train(StochasticAdamW(whole, 1e-3, BETAS, seed=7), whole, 8)

    halves = [weights(torch.bfloat16), weights(torch.float32)]
    first = StochasticAdamW(halves, 1e-3, BETAS, seed=7)
    train(first, halves, 3)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = StochasticAdamW(halves, 1e-3, BETAS, seed=7)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for parameter in halves:
        for name in ("exp_avg", "exp_avg_sq"):
            assert second.state[parameter][name].dtype is torch.float32
            assert torch.equal(second.state[parameter][name], first.state[parameter][name])
    train(second, halves, 5, start=3)
    assert all(torch.equal(*pair) for pair in zip(halves, whole, strict=True))


def test_a_parameter_without_gradient_stays_and_has_no_state():
    idle, busy = weights(torch.bfloat16), weights(torch.bfloat16)
    optimizer = StochasticAdamW([idle, busy], 1e-2, BETAS)
    train(optimizer, [busy], 2)
    assert torch.equal(idle, weights(torch.bfloat16))
    fresh = StochasticAdamW([idle, busy], 1e-2, BETAS)
    fresh.load_state_dict(optimizer.state_dict())
    assert idle not in fresh.state
    assert fresh.state[busy]["step"] == 2
    assert fresh.state[busy]["exp_avg"] is not optimizer.state[busy]["exp_avg"]  # two optimizers share no moments


def test_each_step_takes_the_rate_of_its_group():
    weight, still = weights(torch.float32), weights(torch.float32)
    optimizer = StochasticAdamW([{"params": [weight]}, {"params": [still]}], 1e-3, BETAS, weight_decay=0.0)
    moved = []
    for rate in (1e-3, 1e-2, 1e-4):
        set_learning_rate(optimizer, rate)
        optimizer.param_groups[1]["lr"] = 0.0
        before = weight.detach().clone()
        weight.grad, still.grad = torch.ones_like(weight), torch.ones_like(still)
        optimizer.step()
        moved.append((before - weight.detach()).mean().item())
    assert moved == pytest.approx([1e-3, 1e-2, 1e-4], rel=1e-3)  # Adam's step on a constant gradient is the rate
    assert torch.equal(still, weights(torch.float32))


# -- choice ------------------------------------------------------------------------------------------------------


def test_the_type_of_the_trained_weights_chooses_the_adamw():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    assert type(build_optimizer("adamw", model, 1e-3, 0.1)) is torch.optim.AdamW
    model[0].bfloat16()
    optimizer = build_optimizer("adamw", model, 1e-3, 0.1, seed=5)
    assert type(optimizer) is StochasticAdamW
    assert (optimizer.seed, [group["weight_decay"] for group in optimizer.param_groups]) == (5, [0.1, 0.0])
    assert {(group["lr"], group["betas"]) for group in optimizer.param_groups} == {(1e-3, (0.9, 0.999))}
    model[0].requires_grad_(False)
    assert type(build_optimizer("adamw", model, 1e-3, 0.1)) is torch.optim.AdamW


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_betas_and_eps_reach_the_optimizer(dtype):
    model = nn.Linear(3, 3).to(dtype)
    optimizer = build_optimizer("adamw", model, 1e-3, 0.1, betas=(0.8, 0.9), eps=1e-5)
    assert {(group["betas"], group["eps"]) for group in optimizer.param_groups} == {((0.8, 0.9), 1e-5)}


def test_a_bfloat16_dit_trains_and_both_kinds_of_its_weights_move():
    model = tiny_dit().bfloat16()
    model.scale_shift_table.data = model.scale_shift_table.data.float()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = build_optimizer("adamw", model, 1e-2, 0.1)
    train(optimizer, list(model.parameters()), 2)
    assert all(not torch.equal(*pair) for pair in zip(model.parameters(), before, strict=True))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16, torch.float32}


def test_without_a_package_adamw8bit_names_both(monkeypatch):
    for name in ("torchao.optim", "bitsandbytes.optim"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"--optimizer adamw8bit: .* pip install torchao, or pip install bitsandbytes"):
        build_optimizer("adamw8bit", nn.Linear(3, 3), 1e-3, 0.1)


def test_bitsandbytes_takes_over_for_float32_weights_and_refuses_bfloat16(monkeypatch):
    class Standin:
        AdamW8bit = torch.optim.AdamW

    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", Standin)
    model = nn.Linear(3, 3)
    assert build_optimizer("adamw8bit", model, 1e-3, 0.1).param_groups[0]["weight_decay"] == 0.1
    with pytest.raises(UserError, match="pip install torchao, or use --optimizer adamw"):
        build_optimizer("adamw8bit", model.bfloat16(), 1e-3, 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torchaos_8_bit_adamw_repeats_itself_and_resumes(dtype, tmp_path):
    pytest.importorskip("torchao.optim")

    def start():
        model = nn.Linear(64, 64, bias=False).to(dtype)  # torchao keeps smaller weights' moments whole
        model.weight.data = weights(dtype, count=1024).data.view(64, 64)
        return model, build_optimizer("adamw8bit", model, 1e-3, 0.0, seed=7)

    with torch.compiler.set_stance("force_eager"):  # compiling takes 10 seconds a shape on a CPU
        whole, optimizer = start()
        train(optimizer, [whole.weight], 1)
        assert not torch.equal(whole.weight, start()[0].weight)  # a rate that rounding to nearest would lose
        train(optimizer, [whole.weight], 4, start=1)
        half, optimizer = start()
        train(optimizer, [half.weight], 2)
        torch.save(optimizer.state_dict(), tmp_path / "state.pt")
        optimizer = build_optimizer("adamw8bit", half, 1e-3, 0.0, seed=7)
        optimizer.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        torch.rand(3)  # whatever was drawn in between
        train(optimizer, [half.weight], 3, start=2)
        assert torch.equal(half.weight, whole.weight)
        set_learning_rate(optimizer, 0.0)
        train(optimizer, [half.weight], 1)
    assert torch.equal(half.weight, whole.weight)
    assert half.weight.dtype is dtype
