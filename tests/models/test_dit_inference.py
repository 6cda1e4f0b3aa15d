"""What makes the DiT faster changes its speed alone: each against the library's own way."""

import copy

import pytest
import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

from models import dit_inference
from models.dit import predict_velocity
from models.dit_inference import compile_for_any_length, keep_rotary_float32, prepare_for_inference, use_fast_attention
from models.flow import sigma_schedule
from models.objectives import OBJECTIVES, predict_mask_latents


def tiny_dit(in_channels=32, seed=0):
    torch.manual_seed(seed)
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=in_channels,
        out_channels=16,
        text_dim=8,
        freq_dim=16,
        ffn_dim=32,
        num_layers=3,
    ).eval()


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def velocities(dit, captions, video, sigma=1.0, latents=None):
    """Of the prompts of one video; the latents are the video's own, as at the first step, unless given."""
    num = len(captions)
    video = video.expand(num, -1, -1, -1, -1)
    return predict_velocity(
        dit, video if latents is None else latents, video, torch.tensor(sigma).expand(num), captions
    )


def rows_seen(module):
    """A list that grows by the batch size whenever a module runs."""
    seen = []
    module.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    return seen


# -- prompts of one video ----------------------------------------------------------------------------------------


@torch.no_grad()
def test_prompts_that_share_the_first_attention_get_the_velocities_that_each_gets_alone():
    video, captions = draw(1, 16, 3, 4, 6), draw(5, 7, 8, seed=2)
    plain, shared = tiny_dit(), tiny_dit()
    prepare_for_inference(shared)
    alone = torch.cat([velocities(plain, caption[None], video) for caption in captions])
    # The same numbers; products of other batch sizes may round otherwise.
    torch.testing.assert_close(velocities(shared, captions, video), alone, rtol=0, atol=2e-6)
    assert alone.std(dim=0).max() > 1e-3, "captions that change nothing would prove nothing"


@torch.no_grad()
def test_the_first_self_attention_sees_one_row_and_all_else_sees_all():
    dit = tiny_dit()
    prepare_for_inference(dit)
    first, cross, second = (rows_seen(m) for m in (dit.blocks[0].attn1, dit.blocks[0].attn2, dit.blocks[1].attn1))
    velocities(dit, draw(5, 7, 8), draw(1, 16, 3, 4, 6))
    assert (first, cross, second) == ([1], [5], [5])


@torch.no_grad()
def test_latents_that_differ_are_not_taken_for_one_row():
    """The second step: each prompt has latents of its own."""
    video, captions, latents = draw(1, 16, 3, 4, 6), draw(3, 7, 8, seed=2), draw(3, 16, 3, 4, 6, seed=3)
    plain, shared = tiny_dit(), tiny_dit()
    prepare_for_inference(shared)
    first = rows_seen(shared.blocks[0].attn1)
    expected = velocities(plain, captions, video, 0.75, latents)
    assert torch.equal(velocities(shared, captions, video, 0.75, latents), expected)
    assert first == [3]


@torch.no_grad()
def test_sigmas_that_differ_are_not_taken_for_one():
    video, captions, sigma = draw(1, 16, 3, 4, 6).expand(2, -1, -1, -1, -1), draw(2, 7, 8), torch.tensor([1.0, 0.3])
    plain, shared = tiny_dit(), tiny_dit()
    prepare_for_inference(shared)
    expected = predict_velocity(plain, video, video, sigma, captions)
    torch.testing.assert_close(predict_velocity(shared, video, video, sigma, captions), expected, rtol=0, atol=2e-6)


@torch.no_grad()
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_first_evaluation_of_every_objective_is_shared(pipeline, objective):
    dit = pipeline.transformer
    prepare_for_inference(dit)
    first = rows_seen(dit.blocks[0].attn1)
    channels = dit.config.out_channels
    video, captions = draw(1, channels, 2, 4, 6).expand(3, -1, -1, -1, -1), draw(3, 5, dit.config.text_dim)

    def evaluate(latents, sigma):
        return predict_velocity(dit, latents, video, sigma, captions)

    steps = 2 if objective in ("flow", "noise") else 1
    predict_mask_latents(objective, evaluate, video, sigma_schedule(steps), video)
    assert first == [1, 3][:steps]


@torch.no_grad()
def test_sharing_can_be_undone_and_is_never_added_twice():
    dit = tiny_dit()
    for _ in range(2):
        prepare_for_inference(dit)
    assert len(dit.patch_embedding._forward_pre_hooks) == len(dit.blocks[0].attn2._forward_pre_hooks) == 1
    dit.patch_embedding._forward_pre_hooks.clear()
    dit.blocks[0].attn2._forward_pre_hooks.clear()
    first = rows_seen(dit.blocks[0].attn1)
    velocities(dit, draw(5, 7, 8), draw(1, 16, 3, 4, 6))
    assert first == [5]


def test_a_prepared_dit_gets_the_gradients_of_the_plain_one():
    """A model that was prepared, and is trained after all."""
    gradients = []
    for prepare in (False, True):
        dit = tiny_dit()
        if prepare:
            prepare_for_inference(dit)
        velocities(dit, draw(3, 7, 8), draw(1, 16, 3, 4, 6)).square().mean().backward()
        gradients.append(dit.blocks[0].attn1.to_q.weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-9)


# -- rotary tables -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cast_first", [True, False])
def test_rotary_tables_are_float32_whatever_the_model_is_cast_to(cast_first):
    exact = tiny_dit().rope
    dit = tiny_dit()
    if cast_first:
        dit.to(torch.bfloat16)
        assert (dit.rope.freqs_cos.float() - exact.freqs_cos).abs().max() > 1e-3, "what the library does by itself"
    keep_rotary_float32(dit)
    dit.to(torch.bfloat16).half()
    assert dit.patch_embedding.weight.dtype == torch.float16
    for name in ("freqs_cos", "freqs_sin"):
        assert torch.equal(getattr(dit.rope, name), getattr(exact, name))


@torch.no_grad()
def test_rounded_tables_move_the_velocity_and_kept_ones_do_not():
    """All else in float32, so that the tables alone can matter."""
    video, captions = draw(1, 16, 2, 4, 160), draw(1, 7, 8, seed=2)
    reference = velocities(tiny_dit(), captions, video)
    errors = []
    for keep in (False, True):
        dit = tiny_dit()
        if keep:
            keep_rotary_float32(dit)
        dit.rope.to(torch.bfloat16)
        errors.append(float((velocities(dit, captions, video) - reference).norm() / reference.norm()))
    assert errors[0] > 1e-5
    assert errors[1] == 0


def test_the_tables_still_move_and_a_copy_has_its_own():
    dit = tiny_dit()
    keep_rotary_float32(dit)
    twin = copy.deepcopy(dit)
    twin.to("meta")
    assert twin.rope.freqs_cos.is_meta
    assert not dit.rope.freqs_cos.is_meta
    assert not twin.to_empty(device="cpu").rope.freqs_cos.is_meta


def test_a_pipeline_keeps_its_tables_through_a_cast(pipeline):
    before = pipeline.transformer.rope.freqs_sin.clone()
    pipeline.to(torch.bfloat16)
    assert pipeline.transformer.dtype == torch.bfloat16
    assert torch.equal(pipeline.transformer.rope.freqs_sin, before)


# -- attention backends ------------------------------------------------------------------------------------------


def backends_of(dit):
    return {processor._attention_backend for processor in dit.attn_processors.values()}


@pytest.fixture
def fake_gpu(monkeypatch):
    """A DiT on the CPU that says it is on a GPU."""

    def make(dtype=torch.bfloat16, capability=(8, 0)):
        dit = tiny_dit().to(dtype)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
        monkeypatch.setattr(
            dit_inference, "_place", lambda dit: (torch.device("cuda"), dit.patch_embedding.weight.dtype)
        )
        return dit

    return make


@pytest.mark.parametrize(
    ("installed", "capability", "expected"),
    [
        ((), (9, 0), "native"),
        (("_CAN_USE_FLASH_ATTN",), (9, 0), "native"),
        (("_CAN_USE_FLASH_ATTN", "_CAN_USE_FLASH_ATTN_3"), (9, 0), "_flash_3"),
        (("_CAN_USE_FLASH_ATTN", "_CAN_USE_FLASH_ATTN_3"), (8, 6), "flash"),
        (("_CAN_USE_FLASH_ATTN", "_CAN_USE_FLASH_ATTN_3"), (10, 0), "native"),
        (("_CAN_USE_FLASH_ATTN",), (7, 5), "native"),
    ],
)
def test_attention_written_for_the_gpu_is_chosen_where_installed(
    monkeypatch, fake_gpu, installed, capability, expected
):
    for flag in ("_CAN_USE_FLASH_ATTN", "_CAN_USE_FLASH_ATTN_3"):
        monkeypatch.setattr(attention_dispatch, flag, flag in installed)
    dit = fake_gpu(capability=capability)
    assert use_fast_attention(dit) == expected
    assert backends_of(dit) == {None if expected == "native" else AttentionBackendName(expected)}
    default, _ = _AttentionBackendRegistry.get_active_backend()
    assert default == AttentionBackendName.NATIVE, "other models keep theirs"


@torch.no_grad()
def test_the_chosen_kernels_run_in_every_attention(monkeypatch, fake_gpu):
    calls = []

    def flash(query, key, value):
        calls.append(query.shape)
        rows = (x.transpose(1, 2) for x in (query, key, value))
        return F.scaled_dot_product_attention(*rows).transpose(1, 2)

    monkeypatch.setattr(attention_dispatch, "_CAN_USE_FLASH_ATTN", True)
    monkeypatch.setitem(_AttentionBackendRegistry._backends, AttentionBackendName.FLASH, flash)
    monkeypatch.setitem(
        _AttentionBackendRegistry._supported_arg_names, AttentionBackendName.FLASH, {"query", "key", "value"}
    )
    dit, plain = fake_gpu(), tiny_dit().to(torch.bfloat16)
    use_fast_attention(dit)
    video, captions = draw(1, 16, 3, 4, 6), draw(2, 7, 8)
    assert torch.equal(velocities(dit, captions, video), velocities(plain, captions, video))
    assert len(calls) == 2 * len(dit.blocks)


def test_float32_and_the_cpu_keep_torchs_attention(monkeypatch, fake_gpu):
    monkeypatch.setattr(attention_dispatch, "_CAN_USE_FLASH_ATTN", True)
    assert use_fast_attention(tiny_dit().to(torch.bfloat16)) == "native"
    assert use_fast_attention(fake_gpu(torch.float32)) == "native"


def test_the_librarys_environment_variable_overrules_the_choice(monkeypatch, fake_gpu):
    monkeypatch.setattr(attention_dispatch, "_CAN_USE_FLASH_ATTN", True)
    monkeypatch.setattr(dit_inference, "DIFFUSERS_ATTN_BACKEND", "_native_math")
    dit = fake_gpu()
    assert use_fast_attention(dit) == "_native_math"
    assert backends_of(dit) == {None}


# -- compilation -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_other_lengths_sizes_and_numbers_of_prompts_compile_nothing_new():
    graphs = []

    def counted(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    plain, dit = tiny_dit(), tiny_dit()
    prepare_for_inference(dit)
    compile_for_any_length(dit, backend=counted)
    compiled = []
    # Also equal numbers of frames, rows, columns or prompts, which the compiler may take for a rule.
    for shape, num_prompts in [((3, 4, 6), 2), ((5, 4, 6), 3), ((2, 8, 10), 5), ((3, 6, 6), 3)]:
        video, captions = draw(1, 16, *shape), draw(num_prompts, 7, 8)
        result = velocities(dit, captions, video)
        torch.testing.assert_close(result, velocities(plain, captions, video), rtol=0, atol=2e-6)
        compiled.append(len(graphs))
    torch._dynamo.reset()
    assert compiled == [2] * 4, "one graph for the first block, whose input is one row, and one for all others"
