"""The recipes of configs/ have known keys and the method's numbers, and pass a dry run below their memory limit."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from mini_datasets import write_refcoco, write_ytvos
from mini_mevis import write as write_mevis
from test_real_sizes import BIG_DIT, DIT, TEXT, VAE

import main
from datasets.toy import write_toy_mevis
from engine.training.run import _start_processes
from util.errors import UserError
from util.recipes import how_to_make

CONFIGS = Path(main.__file__).parent / "configs"
RECIPES = sorted(CONFIGS.glob("*.yaml"))
# The most GiB on each GPU for a recipe with real weights, as engine/training/memory_estimate.py computes it.
LIMITS = {
    "mevis.yaml": 36, "ytvos.yaml": 36, "pretrain.yaml": 36, "mevis_24gb.yaml": 24 - 2, "mevis_lora.yaml": 12,
    "mevis_14b_fsdp.yaml": 80 - 4,
}  # fmt: skip
METHOD = {
    "num_frames": 17, "batch_size": 1, "lr": 5e-5, "lr_schedule": "multistep", "lr_drop": 30, "weight_decay": 5e-4,
    "clip_max_norm": 1.0, "ema_decay": 0.9999, "epochs": 50, "bbs_prob": 0.5, "use_spa": True, "use_dvi": True,
    "augm_resize": True, "sampling": "sparse", "flip_prob": 0.5, "objective": "flow", "optimizer": "adamw",
}  # fmt: skip
CHANGED = {  # numbers that differ from the method's, as the recipe's first lines say
    "pretrain.yaml": {"num_frames": 1, "epochs": 12},
    "mevis_lora.yaml": {"lr": 2e-4},
}


def write_wan(folder, dit):
    """A Wan folder as published, without weights."""
    configs = {"transformer": dit, "vae": VAE, "text_encoder": TEXT, "tokenizer": {}}
    for name, config in configs.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A working folder with all data and weights that the recipes name, at their paths in the README."""
    root = tmp_path_factory.mktemp("home")
    write_wan(root / "Wan2.1-T2V-1.3B-Diffusers", DIT)
    write_wan(root / "Wan2.1-T2V-14B-Diffusers", BIG_DIT)
    write_wan(root / "runs/toy-wan", DIT)
    (root / "assets").symlink_to(CONFIGS.parent / "assets")
    write_mevis(root / "datasets/MeViS", "train")
    write_mevis(root / "datasets/MeViS", "valid_u")
    write_ytvos(root / "datasets/refer_youtube_vos")
    for name in ("refcoco", "refcoco+", "refcocog"):
        write_refcoco(root / "datasets/coco", name, "train")
    write_toy_mevis(root / "runs/toy-mevis", 5, num_train=3, num_valid_u=1, num_valid=1)
    return root


@pytest.fixture
def dry(home, monkeypatch, capsys):
    """Runs main.py --dry_run in that folder, as one of ``num_processes``; returns what it prints."""
    monkeypatch.chdir(home)

    def dry(*flags, num_processes="1"):
        monkeypatch.setenv("WORLD_SIZE", num_processes)
        main.main([*flags, "--dry_run"])
        return capsys.readouterr().out

    return dry


def gib(output):
    return float(re.search(r"([\d.]+) GiB  peak", output)[1])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_has_known_keys_and_opens_with_its_command(path):
    options = main.build_parser().parse_args(["--config", str(path)])
    assert all(hasattr(options, key) for key in yaml.safe_load(path.read_text()))
    first = path.read_text().splitlines()[:3]
    assert first[0].startswith(("# python ", "# torchrun "))
    assert any(f"main.py --config configs/{path.name} " in line for line in first)


def test_recipes_with_real_weights_are_the_methods_and_say_that_they_were_never_run():
    for name in LIMITS:
        options = vars(main.build_parser().parse_args(["--config", str(CONFIGS / name)]))
        expected = METHOD | CHANGED.get(name, {})
        assert {key: options[key] for key in expected} == expected, name
        assert "Never run by us" in (CONFIGS / name).read_text()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_passes_a_dry_run_and_takes_the_memory_that_it_says(path, dry):
    output = dry("--config", str(path), num_processes="8" if path.name in LIMITS else "1")
    if path.name in LIMITS:
        assert "processes   8" in output
        assert gib(output) <= LIMITS[path.name]
        stated = re.search(r"puts\sit\sat\s(\d+) GiB", path.read_text().replace("\n# ", " "))
        assert round(gib(output)) == int(stated[1]), "what its first lines say"


def test_ema_weights_on_the_cpu_bring_the_methods_recipe_below_32_gib(dry):
    config = ("--config", str(CONFIGS / "mevis.yaml"))
    there, here = gib(dry(*config, "--ema_device", "cpu")), gib(dry(*config))
    assert there <= 32
    assert f"{round(there)} with --ema_device cpu" in (CONFIGS / "mevis.yaml").read_text()
    assert here - there > 5, "the EMA weights and their differences"


def test_sharding_divides_what_a_gpu_holds_and_a_real_run_on_a_cpu_is_refused(dry):
    config = ("--config", str(CONFIGS / "mevis_14b_fsdp.yaml"))
    alone, eight, sixteen = (gib(dry(*config, num_processes=count)) for count in ("2", "8", "16"))
    assert alone > eight > sixteen
    with pytest.raises(SystemExit, match=r"--fsdp: .* got one; start with torchrun"):
        dry(*config, num_processes="1")
    with pytest.raises(SystemExit, match=r"--fsdp: .* got --device"):
        main.main([*config, "--device", "cpu"])


def test_an_unknown_key_of_a_recipe_is_an_error_that_names_it(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text((CONFIGS / "mevis.yaml").read_text() + "num_frame: 17\n")
    with pytest.raises(SystemExit):
        main.main(["--config", str(recipe), "--dry_run"])
    assert "unknown key 'num_frame'; did you mean 'num_frames'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mevis_path", "nowhere"], "--mevis_path nowhere"),
        (["--wan_path", "nowhere"], "--wan_path nowhere"),
        (["--dataset_file", "ytvos", "--eval_steps", "5"], "--eval_steps: ytvos has no validation"),
        (["--mixture", "mevis=0.001"], "mevis holds no clip"),
        (["--resume", "nowhere"], "--resume nowhere"),
        (["--objective", "noise", "--no-use_dvi"], "objective noise: needs direct video injection"),
        (["--mixture", "mevis=1", "ytvos=1", "--latent_cache", "c", "--sampling", "dense", "--no-augm_resize",
          "--flip_prob", "0"], "--latent_cache: works with one dataset"),
        (["--init_from", "a", "--dit_ckpt", "b"], "--init_from and --dit_ckpt"),
    ],
)  # fmt: skip
def test_a_dry_run_refuses_what_would_end_the_run_at_its_start(dry, flags, message):
    with pytest.raises(SystemExit) as caught:
        dry(*flags)
    assert message in str(caught.value.code)


def test_an_output_folder_that_holds_a_run_is_refused_by_a_dry_run_too(dry, tmp_path):
    (tmp_path / "latest").write_text("step_0000001\n")
    with pytest.raises(SystemExit, match="holds a run"):
        dry("--output_dir", str(tmp_path))


def test_numbers_of_processes_that_torchrun_did_not_set_are_errors(dry, monkeypatch):
    with pytest.raises(SystemExit, match="WORLD_SIZE: must be the number of processes, got 'two'"):
        dry(num_processes="two")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(SystemExit, match="WORLD_SIZE: must be set by torchrun, got 2"):
        main.main(["--device", "cpu"])


def test_more_processes_than_gpus_and_one_gpu_for_several_processes_are_errors(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match=r"--nproc_per_node: .* got process 3 on a machine that shows 2; start fewer"):
        _start_processes(main.build_parser().parse_args([]), torch.device("cuda"))
    with pytest.raises(SystemExit, match=r"--device cuda:1: names one GPU, but torchrun started 4 processes"):
        main.main(["--device", "cuda:1"])


# -- folders that are not there ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_folder_of_weights_that_a_recipe_names_is_made_downloaded_or_there(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = yaml.safe_load(path.read_text()).get("wan_path", "Wan2.1-T2V-1.3B-Diffusers")
    assert folder.endswith("-Diffusers") or how_to_make(folder)


def test_the_error_for_a_missing_toy_world_is_the_command_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--config", str(CONFIGS / "toy.yaml"), "--device", "cpu"]
    with pytest.raises(SystemExit, match=r"python -m datasets\.toy --out runs/toy-mevis --seed 1 --num_train 8000"):
        main.main(arguments)
    write_toy_mevis(tmp_path / "runs/toy-mevis", 5, num_train=1, num_valid_u=1, num_valid=1)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit) as caught:
        main.main(arguments)
    assert "python -m models.toy --out runs/toy-wan --train_on runs/toy-mevis" in str(caught.value.code)
    assert "hf download" not in str(caught.value.code)


def test_a_folder_that_comes_with_the_code_is_named_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert how_to_make("assets/toy/flowrvs").endswith(f"or give {CONFIGS.parent}/assets/toy/flowrvs")
    assert how_to_make("runs/toy-wan2") is None
