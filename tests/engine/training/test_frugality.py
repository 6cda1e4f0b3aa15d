"""Options that save memory do not change results: checkpointing, adapters, EMA weights, number formats, caches."""

import json

import pytest
import torch
from accelerate import Accelerator
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file
from tiny_training import flow_task, latent_batch, run_trainer, tiny_dit, tiny_options

import main
import models.weights
from engine.training.ema import EMAWeights
from engine.training.trainer import Trainer
from models.dit import checkpoint_blocks, predict_velocity, with_injection
from models.lora import add_lora, has_lora
from models.weights import load_dit, read_saved_network
from util.weight_files import ADAPTER_NAME


def deep_dit():
    torch.manual_seed(0)
    return WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=32, out_channels=16, text_dim=64, freq_dim=16,
        ffn_dim=32, num_layers=4,
    )  # fmt: skip


def velocity(dit):
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    latents, video = draw(2, 16, 2, 4, 4), draw(2, 16, 2, 4, 4)
    return predict_velocity(dit, latents, video, torch.tensor([1.0, 0.5]), draw(2, 6, 64))


@pytest.mark.parametrize(("every", "recomputed"), [(0, 0), (1, 4), (2, 2), (3, 2)])
def test_checkpointing_recomputes_every_nth_block_and_leaves_the_gradient(every, recomputed):
    dit = deep_dit()
    velocity(dit).square().mean().backward()
    expected = {name: parameter.grad.clone() for name, parameter in dit.named_parameters()}
    dit.zero_grad()
    checkpoint_blocks(dit, every)
    calls = []
    for block in dit.blocks:
        block.norm1.register_forward_hook(lambda *_: calls.append(1))
    velocity(dit).square().mean().backward()
    assert len(calls) == 4 + recomputed
    for name, parameter in dit.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=0)


def test_compiled_blocks_give_the_same_velocity():
    dit = deep_dit()
    expected = velocity(dit)
    dit.compile_repeated_blocks(backend="eager")
    torch.testing.assert_close(velocity(dit), expected)


# -- adapters ----------------------------------------------------------------------------------------------------


def test_new_adapters_change_nothing_and_alone_train_with_the_patch_embedding():
    dit = deep_dit()
    expected = velocity(dit)
    add_lora(dit, 4)
    torch.testing.assert_close(velocity(dit), expected, rtol=0, atol=0)
    trained = {name for name, parameter in dit.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or name.startswith("patch_embedding") for name in trained)
    per_block = 2 * 4 + 2  # attention to video and text, and the feed-forward layers
    assert sum("lora_A" in name for name in trained) == per_block * len(dit.blocks)


def test_a_run_of_adapters_resumes_exactly_and_its_merged_ema_weights_equal_it(pipeline, tmp_path):
    def run(folder, resume_from=None, **options):
        folder.mkdir(exist_ok=True)
        dit = with_injection(tiny_dit(16))
        add_lora(dit, 2, base=str(tmp_path / "base"))
        return run_trainer(pipeline, folder, resume_from, dit=dit, **options)

    tiny_dit(16).save_pretrained(tmp_path / "base")
    whole = run(tmp_path / "whole")
    run(tmp_path / "half", max_steps=2)
    resumed = run(tmp_path / "half", tmp_path / "half" / "step_0000002")
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters, whole.parameters, strict=True))
    folder = tmp_path / "whole" / "step_0000004" / "transformer_ema"
    assert sorted(file.name for file in folder.iterdir()) == [ADAPTER_NAME, "config.json"]
    weights, config = read_saved_network(folder, "--dit_ckpt")
    merged = load_dit(config, weights, torch.float32)
    assert not has_lora(merged)
    with whole.ema.in_network(), torch.no_grad():
        torch.testing.assert_close(velocity(merged), velocity(whole.task.network), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(velocity(merged), velocity(with_injection(tiny_dit(16))), atol=1e-4)


# -- number formats ----------------------------------------------------------------------------------------------


def test_ema_weights_of_a_bfloat16_network_move_though_bfloat16_could_not():
    layer = torch.nn.Linear(4, 4, bias=False).bfloat16()
    torch.nn.init.constant_(layer.weight, 1.0)
    ema = EMAWeights(layer, 0.9999, "cpu")
    ema.num_steps = 10**6  # beyond the warm-up of the decay
    torch.nn.init.constant_(layer.weight, 2.0)
    for _ in range(10):
        ema.step()
    torch.testing.assert_close(ema.tensors["weight"], torch.full((4, 4), 2 - 0.9999**10), rtol=1e-5, atol=0)


def test_bfloat16_weights_train_and_their_checkpoint_keeps_float32_ema_weights(pipeline, tmp_path):
    dit = tiny_dit(32).bfloat16()
    trainer = run_trainer(pipeline, tmp_path / "run", dit=dit)
    folder = tmp_path / "run" / "step_0000004"
    raw = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    ema_weights = load_file(folder / "transformer_ema" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in raw.values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in ema_weights.values()} == {torch.float32}
    assert all(torch.equal(raw[name], value) for name, value in trainer.task.network.state_dict().items())


def test_autocast_keeps_no_copies_of_the_weights(pipeline, tmp_path, monkeypatch):
    trainer = Trainer(flow_task(pipeline), tiny_options(amp=True), tmp_path, Accelerator(cpu=True))
    seen = []
    step = trainer.task.step
    monkeypatch.setattr(
        trainer.task, "step", lambda batch: (seen.append(torch.is_autocast_cache_enabled()), step(batch))[1]
    )
    trainer._train_step([latent_batch()])
    assert seen == [False]


# -- the command -------------------------------------------------------------------------------------------------


def test_a_second_run_needs_no_text_encoder_where_the_cache_has_its_captions(
    toy_folder, small_toy, tmp_path, monkeypatch
):
    arguments = [
        "--wan_path", str(toy_folder), "--mevis_path", str(small_toy), "--device", "cpu", "--num_frames", "5",
        "--num_workers", "0", "--max_steps", "1", "--text_cache", str(tmp_path / "cache"), "--eval_steps", "1",
    ]  # fmt: skip
    main.main([*arguments, "--output_dir", str(tmp_path / "first")])
    monkeypatch.setattr(models.weights.UMT5EncoderModel, "from_pretrained", None)
    main.main([*arguments, "--output_dir", str(tmp_path / "second")])
    losses = [json.loads((tmp_path / name / "metrics.jsonl").read_text())["loss"] for name in ("first", "second")]
    assert losses[0] == losses[1]
    assert list((tmp_path / "first" / "tensorboard").glob("events.*")), "curves are there to look at"
    assert (tmp_path / "first" / "best" / "transformer" / "config.json").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--fsdp"], "--device"),
        (["--task", "mask_vae", "--lora_rank", "4"], "adapts the DiT"),
        (["--ema_device", "cuda"], "needs weights on a GPU"),
        (["--report_to", "wandb"], "pip install wandb"),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_is_read(tmp_path, flags, message):
    with pytest.raises(SystemExit) as done:
        main.main(["--wan_path", str(tmp_path / "absent"), "--device", "cpu", *flags])
    assert "error: " in str(done.value.code)
    assert message in str(done.value.code)
