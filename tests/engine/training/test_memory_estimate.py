"""The memory arithmetic of --dry_run against what libraries really keep."""

import pytest
import torch
from diffusers import WanTransformer3DModel

from engine.training.ema import EMAWeights
from engine.training.memory_estimate import (
    HIDDEN_BYTES,
    MOMENT_BYTES,
    Choices,
    Clips,
    DiTSize,
    LiveBytes,
    peak,
    saved_by_block,
    training_memory,
)
from engine.training.optimizer import build_optimizer
from models.dit import checkpoint_blocks
from models.lora import add_lora

SIDE, FRAMES = 6, 4  # in patches
HEADS, HEAD_WIDTH, FEED_FORWARD = 2, 128, 704


def dit(num_layers, dtype=torch.float32):
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=HEADS, attention_head_dim=HEAD_WIDTH, in_channels=32, out_channels=16, text_dim=64,
        freq_dim=64, ffn_dim=FEED_FORWARD, num_layers=num_layers,
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        if not set(model._keep_in_fp32_modules) & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    return model


def run(model, num_text, batch_size=1):
    dtype = model.patch_embedding.weight.dtype
    video = torch.zeros(batch_size, 32, FRAMES, 2 * SIDE, 2 * SIDE, dtype=dtype)
    text = torch.zeros(batch_size, num_text, 64, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        return model(video, torch.full((batch_size,), 500.0), text, return_dict=False)[0]


def saved_bytes(model, num_text, batch_size):
    """Returns the size of all storages that autograd keeps, without those of parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor  # which also keeps it, so that no address is used twice

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run(model, num_text, batch_size)
    del output
    return sum(sizes.values())


def network(model, itemsize=4):
    num = sum(parameter.numel() for parameter in model.parameters())
    block = sum(parameter.numel() for name, parameter in model.blocks[0].named_parameters() if "lora" not in name)
    return DiTSize(
        itemsize * num, itemsize * num, num, block, num - len(model.blocks) * block, len(model.blocks),
        HEADS * HEAD_WIDTH, FEED_FORWARD,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_text", "batch_size"), [(8, 1), (64, 1), (16, 2)])
def test_a_block_keeps_the_bytes_of_the_formula_within_2_percent(dtype, num_text, batch_size):
    """The first factor is rounded up: what autograd keeps is at most the formula, and hardly less."""
    models = [dit(layers, dtype) for layers in (1, 2)]
    counted = saved_bytes(models[1], num_text, batch_size) - saved_bytes(models[0], num_text, batch_size)
    expected = saved_by_block(
        network(models[0]), Clips(batch_size, FRAMES * SIDE**2, num_text, 0), dtype is torch.float32
    )
    assert 0.98 * expected <= counted <= expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_adapters_a_block_keeps_less_than_the_formula(dtype):
    models = [dit(layers, dtype) for layers in (1, 2)]
    expected = saved_by_block(network(models[0]), Clips(1, FRAMES * SIDE**2, 8, 0), dtype is torch.float32)
    for model in models:
        add_lora(model, 2)
    counted = saved_bytes(models[1], 8, 1) - saved_bytes(models[0], 8, 1)
    assert 0.6 * expected <= counted <= expected


def test_a_checkpointed_block_keeps_its_input_in_bfloat16():
    model = dit(2)
    checkpoint_blocks(model, 1)
    inputs = []
    model.blocks[1].register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    kept = saved_bytes(model, 8, 1) - saved_bytes(dit(1), 8, 1)
    assert kept < 0, "two checkpointed blocks keep less than a whole one"
    assert {tensor.element_size() for tensor in inputs} == {HIDDEN_BYTES}
    assert inputs[0].numel() == FRAMES * SIDE**2 * HEADS * HEAD_WIDTH


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_take_8_bytes_a_parameter(dtype):
    model = dit(1, dtype)
    optimizer = build_optimizer("adamw", model, 1e-3, 0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kept = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    moments = sum(value.numel() * value.element_size() for value in kept if value.ndim)
    assert moments == MOMENT_BYTES["adamw"] * sum(parameter.numel() for parameter in model.parameters())


def test_an_ema_update_holds_the_differences_of_all_weights_at_once():
    model = torch.nn.Sequential(*[torch.nn.Linear(64, 64, bias=False) for _ in range(4)])
    ema = EMAWeights(model, 0.9, "cpu")
    with LiveBytes() as live:
        ema.step()
    assert live.peak == 4 * sum(parameter.numel() for parameter in model.parameters())


def test_the_peak_is_what_stays_and_the_largest_of_what_does_not():
    sizes = network(dit(2))
    clips = Clips(1, 144, 8, encoding_bytes=10**9)
    choices = Choices(True, "adamw", ema_on_gpu=True, checkpoint_every=1, num_shards=1)
    memory = training_memory(sizes, clips, choices, vae_parameters=100)
    assert peak(memory) == 20 * sizes.num_trained + 2 * 100 + 10**9
    without = training_memory(sizes, Clips(1, 144, 8, 0), Choices(True, "adamw", False, 0, 1), 0)
    assert peak(without) == 16 * sizes.num_trained + 2 * saved_by_block(sizes, clips, True)


def test_live_bytes_forgets_what_is_freed_and_counts_no_view_twice():
    with LiveBytes() as live:
        first = torch.zeros(1000, device="meta")
        second = first.view(10, 100) + 1
        assert live.peak == 8000
        del first
        third = (second * 2).flatten()
        assert live.peak == 8000
        del second, third
    assert live.peak == 8000
