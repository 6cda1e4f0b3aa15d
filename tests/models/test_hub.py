"""Weights by name: a path here wins, the hub's listing decides, and what was downloaded works without a network."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from fake_hub import running_hub

from models.hub import local_weights
from models.weights import load_flowrvs, resolve_wan_folder
from util.errors import UserError

ROOT = Path(__file__).parents[2]
AUTHORS = "xmz111/FlowRVS"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub at which huggingface_hub points, with an empty cache, and a working folder without weights."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with running_hub(tmp_path / "hub") as hub:
        point_at(hub.address, monkeypatch)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub_cache"))
        yield hub


def point_at(address, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


def pickled(tensors):
    stream = io.BytesIO()
    torch.save(tensors, stream)
    return stream.getvalue()


def dit(name):
    return local_weights(name, "transformer", "--dit_ckpt")


def vae(name):
    return local_weights(name, "vae", "--vae_ckpt")


# -- which file ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["mevis_dit.pth", "FlowRVS_dit_mevis.pth", "weights/a.safetensors"])
def test_the_one_file_that_fits_is_taken_whatever_its_name(hub, file):
    hub.add(AUTHORS, {file: b"dit", "tuned_vae.pth": b"vae", "README.md": b"", "umt5_text_encoder.pth": b"text"})
    assert dit(AUTHORS).read_bytes() == b"dit"
    assert dit(AUTHORS).name == file.rpartition("/")[2]
    assert vae(AUTHORS).read_bytes() == b"vae"
    assert sorted(hub.downloads()) == sorted([".gitattributes", file, "tuned_vae.pth"])


def test_a_folder_of_save_pretrained_is_taken_with_its_config(hub):
    hub.add("someone/pipeline", {
        "model_index.json": b"{}", "README.md": b"",
        "transformer/config.json": b"{}", "transformer/diffusion_pytorch_model.safetensors.index.json": b"{}",
        "transformer/diffusion_pytorch_model-00001-of-00002.safetensors": b"1",
        "transformer/diffusion_pytorch_model-00002-of-00002.safetensors": b"2",
        "vae/config.json": b"{}", "vae/diffusion_pytorch_model.safetensors": b"v",
        "text_encoder/config.json": b"{}", "text_encoder/model.safetensors": b"t",
    })  # fmt: skip
    folder = dit("someone/pipeline")
    assert folder.name == "transformer"
    assert len([path for path in folder.iterdir() if path.is_file()]) == 4
    assert (vae("someone/pipeline") / "config.json").is_file()
    assert not [name for name in hub.downloads() if name.startswith("text_encoder")]


def test_a_network_saved_at_the_top_is_taken_as_a_folder(hub):
    hub.add("someone/dit", {"config.json": b"{}", "diffusion_pytorch_model.bf16.safetensors": b"1", "x/y.txt": b""})
    assert {path.name for path in dit("someone/dit").iterdir()} >= {"config.json"}
    assert "x/y.txt" not in hub.downloads()


def test_a_file_or_folder_of_the_repository_can_be_named(hub):
    hub.add(AUTHORS, {"a/mevis.pth": b"1", "a/deep/more.txt": b"2", "ytvos.pth": b"3"})
    assert dit(f"{AUTHORS}/a/mevis.pth").read_bytes() == b"1"
    assert dit(f"{AUTHORS}/ytvos.pth").read_bytes() == b"3"
    assert (dit(f"{AUTHORS}/a") / "deep" / "more.txt").read_bytes() == b"2"


def test_of_several_that_fit_none_is_guessed(hub):
    hub.add(AUTHORS, {"mevis_dit.pth": b"1", "ytvos_dit.pth": b"2", "tuned_vae.pth": b"3"})
    with pytest.raises(UserError, match=rf"mevis_dit\.pth, ytvos_dit\.pth; add the one to use: {AUTHORS}/mevis_dit"):
        dit(AUTHORS)
    assert hub.downloads() == [".gitattributes"]


def test_without_a_fitting_file_those_that_are_there_are_listed(hub):
    hub.add("someone/vae", {"tuned_vae.pth": b"3"})
    with pytest.raises(UserError, match=r"no weight file .* is for the transformer by its name; it has tuned_vae\.pth"):
        dit("someone/vae")
    hub.add("someone/data", {"notes.txt": b""})
    with pytest.raises(UserError, match="it has none"):
        dit("someone/data")


def test_a_missing_file_is_an_error_that_lists_those_that_are_there(hub):
    hub.add(AUTHORS, {"mevis_dit.pth": b"1", "tuned_vae.pth": b"3"})
    with pytest.raises(UserError) as error:
        dit(f"{AUTHORS}/mevis_dt.pth")
    for words in ("has no 'mevis_dt.pth'", "mevis_dit.pth, tuned_vae.pth", "did you mean 'mevis_dit.pth'"):
        assert words in str(error.value)


# -- here or there -----------------------------------------------------------------------------------------------


def test_a_path_that_exists_is_never_looked_up(hub):
    hub.add(AUTHORS, {"mevis_dit.pth": b"1"})
    Path(AUTHORS).mkdir(parents=True)
    assert dit(AUTHORS) == Path(AUTHORS)
    assert hub.requests == []


def test_a_mistyped_path_names_both_readings(hub):
    for name in ("runs/mevis", "runs/mevis/step_0000100"):
        with pytest.raises(UserError) as error:
            dit(name)
        for words in (f"--dit_ckpt {name}: ", "no such file or folder here", "the hub has no repository 'runs/mevis'"):
            assert words in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["dit.pth", "/tmp/no/such.pth", "./runs/mevis", "../a/b", "~/a/b"])
def test_what_can_be_no_name_of_the_hub_is_not_looked_up(hub, name):
    with pytest.raises(UserError, match="no such file or folder; give"):
        dit(name)
    assert hub.requests == []


def test_a_name_that_the_hub_cannot_have_is_refused_without_asking(hub):
    with pytest.raises(UserError, match="is no name of the hub"):
        dit("a b/c--d")
    assert hub.requests == []


def test_without_a_network_both_readings_are_named(hub, monkeypatch):
    point_at("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(UserError, match=r"no such file or folder here, and the hub cannot be reached .*'runs/mevis'"):
        dit("runs/mevis")
    with pytest.raises(UserError, match=r"no such folder here, and the hub cannot be reached .*hf download Wan-AI/"):
        resolve_wan_folder("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")


# -- cache -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["offline", "unreachable"])
def test_what_was_downloaded_works_without_a_network(hub, monkeypatch, way):
    hub.add(AUTHORS, {"mevis_dit.pth": b"dit", "tuned_vae.pth": b"vae"})
    first = dit(AUTHORS)
    if way == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(UserError, match="the hub cannot be reached"):
            vae(AUTHORS)  # with the other way this asks for 20 s
    else:
        point_at("http://127.0.0.1:9", monkeypatch)
    assert dit(AUTHORS) == dit(f"{AUTHORS}/mevis_dit.pth") == first
    with pytest.raises(UserError, match=r"its weight files are mevis_dit\.pth, tuned_vae\.pth"):
        dit(f"{AUTHORS}/other.pth")


def test_a_second_start_downloads_nothing_and_a_new_version_is_fetched(hub):
    hub.add(AUTHORS, {"mevis_dit.pth": b"old"})
    assert dit(AUTHORS).read_bytes() == b"old"
    hub.requests.clear()
    assert dit(AUTHORS).read_bytes() == b"old"
    assert hub.downloads() == []
    hub.add(AUTHORS, {"mevis_dit.pth": b"new"})
    assert dit(AUTHORS).read_bytes() == b"new"


# -- the whole way -----------------------------------------------------------------------------------------------


@pytest.fixture
def published(hub, toy_folder):
    """The toy folder and weights for it, on the hub."""
    files = {
        path.relative_to(toy_folder).as_posix(): path.read_bytes() for path in toy_folder.rglob("*") if path.is_file()
    }
    hub.add("someone/Wan-toy", files)
    weights = {name: 2 * tensor for name, tensor in toy_vae(toy_folder).items()}
    hub.add(AUTHORS, {"tuned_vae.pth": pickled({f"vae.{name}": tensor for name, tensor in weights.items()})})
    return weights


def toy_vae(toy_folder):
    return AutoencoderKLWan.from_pretrained(toy_folder / "vae").state_dict()


def test_a_pipeline_loads_from_names_alone_without_the_weights_that_are_replaced(hub, published):
    loaded = load_flowrvs("someone/Wan-toy", vae_ckpt=AUTHORS)
    state = loaded.pipeline.vae.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in published.items())
    assert loaded.files["vae"][0].name == "tuned_vae.pth"
    assert "vae/diffusion_pytorch_model.safetensors" not in hub.downloads()


@pytest.mark.slow
def test_a_program_that_starts_anew_finds_the_hub(hub, published, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    script = (
        "from models.weights import load_flowrvs\n"
        f"print(load_flowrvs('someone/Wan-toy', vae_ckpt='{AUTHORS}/tuned_vae.pth', text=False).files['vae'][0])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith(str(tmp_path / "home"))


# -- what to do without a folder ---------------------------------------------------------------------------------


def test_a_missing_toy_folder_does_not_advise_a_download(hub):
    with pytest.raises(
        UserError, match=r"--wan_path runs/toy-wan: .*python -m models\.toy --out runs/toy-wan"
    ) as error:
        resolve_wan_folder("runs/toy-wan")
    assert "hf download" not in str(error.value)
