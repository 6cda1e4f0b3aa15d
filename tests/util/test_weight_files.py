"""Files that hold no weights are named for what they are; weights load under every name that libraries give them."""

import errno
import json
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

import util.weight_files
from util.errors import TooLittleMemoryError, UserError
from util.memory import is_out_of_memory
from util.weight_files import find_saved, read_saved_folder, read_state_dict

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 5676070424\n"
WRONG = {
    b"<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title>": "is a web page, not weights",
    b"\xef\xbb\xbf\n  <HTML lang='en'>": "is a web page, not weights",
    b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>': "is a web page, not weights",
    POINTER: r"is a Git LFS pointer for a file of 5,676,070,424 bytes.*git lfs pull.*hf download",
    b"": "is empty, 0 bytes",
}
WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}


def holds(state):
    return state.tensors.keys() == WEIGHTS.keys() and all(
        torch.equal(state.tensors[name], WEIGHTS[name]) for name in WEIGHTS
    )


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".html", ""])
@pytest.mark.parametrize("content", WRONG)
def test_what_was_saved_instead_of_weights_is_named(tmp_path, suffix, content):
    file = tmp_path / f"dit{suffix}"
    file.write_bytes(content)
    with pytest.raises(UserError, match=WRONG[content]) as error:
        read_state_dict(file, f"--dit_ckpt {file}")
    assert str(error.value).startswith(f"--dit_ckpt {file}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"])
@pytest.mark.parametrize("content", WRONG)
def test_in_a_folder_too(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} {WRONG[content]}"):
        read_saved_folder(tmp_path, "--wan_path wan")


def test_weights_that_begin_like_a_tag_are_read(tmp_path):
    """A safetensors file begins with the length of its header, which may be the number of a <."""
    for length in range(ord("<"), ord("<") + 8 * 256, 256):
        header = json.dumps({"b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
        if length >= len(header):
            file = tmp_path / "w.safetensors"
            file.write_bytes(length.to_bytes(8, "little") + header.ljust(length) + bytes(4))
            assert file.read_bytes().startswith(b"<")
            assert read_state_dict(file, "w").tensors["b"].tolist() == [0]


# -- names of weights --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("form", ["bare", "model", "ema_model", "shadow_params", "safetensors"])
def test_the_prefixes_of_wrappers_are_removed(tmp_path, prefix, form):
    named = {prefix + name: tensor for name, tensor in WEIGHTS.items()}
    zeros = {name: torch.zeros_like(tensor) for name, tensor in named.items()}
    if form == "safetensors":
        save_file(named, tmp_path / "w.safetensors")
        assert holds(read_state_dict(tmp_path / "w.safetensors", "w"))
        return
    content = {
        "bare": named,
        "model": {"model": named},
        "ema_model": {"model": zeros, "ema_model": named},
        "shadow_params": {"model": zeros, "ema_model": {"shadow_params": list(named.values())}},
    }[form]
    torch.save(content, tmp_path / "w.pth")
    assert holds(read_state_dict(tmp_path / "w.pth", "w"))


def test_a_prefix_that_only_some_names_have_stays(tmp_path):
    save_file({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "w.safetensors")
    assert read_state_dict(tmp_path / "w.safetensors", "w").tensors.keys() == {"module.a", "b"}


# -- names of files ----------------------------------------------------------------------------------------------


def save(file):
    save_file(WEIGHTS, file) if file.suffix == ".safetensors" else torch.save(WEIGHTS, file)


@pytest.mark.parametrize("variant", ["", ".bf16", ".fp16", ".ema"])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_folder_loads_whatever_its_variant_and_format(tmp_path, variant, kind):
    file = tmp_path / f"diffusion_pytorch_model{variant}.{kind}"
    save(file)
    state = read_saved_folder(tmp_path, "w")
    assert holds(state)
    assert state.files == (file,)


@pytest.mark.parametrize(
    "index", ["{stem}.{kind}.index.json", "{stem}.{kind}.index.bf16.json", "{stem}.bf16.{kind}.index.json"]
)
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_split_files_load_by_their_index(tmp_path, index, kind):
    weight_map = {}
    for number, (name, tensor) in enumerate(WEIGHTS.items(), 1):
        file = tmp_path / f"diffusion_pytorch_model.bf16-0000{number}-of-00002.{kind}"
        save_file({name: tensor}, file) if kind == "safetensors" else torch.save({name: tensor}, file)
        weight_map[name] = file.name
    place = tmp_path / index.format(stem="diffusion_pytorch_model", kind=kind)
    place.write_text(json.dumps({"weight_map": weight_map}))
    state = read_saved_folder(tmp_path, "w")
    assert holds(state)
    assert len(state.files) == 2


def test_of_several_the_safest_and_most_exact_is_taken(tmp_path):
    order = [
        "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bf16.safetensors",
        "diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.bf16.bin",
    ]  # fmt: skip
    for name in order:
        save(tmp_path / name)
    for name in order:
        assert find_saved(tmp_path).path.name == name
        (tmp_path / name).unlink()
    assert find_saved(tmp_path) is None


# -- too little memory -------------------------------------------------------------------------------------------

OUT_OF_MEMORY = [
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    OSError("Cannot allocate memory (os error 12)"),
    RuntimeError("unable to mmap 5676070424 bytes from file </dit.pth>: Cannot allocate memory (12)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("MPS backend out of memory"),
    SafetensorError("Error while deserializing header: Cannot allocate memory (os error 12)"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_too_little_memory_is_told_from_damage(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("torch.load", fail)
    monkeypatch.setattr(util.weight_files, "load_file", fail)
    for suffix in (".pth", ".safetensors"):
        save(tmp_path / f"w{suffix}")
        with pytest.raises(TooLittleMemoryError, match=r"w: the memory of the machine is too small.*--dtype bf16"):
            read_state_dict(tmp_path / f"w{suffix}", "w")


def test_an_error_caused_by_too_little_memory_counts():
    error = RuntimeError("loading failed")
    assert not is_out_of_memory(error)
    error.__cause__ = MemoryError()
    assert is_out_of_memory(error)


UNDER_A_LIMIT = """
import resource, sys
from pathlib import Path
import torch
from models.weights import load_text
from util.errors import TooLittleMemoryError
from util.weight_files import read_state_dict
used = int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmSize"))) << 10
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), resource.RLIM_INFINITY))
for load in (
    lambda: read_state_dict(Path(sys.argv[1]) / "w.safetensors", "w"),
    lambda: load_text(Path(sys.argv[1]) / "wan", torch.float32),
):
    try:
        load()
    except TooLittleMemoryError as error:
        print(str(error).splitlines()[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="another way to limit memory")
@pytest.mark.slow
def test_under_a_limit_of_the_system_the_error_says_memory(tmp_path, toy_folder):
    (tmp_path / "wan" / "text_encoder").mkdir(parents=True)
    (tmp_path / "wan" / "tokenizer").symlink_to(toy_folder / "tokenizer")
    (tmp_path / "wan" / "text_encoder" / "config.json").symlink_to(toy_folder / "text_encoder" / "config.json")
    size = 4 << 30
    header = json.dumps({"b": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    for file in (tmp_path / "w.safetensors", tmp_path / "wan" / "text_encoder" / "model.safetensors"):
        file.write_bytes(len(header).to_bytes(8, "little") + header)
        with file.open("r+b") as stream:
            stream.truncate(8 + len(header) + size)  # takes no room on the disk
    done = subprocess.run(
        [sys.executable, "-c", UNDER_A_LIMIT, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2, done.stdout + done.stderr
    assert done.stdout.count("the memory of the machine is too small to load it") == 2
    assert "--text_on" in done.stdout
