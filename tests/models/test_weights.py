"""Weight files: every form of the original and ours, strictly and safely."""

import argparse
import json
import os
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.training_utils import EMAModel
from safetensors.torch import save_file

from models.dit import has_injection
from models.text_cache import text_identity
from models.weights import load_flowrvs, load_text, resolve_wan_folder
from util.errors import TooLittleMemoryError, UserError
from util.hashes import sha256_of


@pytest.fixture(scope="module")
def dvi_weights(toy_folder):
    """A DiT's state dict with injection, all random."""
    torch.manual_seed(5)
    config = WanTransformer3DModel.load_config(toy_folder / "transformer")
    return WanTransformer3DModel.from_config({**config, "in_channels": 32}).state_dict()


@pytest.fixture(scope="module")
def mask_vae_weights(toy_folder):
    torch.manual_seed(6)
    config = AutoencoderKLWan.load_config(toy_folder / "vae")
    return AutoencoderKLWan.from_config({**config, "out_channels": 1}).state_dict()


def load(folder, **options):
    return load_flowrvs(str(folder), **{name: str(value) for name, value in options.items()}).pipeline


def holds(module, tensors):
    state = module.state_dict()
    return state.keys() == tensors.keys() and all(torch.equal(state[name], tensors[name]) for name in tensors)


def trainer_file(path, raw, averaged):
    """As the original's trainer writes it: the averaged weights are a list in parameter order."""
    state = EMAModel(list(averaged.values()), decay=0.9999).state_dict()
    options = argparse.Namespace(lr=5e-5, dataset_file="mevis", amp=True)
    torch.save(
        {"model": raw, "ema_model": state, "optimizer": {"state": {}}, "lr_scheduler": {}, "epoch": 3, "args": options},
        path,
    )


# -- forms that load ---------------------------------------------------------------------------------------------


def test_base_folder_loads_its_own_weights(toy_folder):
    pipeline = load(toy_folder)
    assert holds(pipeline.transformer, WanTransformer3DModel.from_pretrained(toy_folder / "transformer").state_dict())
    assert holds(pipeline.vae, AutoencoderKLWan.from_pretrained(toy_folder / "vae").state_dict())
    assert not has_injection(pipeline.transformer)


def test_released_form_loads_and_injection_is_read_off_it(toy_folder, tmp_path, dvi_weights):
    torch.save({"model": dvi_weights}, tmp_path / "dit.pth")
    pipeline = load(toy_folder, dit_ckpt=tmp_path / "dit.pth")
    assert holds(pipeline.transformer, dvi_weights)
    assert has_injection(pipeline.transformer)


@pytest.mark.parametrize(("weights", "factor"), [("auto", 2), ("ema", 2), ("model", 1)])
def test_trainer_form_prefers_the_averaged_weights(toy_folder, tmp_path, dvi_weights, weights, factor):
    trainer_file(tmp_path / "t.pth", dvi_weights, {name: 2 * tensor for name, tensor in dvi_weights.items()})
    pipeline = load(toy_folder, dit_ckpt=tmp_path / "t.pth", weights=weights)
    assert holds(pipeline.transformer, {name: factor * tensor for name, tensor in dvi_weights.items()})


def test_averaged_list_is_named_by_the_raw_weights_beside_it_not_by_the_library(toy_folder, tmp_path, dvi_weights):
    """Older versions of the library registered query and key norms before the projections."""
    other_order = dict(sorted(dvi_weights.items()))
    assert list(other_order) != list(dvi_weights)
    trainer_file(tmp_path / "t.pth", other_order, {name: 2 * tensor for name, tensor in other_order.items()})
    pipeline = load(toy_folder, dit_ckpt=tmp_path / "t.pth")
    assert holds(pipeline.transformer, {name: 2 * tensor for name, tensor in dvi_weights.items()})


@pytest.mark.parametrize("wrapped", [False, True])
def test_tuned_vae_loads_bare_or_under_model_without_profiler_leftovers(
    toy_folder, tmp_path, mask_vae_weights, wrapped
):
    named = {f"vae.{name}": tensor for name, tensor in mask_vae_weights.items()}
    named["vae.encoder.conv_in.total_ops"] = named["total_params"] = torch.zeros(1)
    torch.save({"model": named} if wrapped else named, tmp_path / "vae.pth")
    pipeline = load(toy_folder, vae_ckpt=tmp_path / "vae.pth")
    assert holds(pipeline.vae, mask_vae_weights)
    assert pipeline.vae.config.out_channels == 1


def test_safetensors_load_for_both_flags(toy_folder, tmp_path, dvi_weights, mask_vae_weights):
    save_file(dvi_weights, tmp_path / "dit.safetensors")
    save_file(mask_vae_weights, tmp_path / "vae.safetensors")
    pipeline = load(toy_folder, dit_ckpt=tmp_path / "dit.safetensors", vae_ckpt=tmp_path / "vae.safetensors")
    assert holds(pipeline.transformer, dvi_weights)
    assert holds(pipeline.vae, mask_vae_weights)


def test_saved_pipeline_serves_both_flags_and_as_wan_path(toy_folder, tmp_path, dvi_weights, mask_vae_weights, caplog):
    save_file(dvi_weights, tmp_path / "dit.safetensors")
    save_file(mask_vae_weights, tmp_path / "vae.safetensors")
    saved = tmp_path / "saved"
    load(toy_folder, dit_ckpt=tmp_path / "dit.safetensors", vae_ckpt=tmp_path / "vae.safetensors").save_pretrained(
        saved
    )
    caplog.clear()
    for pipeline in (load(toy_folder, dit_ckpt=saved, vae_ckpt=saved), load(saved)):
        assert holds(pipeline.transformer, dvi_weights)
        assert holds(pipeline.vae, mask_vae_weights)
    assert "never trained" not in caplog.text
    load(toy_folder)
    assert "never trained" in caplog.text


@pytest.mark.parametrize(("weights", "factor"), [("auto", 2), ("model", 1)])
def test_checkpoint_folder_prefers_its_averaged_dit(toy_folder, tmp_path, dvi_weights, weights, factor):
    for name, scale in (("transformer", 1), ("transformer_ema", 2)):
        (tmp_path / name).mkdir()
        scaled = {key: scale * tensor for key, tensor in dvi_weights.items()}
        save_file(scaled, tmp_path / name / "diffusion_pytorch_model.safetensors")
    pipeline = load(toy_folder, dit_ckpt=tmp_path, weights=weights)
    assert holds(pipeline.transformer, {name: factor * tensor for name, tensor in dvi_weights.items()})


def test_sharded_folder_loads_by_its_index_whatever_the_shards_are_called(toy_folder, tmp_path, dvi_weights):
    folder = tmp_path / "wan"
    shutil.copytree(toy_folder, folder)
    part = folder / "transformer"
    original = WanTransformer3DModel.from_pretrained(part).state_dict()
    (part / "diffusion_pytorch_model.safetensors").unlink()
    names = list(original)
    shards = {"first.safetensors": names[::2], "second.safetensors": names[1::2]}
    for shard, keys in shards.items():
        save_file({key: original[key] for key in keys}, part / shard)
    index = {"weight_map": {key: shard for shard, keys in shards.items() for key in keys}}
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert holds(load(folder).transformer, original)
    (part / "second.safetensors").unlink()
    with pytest.raises(UserError, match=r"second\.safetensors is missing"):
        load(folder)


def test_base_weights_are_not_read_when_a_checkpoint_replaces_them(toy_folder, tmp_path, dvi_weights):
    folder = tmp_path / "wan"
    shutil.copytree(toy_folder, folder)
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"not read")
    torch.save({"model": dvi_weights}, tmp_path / "dit.pth")
    assert holds(load(folder, dit_ckpt=tmp_path / "dit.pth").transformer, dvi_weights)
    with pytest.raises(UserError, match="damaged"):
        load(folder)


def test_a_file_of_the_original_s_form_gives_the_masks_of_the_formulas_written_out(
    toy_folder, tmp_path, dvi_weights, mask_vae_weights
):
    torch.save({"model": dvi_weights}, tmp_path / "dit.pth")
    torch.save({f"vae.{name}": tensor for name, tensor in mask_vae_weights.items()}, tmp_path / "vae.pth")
    pipeline = load(toy_folder, dit_ckpt=tmp_path / "dit.pth", vae_ckpt=tmp_path / "vae.pth")
    pipeline.set_progress_bar_config(disable=True)
    frames = np.random.default_rng(0).integers(0, 256, (9, 64, 112, 3), dtype=np.uint8)

    dit_config = WanTransformer3DModel.load_config(toy_folder / "transformer")
    dit = WanTransformer3DModel.from_config({**dit_config, "in_channels": 32}).eval()
    dit.load_state_dict(dvi_weights)
    vae = AutoencoderKLWan.from_config({**AutoencoderKLWan.load_config(toy_folder / "vae"), "out_channels": 1}).eval()
    vae.load_state_dict(mask_vae_weights)
    with torch.no_grad():
        z = vae.encode(torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 255 * 2 - 1).latent_dist.mean
        z = (z - torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)) / torch.tensor(
            vae.config.latents_std
        ).view(1, -1, 1, 1, 1)
        tokens = pipeline.tokenizer(["the dog"], padding="max_length", max_length=32, return_tensors="pt")
        text = pipeline.text_encoder(**tokens).last_hidden_state * tokens.attention_mask[..., None]
        velocity = dit(torch.cat([z, z], 1), torch.tensor([1000]), text).sample
        expected = vae.decode(z - velocity).sample[:, 0] > 0
    masks = pipeline(frames, "the dog").masks
    assert 0.01 < masks.mean() < 0.99
    assert (masks == expected.numpy()).mean() >= 0.9999


def test_hashes_are_those_of_the_files_read(toy_folder, tmp_path, dvi_weights):
    torch.save({"model": dvi_weights}, tmp_path / "dit.pth")
    loaded = load_flowrvs(str(toy_folder), dit_ckpt=str(tmp_path / "dit.pth"))
    assert loaded.files["transformer"] == (tmp_path / "dit.pth",)
    assert loaded.files["vae"] == (toy_folder / "vae" / "diffusion_pytorch_model.safetensors",)
    assert sha256_of(loaded.files["transformer"]) != sha256_of(loaded.files["vae"])


# -- forms that do not -------------------------------------------------------------------------------------------


def test_missing_extra_and_mis_shaped_keys_are_one_error_that_lists_them(toy_folder, tmp_path, dvi_weights):
    broken = dict(dvi_weights)
    del broken["proj_out.bias"], broken["blocks.1.norm2.bias"]
    broken["surprise"] = torch.zeros(1)
    broken["proj_out.weight"] = torch.zeros(2, 3)
    torch.save({"model": broken}, tmp_path / "dit.pth")
    with pytest.raises(UserError) as error:
        load(toy_folder, dit_ckpt=tmp_path / "dit.pth")
    for part in ("--dit_ckpt", "dit.pth", "2 missing", "proj_out.bias", "blocks.1.norm2.bias", "surprise", "[2, 3]"):
        assert part in str(error.value)


def test_a_misspelt_vae_is_refused(toy_folder, tmp_path, mask_vae_weights):
    torch.save({f"vea.{name}": tensor for name, tensor in mask_vae_weights.items()}, tmp_path / "vae.pth")
    with pytest.raises(UserError, match=r"--vae_ckpt .*does not hold the weights of a Wan VAE"):
        load(toy_folder, vae_ckpt=tmp_path / "vae.pth")


@pytest.mark.parametrize(
    "content", [{}, {"model": {}}, [1, 2], {"model": 3}, {"model": {"patch_embedding.weight": "text"}}]
)
@pytest.mark.parametrize("flag", ["dit_ckpt", "vae_ckpt"])
def test_files_without_weights_are_refused(toy_folder, tmp_path, content, flag):
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(UserError, match=rf"--{flag} .*c\.pth"):
        load(toy_folder, **{flag: tmp_path / "c.pth"})


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".txt"])
@pytest.mark.parametrize("content", [b"", b"garbage" * 50])
def test_damaged_files_are_refused(toy_folder, tmp_path, suffix, content):
    path = tmp_path / f"c{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match="c" + suffix):
        load(toy_folder, dit_ckpt=path)


def test_a_truncated_checkpoint_is_refused(toy_folder, tmp_path, dvi_weights):
    torch.save({"model": dvi_weights}, tmp_path / "dit.pth")
    whole = (tmp_path / "dit.pth").read_bytes()
    (tmp_path / "dit.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"dit\.pth"):
        load(toy_folder, dit_ckpt=tmp_path / "dit.pth")


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("flag", ["dit_ckpt", "vae_ckpt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_pickle_is_refused_and_never_runs(toy_folder, tmp_path, dvi_weights, flag, zipped):
    marker = tmp_path / "executed"
    torch.save(
        {"model": dvi_weights, "args": Hostile(marker)}, tmp_path / "h.pth", _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(UserError, match="nothing in it was executed"):
        load(toy_folder, **{flag: tmp_path / "h.pth"})
    assert not marker.exists()


def test_averaged_weights_that_cannot_be_named_are_refused(toy_folder, tmp_path, dvi_weights):
    averaged = dict(dvi_weights)
    averaged.pop("proj_out.bias")
    trainer_file(tmp_path / "t.pth", dvi_weights, averaged)
    with pytest.raises(UserError, match="--weights model"):
        load(toy_folder, dit_ckpt=tmp_path / "t.pth")
    reordered = dict(sorted(dvi_weights.items()))
    trainer_file(tmp_path / "t.pth", dvi_weights, reordered)
    with pytest.raises(UserError, match="another order"):
        load(toy_folder, dit_ckpt=tmp_path / "t.pth")


def test_asking_for_averaged_weights_where_there_are_none_is_an_error(toy_folder, tmp_path, dvi_weights):
    torch.save({"model": dvi_weights}, tmp_path / "dit.pth")
    save_file(dvi_weights, tmp_path / "dit.safetensors")
    for name in ("dit.pth", "dit.safetensors"):
        with pytest.raises(UserError, match="--weights"):
            load(toy_folder, dit_ckpt=tmp_path / name, weights="ema")


@pytest.mark.parametrize("part", ["vae", "tokenizer", "model_index.json", "transformer", "text_encoder"])
def test_a_folder_without_one_of_its_parts_is_refused_with_the_download_command(toy_folder, tmp_path, part):
    folder = tmp_path / "wan"
    shutil.copytree(toy_folder, folder)
    (shutil.rmtree if (folder / part).is_dir() else os.remove)(folder / part)
    with pytest.raises(UserError, match=rf"{part}.*hf download Wan-AI/Wan2.1-T2V-1.3B-Diffusers"):
        load(folder)


def test_a_text_encoder_without_all_its_weights_is_refused(toy_folder, tmp_path):
    folder = tmp_path / "wan"
    shutil.copytree(toy_folder, folder)
    save_file({"shared.weight": torch.zeros(2, 2)}, folder / "text_encoder" / "model.safetensors")
    with pytest.raises(UserError, match="text_encoder"):
        load(folder)


@pytest.mark.parametrize("hub_id", ["Wan-AI/Wan2.1-T2V-14B-Diffusers", "no/such/folder"])
def test_a_hub_id_offline_names_the_download_command(monkeypatch, hub_id):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="hf download Wan-AI/"):
        resolve_wan_folder(hub_id)


def test_a_file_as_wan_path_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="must be a folder"):
        resolve_wan_folder(str(tmp_path / "file"))


def test_a_checkpoint_folder_brings_its_own_config(toy_folder, tmp_path):
    """Latent statistics and head counts leave no trace in the shapes of the weights."""
    pipeline = load(toy_folder)
    pipeline.vae.register_to_config(latents_mean=[0.5] * 16)
    pipeline.transformer.register_to_config(num_attention_heads=3, attention_head_dim=64)
    pipeline.save_pretrained(tmp_path / "saved")
    taken = load(toy_folder, dit_ckpt=tmp_path / "saved", vae_ckpt=tmp_path / "saved")
    assert taken.vae.config.latents_mean == [0.5] * 16
    assert taken.transformer.config.num_attention_heads == 3


@pytest.mark.parametrize(
    "content",
    [
        {3: torch.zeros(1)},
        {"decoder.conv_out.weight": torch.zeros(()), "patch_embedding.weight": torch.zeros(())},
        {"patch_embedding.weight": torch.zeros(2, dtype=torch.int64)},
        {"patch_embedding.weight": torch.zeros(2).to_sparse()},
        {"patch_embedding.weight": torch.zeros(2, device="meta")},
        {"ema_model": {"shadow_params": [torch.zeros(1)]}, "model": [1]},
        {"ema_model": {"shadow_params": ["text"]}, "model": {"a": torch.zeros(1)}},
        {"ema_model": [1], "model": {"a": torch.zeros(1)}},
    ],
)
def test_odd_contents_are_one_line(toy_folder, tmp_path, content):
    torch.save(content, tmp_path / "c.pth")
    for flag in ("dit_ckpt", "vae_ckpt"):
        with pytest.raises(UserError, match=r"c\.pth"):
            load(toy_folder, **{flag: tmp_path / "c.pth"})


def test_flipped_bytes_are_an_error_or_harmless(toy_folder, tmp_path, dvi_weights):
    torch.save({"model": {"patch_embedding.weight": torch.zeros(4, 16, 1, 2, 2)}}, tmp_path / "c.pth")
    whole = (tmp_path / "c.pth").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            damaged[place] ^= int(rng.integers(1, 256))
        (tmp_path / "c.pth").write_bytes(damaged)
        with pytest.raises(UserError):
            load(toy_folder, dit_ckpt=tmp_path / "c.pth")


@pytest.mark.parametrize("weight_map", [["a"], {"a": 3}, None])
def test_a_broken_index_is_one_line(toy_folder, tmp_path, weight_map):
    folder = tmp_path / "wan"
    shutil.copytree(toy_folder, folder)
    index = folder / "vae" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match="weight_map"):
        load(folder)


@pytest.mark.parametrize(
    ("file", "change", "match"),
    [
        ("vae/config.json", {"latents_mean": [0.0]}, "latents_mean"),
        ("vae/config.json", {"latents_std": [0.0] * 16}, "latents_std"),
        ("vae/config.json", {"dim_mult": "x"}, r"config\.json"),
        ("transformer/config.json", {"num_layers": "x"}, r"config\.json"),
        ("text_encoder/config.json", {"num_layers": "x"}, "text_encoder"),
        ("model_index.json", {"box_height": "64"}, "box_height"),
        ("model_index.json", {"max_sequence_length": None}, "max_sequence_length"),
    ],
)
def test_a_config_that_describes_no_model_is_one_line(toy_folder, tmp_path, file, change, match):
    folder = tmp_path / "wan"
    shutil.copytree(toy_folder, folder)
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=match):
        load(folder)


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1", None])
def test_a_damaged_text_encoder_is_one_line(toy_folder, tmp_path, content):
    folder = tmp_path / "wan"
    shutil.copytree(toy_folder, folder)
    file = folder / "text_encoder" / "model.safetensors"
    file.write_bytes(content or file.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"text_encoder.*hf download"):
        load(folder)


def test_a_tokenizer_without_its_file_is_refused(toy_folder, tmp_path):
    folder = tmp_path / "wan"
    shutil.copytree(toy_folder, folder)
    (folder / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer/tokenizer\.json"):
        load(folder)


def test_weights_that_are_no_numbers_do_not_give_masks(toy_folder, tmp_path, dvi_weights):
    torch.save({"model": {name: tensor * torch.nan for name, tensor in dvi_weights.items()}}, tmp_path / "nan.pth")
    pipeline = load(toy_folder, dit_ckpt=tmp_path / "nan.pth")
    pipeline.set_progress_bar_config(disable=True)
    with pytest.raises(UserError, match="not finite"):
        pipeline(np.zeros((1, 64, 64, 3), np.uint8), "a dog")


def test_averaged_weights_without_a_checkpoint_are_refused(toy_folder):
    with pytest.raises(UserError, match="--weights ema"):
        load(toy_folder, weights="ema")


def test_the_refusal_of_a_hostile_pickle_names_what_it_holds_in_one_plain_line(toy_folder, tmp_path):
    torch.save({"args": Hostile(tmp_path / "executed")}, tmp_path / "h.pth")
    with pytest.raises(UserError) as error:
        load(toy_folder, dit_ckpt=tmp_path / "h.pth")
    assert "posix.system" in str(error.value)
    assert str(error.value).isprintable()


# -- the text encoder --------------------------------------------------------------------------------------------


@pytest.fixture
def wan(toy_folder, tmp_path):
    return shutil.copytree(toy_folder, tmp_path / "wan")


@pytest.mark.parametrize("name", ["model.bf16.safetensors", "pytorch_model.bin", "pytorch_model.fp16.bin"])
def test_the_text_encoder_loads_whatever_its_variant_and_format(toy_folder, wan, name):
    expected = load(toy_folder).text_encoder.state_dict()
    (file,) = (wan / "text_encoder").glob("*.safetensors")
    file.unlink()
    renamed = wan / "text_encoder" / name
    tensors = {key: tensor.clone() for key, tensor in expected.items()}
    save_file(tensors, renamed, {"format": "pt"}) if name.endswith("safetensors") else torch.save(tensors, renamed)
    loaded = load_flowrvs(str(wan))
    assert holds(loaded.pipeline.text_encoder, expected)
    assert loaded.files["text_encoder"] == (renamed,)
    assert text_identity(wan).keys() >= {f"text_encoder/{name}"}


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("model.safetensors", b"<!doctype html>", r"text_encoder: model\.safetensors is a web page"),
        ("model.bf16.safetensors", b"version https://git-lfs.github.com/spec/v1\nsize 9\n", "Git LFS pointer"),
        ("pytorch_model.bin", b"", "is empty"),
        ("pytorch_model.bin", b"garbage" * 9, "damaged or incomplete"),
        ("notes.txt", b"", r"holds no model\.safetensors"),
    ],
)
def test_a_wrong_file_of_the_text_encoder_is_named(wan, name, content, match):
    (wan / "text_encoder" / "model.safetensors").unlink()
    (wan / "text_encoder" / name).write_bytes(content)
    with pytest.raises(UserError, match=match):
        load_text(wan, torch.float32)


def test_a_hostile_text_encoder_is_refused_and_never_runs(wan, tmp_path):
    (wan / "text_encoder" / "model.safetensors").unlink()
    torch.save({"w": Hostile(tmp_path / "executed")}, wan / "text_encoder" / "pytorch_model.bin")
    with pytest.raises(UserError, match="nothing in it was executed"):
        load_text(wan, torch.float32)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["load_text", "_build_strictly"])
def test_too_little_memory_is_not_called_damage(wan, monkeypatch, name):
    to = torch.Tensor.to

    def fail(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 11 bytes")

    if name == "load_text":
        monkeypatch.setattr("models.weights.UMT5EncoderModel.from_pretrained", fail)
    else:
        monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *a: fail() if torch.bfloat16 in a else to(tensor, *a))
    with pytest.raises(TooLittleMemoryError, match=r"memory of the machine is too small to load it.*--text_on"):
        if name == "load_text":
            load_text(wan, torch.float32)
        else:
            load_flowrvs(str(wan), dtype=torch.bfloat16)


def test_a_folder_of_pickles_serves_as_a_checkpoint(toy_folder, tmp_path, dvi_weights):
    torch.save(dvi_weights, tmp_path / "diffusion_pytorch_model.bin")
    assert holds(load(toy_folder, dit_ckpt=tmp_path).transformer, dvi_weights)
