"""Training: the tasks' losses, the loop, checkpoints and resume."""

import itertools
import json
import math
import shutil

import pytest
import torch
from accelerate import Accelerator
from diffusers import WanTransformer3DModel
from tiny_training import (
    CAPTIONS,
    CaptionTable,
    Endless,
    flow_task,
    latent_batch,
    make_trainer,
    run_trainer,
    tiny_dit,
    tiny_options,
)
from torch.utils.data import DataLoader

import main
from datasets.clip import ClipBatch, collate
from datasets.readers.mevis import MeViS
from datasets.referring import ClipOptions, ReferringClips
from datasets.registry import Source
from datasets.transforms import Box
from engine.training.checkpoints import commit_checkpoint
from engine.training.latent_cache import CachedLatents, LatentBatch, collate_latents
from engine.training.tasks import FlowOptions, FlowTask, MaskVAEOptions, MaskVAETask, dice_loss
from engine.training.trainer import Trainer, learning_rate
from models import mask_vae
from models.dit import has_injection
from models.flow import sample_sigma
from models.flowrvs import FlowRVS
from models.text import embed_captions
from models.weights import load_flowrvs
from util.errors import UserError


def fixed_clips(root):
    options = ClipOptions(9, Box(64, 112, 8), sampling="dense")
    return ReferringClips([Source("toy", MeViS(root, "train"))], options)


def cache(folder, clips, vae, identity):
    cached = CachedLatents(folder, clips, identity)
    cached.fill(vae)
    return cached


# -- draws -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probability", [0.0, 0.25, 0.5, 1.0])
def test_boundary_biased_sampling_has_its_law(probability):
    sigma = sample_sigma(20000, probability, torch.Generator().manual_seed(0))
    timesteps = (1000 * sigma).round()
    assert timesteps.min() >= 1
    expected = probability + (1 - probability) / 1000
    assert (timesteps == 1000).float().mean().item() == pytest.approx(expected, abs=0.012)  # 3.4 deviations
    others = timesteps[timesteps < 1000]
    if len(others):
        assert others.mean().item() == pytest.approx(500, abs=8)


# -- losses ------------------------------------------------------------------------------------------------------


def test_flow_loss_is_the_mean_squared_error_of_the_velocity(pipeline):
    task = flow_task(pipeline, use_spa=False, bbs_prob=1.0)
    batch = latent_batch()
    with torch.no_grad():
        video = mask_vae.normalise(pipeline.vae, batch.mean)
        text = embed_captions(pipeline.text_encoder, pipeline.tokenizer, batch.captions, 32)
        velocity = task.network(torch.cat([video, video], 1), torch.full((2,), 1000.0), text).sample
        expected = (velocity - (video - batch.mask_latents)).square().mean()
        result = task.step(batch)
    torch.testing.assert_close(result.loss, expected)
    torch.testing.assert_close(result.numbers["loss_at_start"], expected)
    assert result.numbers["loss_elsewhere"].isnan()


def test_start_point_augmentation_moves_the_loss_and_its_switch_stills_it(pipeline):
    for augmented in (True, False):
        task = flow_task(pipeline, use_spa=augmented, bbs_prob=1.0)
        with torch.no_grad():
            losses = {task.step(latent_batch(seeds=[seed, 9])).loss.item() for seed in range(3)}
        assert len(losses) == (3 if augmented else 1)


def test_frames_and_their_latents_give_the_same_loss(pipeline, small_toy, tmp_path):
    clips = fixed_clips(small_toy)
    cached = cache(tmp_path / "cache", clips, pipeline.vae, {"vae": "x"})
    batch = collate_latents([cached[0, 0], cached[0, 1]])
    table = CaptionTable(pipeline, batch.captions)
    task = FlowTask(tiny_dit(), pipeline.vae, table, FlowOptions(bbs_prob=0.5, use_spa=True))
    frames = collate([clips[0, 0], clips[0, 1]])
    with torch.no_grad():
        losses = [task.step(form).loss for form in (batch, frames)]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)


def test_a_latent_cache_belongs_to_one_vae_and_is_not_computed_twice(pipeline, small_toy, tmp_path, monkeypatch):
    clips = fixed_clips(small_toy)
    first = cache(tmp_path / "cache", clips, pipeline.vae, {"vae": "x"})[0, 0]
    monkeypatch.setattr(mask_vae, "encode_posterior", None)
    again = cache(tmp_path / "cache", clips, pipeline.vae, {"vae": "x"})[0, 0]
    assert torch.equal(first.mean, again.mean)
    with pytest.raises(UserError, match="another VAE"):
        cache(tmp_path / "cache", clips, pipeline.vae, {"vae": "y"})
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "file").write_text("")
    with pytest.raises(UserError, match="must be empty or a latent cache"):
        cache(tmp_path / "foreign", clips, pipeline.vae, {"vae": "x"})


def test_latents_of_any_memory_layout_are_cached(pipeline, small_toy, tmp_path, monkeypatch):
    """Whether a channels-last VAE answers channels last depends on the number of threads."""
    clips = fixed_clips(small_toy)
    plain = cache(tmp_path / "plain", clips, pipeline.vae, {"vae": "x"})[0, 0]
    encode = mask_vae.encode_posterior
    monkeypatch.setattr(
        mask_vae,
        "encode_posterior",
        lambda *inputs: tuple(t.contiguous(memory_format=torch.channels_last_3d) for t in encode(*inputs)),
    )
    turned = cache(tmp_path / "turned", clips, pipeline.vae, {"vae": "x"})[0, 0]
    for name in ("mean", "log_variance", "mask_latents"):
        assert torch.equal(getattr(plain, name), getattr(turned, name))


def test_dice_is_zero_for_a_sure_hit_and_near_one_for_a_sure_miss():
    masks = torch.zeros(1, 1, 1, 8, 8)
    masks[..., :4] = 1
    assert dice_loss(100 * (2 * masks - 1), masks) < 1e-6
    assert dice_loss(-100 * (2 * masks - 1), masks) > 0.98
    assert dice_loss(-100 * torch.ones_like(masks), torch.zeros_like(masks)) < 1e-6


def test_mask_vae_task_trains_the_decoder_side_alone(pipeline):
    vae = mask_vae.with_mask_head(pipeline.vae)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    masks = (torch.rand(1, 1, 5, 32, 32, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    batch = ClipBatch(masks.repeat(1, 3, 1, 1, 1), masks, ["x"], [("v", "0")], [0], [5])
    task = MaskVAETask(vae, MaskVAEOptions(crop=16, latent_noise=0.0))
    optimizer = torch.optim.SGD([p for p in vae.parameters() if p.requires_grad], lr=0.1)
    task.step(batch).loss.backward()
    optimizer.step()
    changed = {name.split(".")[0] for name, value in vae.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"decoder", "post_quant_conv"}


# -- the loop ----------------------------------------------------------------------------------------------------


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(pipeline, tmp_path):
    whole = run_trainer(pipeline, tmp_path / "whole")
    run_trainer(pipeline, tmp_path / "half", max_steps=2)
    resumed = run_trainer(pipeline, tmp_path / "half", resume_from=tmp_path / "half" / "step_0000002")
    for ours, theirs in (
        (resumed.task.network.state_dict(), whole.task.network.state_dict()),
        (resumed.ema.tensors, whole.ema.tensors),
    ):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    lines = [json.loads(line) for line in (tmp_path / "half" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert lines[-1]["loss"] == json.loads((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[-1])["loss"]


def test_checkpoints_load_as_weights_and_the_oldest_leave(pipeline, tmp_path, toy_folder):
    trainer = run_trainer(pipeline, tmp_path / "run", max_steps=6)
    assert sorted(path.name for path in (tmp_path / "run").glob("step_*")) == ["step_0000004", "step_0000006"]
    assert (tmp_path / "run" / "latest").read_text().strip() == "step_0000006"
    saved = WanTransformer3DModel.from_pretrained(tmp_path / "run" / "step_0000006" / "transformer_ema")
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), trainer.ema.tensors.values(), strict=True))
    raw = WanTransformer3DModel.from_pretrained(tmp_path / "run" / "step_0000006" / "transformer")
    assert all(torch.equal(a, b) for a, b in zip(raw.parameters(), trainer.task.network.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(raw.parameters(), saved.parameters(), strict=True))


def test_a_failed_save_leaves_the_earlier_checkpoint_in_charge(pipeline, tmp_path, monkeypatch):
    trainer = run_trainer(pipeline, tmp_path / "run", max_steps=2)
    trainer.step = 3
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        trainer.save()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["latest", "metrics.jsonl", "step_0000002"]
    assert (tmp_path / "run" / "latest").read_text().strip() == "step_0000002"


def test_a_checkpoint_of_another_network_or_seed_is_refused(pipeline, tmp_path):
    run_trainer(pipeline, tmp_path / "run", max_steps=2)
    checkpoint = tmp_path / "run" / "step_0000002"
    with pytest.raises(UserError, match="--seed 1"):
        make_trainer(flow_task(pipeline), tmp_path, seed=2).load(checkpoint)
    with pytest.raises(UserError, match="another"):
        make_trainer(flow_task(pipeline, tiny_dit(16)), tmp_path).load(checkpoint)
    shutil.rmtree(checkpoint / "transformer_ema")
    with pytest.raises(UserError, match="missing"):
        make_trainer(flow_task(pipeline), tmp_path).load(checkpoint)


class Poisoned(Endless):
    """Some steps' batches hold a NaN."""

    def __init__(self, start, bad_steps):
        super().__init__(start)
        self.bad_steps = bad_steps

    def __iter__(self):
        for step in itertools.count(self.start):
            batch = latent_batch()
            if step in self.bad_steps:
                batch.mean[0, 0, 0, 0, 0] = math.nan
            yield batch


def test_a_step_without_a_finite_gradient_changes_nothing_and_names_its_samples(pipeline, tmp_path, caplog):
    trainer = make_trainer(flow_task(pipeline), tmp_path, max_steps=3)
    steps = trainer.run(DataLoader(Poisoned(0, {1}), batch_size=None))
    next(steps)
    before = [parameter.clone() for parameter in trainer.task.network.parameters()]
    next(steps)
    assert all(map(torch.equal, before, trainer.task.network.parameters()))
    assert "step 2: the loss of [('v', '0'), ('v', '1')] is nan" in caplog.text
    next(steps)
    assert not all(map(torch.equal, before, trainer.task.network.parameters()))
    assert all(parameter.isfinite().all() for parameter in trainer.task.network.parameters())


def test_too_many_bad_steps_in_a_row_end_the_run_with_a_checkpoint(pipeline, tmp_path):
    trainer = make_trainer(flow_task(pipeline), tmp_path, max_steps=9, save_at=(99,))
    with pytest.raises(UserError, match=r"step 5: .* 3 times in a row .*--max_bad_steps"):
        list(trainer.run(DataLoader(Poisoned(0, {0, 2, 3, 4}), batch_size=None)))
    assert (tmp_path / "step_0000004" / "transformer").is_dir()


def test_accumulated_batches_make_the_step_of_one_large_batch(pipeline, tmp_path):
    """Up to rounding: the mean of two means is the mean of all."""
    halves = [latent_batch(1, [5]), latent_batch(1, [6])]
    whole = LatentBatch(
        *(torch.cat([getattr(half, name) for half in halves]) for name in ("mean", "log_variance", "mask_latents")),
        [CAPTIONS[0]] * 2, [("v", "0")] * 2, [5, 6], [5, 5],
    )  # fmt: skip
    trained = []
    for accumulate, batches in ((2, halves), (1, [whole])):
        torch.manual_seed(0)
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
        task = flow_task(pipeline, tiny_dit())
        trainer = Trainer(task, tiny_options(max_steps=1), tmp_path, accelerator)
        list(trainer.run(batches))
        trained.append(list(task.network.parameters()))
    for ours, theirs in zip(*trained, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-6)


def test_with_the_settings_of_the_original_the_steps_are_those_of_plain_adamw(pipeline, tmp_path):
    """Its recipe: all parameters decay, betas 0.9 and 0.999, the gradient clipped at 1; the draws are equal."""
    batches = [latent_batch(1, [seed]) for seed in range(5)]
    settings = {"lr": 1e-3, "weight_decay": 5e-4, "clip_max_norm": 1.0, "max_steps": 5}
    ours = make_trainer(flow_task(pipeline, tiny_dit()), tmp_path, decay_all=True, adam_betas=(0.9, 0.999), **settings)
    list(ours.run(batches))
    theirs = flow_task(pipeline, tiny_dit())
    optimizer = torch.optim.AdamW(
        theirs.network.parameters(), lr=1e-3, betas=(0.9, 0.999), weight_decay=5e-4, fused=True
    )
    for batch in batches:
        optimizer.zero_grad()
        theirs.step(batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.network.parameters(), 1.0)
        optimizer.step()
    for one, other in zip(ours.task.network.parameters(), theirs.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    (tmp_path / "other").mkdir()
    other = make_trainer(flow_task(pipeline, tiny_dit()), tmp_path / "other", decay_all=True, **settings)
    list(other.run(batches))  # with another beta: the comparison above sees it
    pairs = zip(other.task.network.parameters(), theirs.network.parameters(), strict=True)
    assert not all(torch.allclose(one, two, rtol=1e-6, atol=1e-6) for one, two in pairs)


def test_learning_rate_warms_up_then_follows_its_schedule():
    options = tiny_options(lr=1.0, warmup_steps=10, max_steps=110, lr_schedule="cosine")
    assert [learning_rate(options, step) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert learning_rate(options, 60) == pytest.approx(0.5)
    assert learning_rate(options, 110) == pytest.approx(0.0)
    assert learning_rate(tiny_options(lr=1.0), 99) == 1.0
    assert learning_rate(tiny_options(lr=1.0, lr_schedule="multistep"), 25) == pytest.approx(0.81)


def test_norms_biases_and_modulation_do_not_decay(pipeline, tmp_path):
    trainer = make_trainer(flow_task(pipeline), tmp_path)
    decayed, exempt = trainer.optimizer.param_groups
    names = {id(parameter): name for name, parameter in trainer.task.network.named_parameters()}
    exempt_names = {names[id(parameter)] for parameter in exempt["params"]}
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.01, 0.0)
    assert {
        "scale_shift_table",
        "blocks.0.scale_shift_table",
        "proj_out.bias",
        "blocks.0.attn1.norm_q.weight",
    } <= exempt_names
    assert "blocks.0.attn1.to_q.weight" not in exempt_names
    assert len(decayed["params"]) + len(exempt["params"]) == len(names)


def test_bf16_autocast_keeps_float32_weights(pipeline, tmp_path):
    trainer = run_trainer(pipeline, tmp_path / "run", amp=True, max_steps=2)
    assert {parameter.dtype for parameter in trainer.task.network.parameters()} == {torch.float32}


# -- main.py -----------------------------------------------------------------------------------------------------


@pytest.fixture
def arguments(small_toy, toy_folder, tmp_path):
    return [
        "--wan_path", str(toy_folder), "--mevis_path", str(small_toy), "--output_dir", str(tmp_path / "run"),
        "--device", "cpu", "--num_frames", "9", "--num_workers", "0", "--max_steps", "1", "--print_freq", "1",
    ]  # fmt: skip


def test_a_trained_run_segments_through_the_same_pipeline(arguments, toy_folder, tmp_path):
    main.main([*arguments, "--eval_steps", "1"])
    checkpoint = tmp_path / "run" / "step_0000001"
    pipeline = load_flowrvs(str(toy_folder), dit_ckpt=str(checkpoint)).pipeline
    assert has_injection(pipeline.transformer)
    assert isinstance(pipeline, FlowRVS)
    validation = json.loads((tmp_path / "run" / "validation.jsonl").read_text())
    best = json.loads((tmp_path / "run" / "best" / "metrics.json").read_text())
    assert validation["J&F"] == best["J&F"]
    assert load_flowrvs(str(toy_folder), dit_ckpt=str(tmp_path / "run" / "best")).pipeline.transformer is not None


def test_a_tuned_decoder_loads_with_one_channel(arguments, toy_folder, tmp_path):
    main.main([*arguments, "--task", "mask_vae", "--crop", "16"])
    pipeline = load_flowrvs(str(toy_folder), vae_ckpt=str(tmp_path / "run" / "step_0000001")).pipeline
    assert pipeline.vae.config.out_channels == 1


def test_injection_can_be_left_out(arguments, toy_folder, tmp_path):
    main.main([*arguments, "--no-use_dvi", "--checkpoint_every", "1"])
    pipeline = load_flowrvs(str(toy_folder), dit_ckpt=str(tmp_path / "run" / "step_0000001")).pipeline
    assert not has_injection(pipeline.transformer)


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        (["--num_frames", "8"], "4n.1"),
        (["--latent_cache", "latents"], "--sampling dense"),
        (["--mixture", "mevis=1", "mevis=0.001"], "holds no clip"),
        (["--dataset_file", "ytvos", "--ytvos_path", "nowhere"], "--ytvos_path nowhere"),
        (["--resume", "nowhere"], "--resume nowhere"),
        (["--mevis_path", "nowhere"], "--mevis_path nowhere"),
    ],
)
def test_what_cannot_work_is_one_line_before_anything_is_written(arguments, tmp_path, extra, match):
    with pytest.raises(SystemExit) as caught:
        main.main([*arguments, *extra])
    assert caught.value.code.startswith("main.py: error: ")
    assert match.replace("4n.1", "4n+1") in caught.value.code
    assert not (tmp_path / "run").exists()


def test_a_second_run_does_not_write_over_the_first(arguments):
    main.main(arguments)
    with pytest.raises(SystemExit, match="--resume auto"):
        main.main(arguments)


def test_the_checkpoint_just_written_stays_whatever_later_steps_there_are(tmp_path):
    for step in (1000, 2000, 3000, 1500):
        staging = tmp_path / "staging"
        staging.mkdir()
        commit_checkpoint(tmp_path, step, staging, keep_last=2)
    assert (tmp_path / "latest").read_text().strip() == "step_0001500"
    assert (tmp_path / "step_0001500").is_dir()


@pytest.mark.parametrize(("split", "flags"), [("train", []), ("valid_u", ["--eval_steps", "1"])])
def test_a_split_without_masks_is_refused_before_anything_is_written(arguments, tmp_path, small_toy, split, flags):
    root = tmp_path / "data"
    shutil.copytree(small_toy, root)
    (root / split / "mask_dict.json").unlink()
    with pytest.raises(SystemExit) as caught:
        main.main([*arguments, "--mevis_path", str(root), *flags])
    assert "mask_dict.json" in caught.value.code
    assert not (tmp_path / "run").exists()
