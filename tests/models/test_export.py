"""Exports of a run: a folder for users, or the original's file; both give the masks of the checkpoint."""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKLWan, WanTransformer3DModel

import inference_demo as demo
import main as training
from datasets.toy import write_toy_mevis
from models import export
from models.flowrvs import FlowRVS
from models.weights import load_flowrvs
from util.errors import UserError
from util.flags import DEFAULT_WAN_PATH
from util.run_folder import checkpoints, find_trained, latest_checkpoint
from util.run_sources import sources_of

FRAMES = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), dtype=np.uint8)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.fixture(scope="module")
def runs(toy_folder, tmp_path_factory):
    """``flow``: two steps, the second validated and so the best. ``vae``: one step of the decoder."""
    root, data = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("data") / "toy"
    write_toy_mevis(data, 5, num_train=2, num_valid_u=1, num_valid=1)
    common = [
        "--wan_path", str(toy_folder), "--mevis_path", str(data), "--device", "cpu", "--num_frames", "5",
        "--num_workers", "0", "--save_steps", "1", "--ema_decay", "0.5", "--lr", "0.01",
    ]  # fmt: skip
    training.main([*common, "--output_dir", str(root / "flow"), "--max_steps", "2", "--eval_steps", "2"])
    decoder = ["--task", "mask_vae", "--crop", "16"]
    training.main([*common, "--output_dir", str(root / "vae"), "--max_steps", "1", *decoder])
    return root


@pytest.fixture
def run_copy(runs, tmp_path):
    return shutil.copytree(runs / "flow", tmp_path / "run")


def run_export(run, out, *arguments):
    export.main(["--run", str(run), "--out", str(out), *map(str, arguments)])
    return out


def refusal(run, out, *arguments):
    """The one line of an export that must fail and leave nothing."""
    before = set(out.parent.rglob("*"))
    with pytest.raises(SystemExit) as caught:
        run_export(run, out, *arguments)
    message = str(caught.value.code)
    assert message.startswith("python -m models.export: error: ")
    assert "\n" not in message
    assert set(out.parent.rglob("*")) == before
    return message


def logits(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(FRAMES, "the red circle", box_height=32, box_width=48).logits


def loaded_logits(*arguments, **options):
    return logits(load_flowrvs(*map(str, arguments), **options).pipeline)


def stored_dit(folder):
    return WanTransformer3DModel.from_pretrained(folder).state_dict()


def same(tensors, others):
    return tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in tensors)


# -- a pipeline --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_pipeline_gives_the_logits_of_the_averaged_weights_by_every_way_to_load_it(runs, toy_folder, tmp_path, dtype):
    out = run_export(runs / "flow", tmp_path / "new" / "out", "--dtype", dtype)
    number = {"dtype": DTYPES[dtype]}
    trained = logits(load_flowrvs(str(toy_folder), str(runs / "flow"), weights="ema", **number).pipeline)
    assert torch.equal(logits(FlowRVS.from_pretrained(out, **number)), trained)
    assert torch.equal(loaded_logits(out, **number), trained)
    assert torch.equal(loaded_logits(toy_folder, out, **number), trained)
    assert not torch.equal(loaded_logits(toy_folder, **number), trained)
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    weights, averaged = (
        folder / "diffusion_pytorch_model.safetensors"
        for folder in (out / "transformer", runs / "flow" / "step_0000002" / "transformer_ema")
    )
    assert (weights.stat().st_size < 0.7 * averaged.stat().st_size) == (dtype == "bf16")


def test_a_run_given_as_weights_is_its_latest_checkpoint(runs, toy_folder):
    dit = load_flowrvs(str(toy_folder), str(runs / "flow")).pipeline.transformer
    assert same(dit.state_dict(), stored_dit(runs / "flow" / "step_0000002" / "transformer_ema"))


def test_a_tuned_decoder_replaces_the_vae_and_serves_a_run_of_the_dit(runs, toy_folder, tmp_path):
    tuned = AutoencoderKLWan.from_pretrained(runs / "vae" / "step_0000001" / "vae_ema").state_dict()
    decoder = FlowRVS.from_pretrained(run_export(runs / "vae", tmp_path / "decoder"))
    assert same(decoder.vae.state_dict(), tuned)
    assert same(decoder.transformer.state_dict(), stored_dit(toy_folder / "transformer"))
    both = FlowRVS.from_pretrained(run_export(runs / "flow", tmp_path / "both", "--vae_ckpt", runs / "vae"))
    assert same(both.vae.state_dict(), tuned)
    assert torch.equal(logits(both), loaded_logits(toy_folder, runs / "flow", runs / "vae"))


def test_the_vae_that_the_run_was_given_is_the_default(runs, run_copy, tmp_path):
    record = json.loads((run_copy / "options.json").read_text())
    record["options"]["vae_ckpt"] = str(runs / "vae")
    (run_copy / "options.json").write_text(json.dumps(record))
    saved = FlowRVS.from_pretrained(run_export(run_copy, tmp_path / "out"))
    tuned = AutoencoderKLWan.from_pretrained(runs / "vae" / "step_0000001" / "vae_ema").state_dict()
    assert same(saved.vae.state_dict(), tuned)


def test_an_objective_goes_along_and_the_original_s_file_cannot_carry_it(run_copy, toy_folder, tmp_path):
    file = run_copy / "step_0000002" / "transformer_ema" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"flowrvs_objective": "direct"}))
    out = run_export(run_copy, tmp_path / "out")
    assert "`direct`" in (out / "README.md").read_text()
    for pipeline in (
        FlowRVS.from_pretrained(out),
        load_flowrvs(str(out)).pipeline,
        load_flowrvs(str(toy_folder), str(out)).pipeline,
    ):
        assert pipeline.config.objective == "direct"
    assert "objective direct" in refusal(run_copy, tmp_path / "out.pth", "--format", "reference")


# -- the original's file -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_reference_file_gives_the_logits_of_its_checkpoint(runs, toy_folder, tmp_path, dtype):
    out = run_export(runs / "flow", tmp_path / "dit.pth", "--format", "reference", "--dtype", dtype)
    exported, checkpoint = (
        load_flowrvs(str(toy_folder), str(path), dtype=DTYPES[dtype]).pipeline for path in (out, runs / "flow")
    )
    assert same(exported.transformer.state_dict(), checkpoint.transformer.state_dict())
    # Up to rounding: tensors of the two formats lie at other addresses, and some CPUs' kernels go by the alignment.
    tolerance = {"fp32": 1e-5, "bf16": 2e-2}[dtype]
    torch.testing.assert_close(logits(exported), logits(checkpoint), rtol=0, atol=tolerance)
    assert [path.name for path in tmp_path.iterdir()] == ["dit.pth"]


@pytest.mark.parametrize(
    ("arguments", "stored"),
    [
        ([], "step_0000002/transformer_ema"),
        (["--weights", "model"], "step_0000002/transformer"),
        (["--checkpoint", "step_0000001"], "step_0000001/transformer_ema"),
        (["--checkpoint", "best"], "best/transformer"),
        (["--checkpoint", "best"], "step_0000002/transformer_ema"),
    ],
)
def test_a_reference_file_has_the_released_form_of_the_weights_asked_for(runs, tmp_path, arguments, stored):
    out = run_export(runs / "flow", tmp_path / "dit.pth", "--format", "reference", *arguments)
    content = torch.load(out, weights_only=True)
    tensors = stored_dit(runs / "flow" / stored)
    assert content.keys() == {"model"}
    assert list(content["model"]) == list(tensors)  # the original's averaged lists go by this order
    assert same(content["model"], tensors)
    others = {"step_0000002/transformer_ema", "step_0000002/transformer", "step_0000001/transformer_ema"} - {stored}
    assert stored.startswith("best") or not any(same(tensors, stored_dit(runs / "flow" / other)) for other in others)


@pytest.mark.parametrize("command", [["models.export"], ["models.weights", "export"]])
def test_the_module_is_the_command_and_a_reference_file_of_the_decoder_has_its_names(
    runs, toy_folder, tmp_path, monkeypatch, capsys, command
):
    """``python -m models.weights export`` is the command of earlier versions."""
    module, *first = command
    out = tmp_path / "vae.pth"
    arguments = [*first, "--run", runs / "vae", "--out", out, "--format", "reference"]
    monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
    monkeypatch.delitem(sys.modules, module)  # as in a fresh process
    runpy.run_module(module, run_name="__main__")
    captured = capsys.readouterr()
    assert captured.out == f"Wrote {out}: ema weights of step_0000001, step 1.\n"
    assert ("is now python -m models.export" in captured.err) == bool(first)
    tuned = AutoencoderKLWan.from_pretrained(runs / "vae" / "step_0000001" / "vae_ema").state_dict()
    assert same(torch.load(out, weights_only=True)["model"], {f"vae.{name}": tuned[name] for name in tuned})
    assert same(load_flowrvs(str(toy_folder), vae_ckpt=str(out)).pipeline.vae.state_dict(), tuned)


def test_a_reference_file_needs_the_run_s_own_config(run_copy, tmp_path):
    (run_copy / "step_0000002" / "transformer_ema" / "config.json").unlink()
    assert "config.json is missing" in refusal(run_copy, tmp_path / "dit.pth", "--format", "reference")


# -- the model card ----------------------------------------------------------------------------------------------


def test_the_card_has_options_scores_and_versions_and_no_folder_of_this_machine(runs, toy_folder, tmp_path):
    out = run_export(runs / "flow", tmp_path / "out")
    _, header, text = (out / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(header)["library_name"] == "flowrvs"
    assert "after step 2" in text
    recorded = json.loads((runs / "flow" / "options.json").read_text())
    options = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    assert options.keys() == recorded["options"].keys()
    assert (options["lr"], options["max_steps"], options["output_dir"]) == (0.01, 2, "flow")
    assert all(f"{name} {version}" in text for name, version in recorded["libraries"].items())
    scores = json.loads((runs / "flow" / "validation.jsonl").read_text())
    assert all(f"| {name} | {value:.4f} |" in text for name, value in scores.items() if name != "step")
    assert "| J&F |" in text
    for file in [*out.rglob("*.json"), *out.rglob("*.md")]:
        assert not any(str(folder.parent) in file.read_text() for folder in (out, toy_folder, runs)), file


def test_the_lines_of_the_card_run(runs, tmp_path):
    out = run_export(runs / "flow", tmp_path / "out")
    code = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)[1]
    variables = {}
    exec(code.replace('"out"', repr(str(out))).replace("(17, 480, 832, 3)", "(5, 64, 112, 3)"), variables)
    assert variables["masks"].shape == (1, 5, 64, 112)


def test_scores_are_those_of_these_weights_alone(run_copy, caplog):
    assert find_trained(run_copy, "best").scores.keys() >= {"J", "F", "J&F"}
    assert find_trained(run_copy, "step_0000001").scores == {}
    assert find_trained(run_copy, "step_0000002", is_ema=False).scores == {}
    with (run_copy / "validation.jsonl").open("a") as file:
        file.write('{"step": 1, "J": 0.5}\n{"step": 2, "J"')  # the second one cut by a kill
    assert find_trained(run_copy, "step_0000001").scores == {"J": 0.5}
    assert find_trained(run_copy, "step_0000002").scores.keys() >= {"J", "F", "J&F"}
    assert "damaged line" in caplog.text


# -- what cannot be exported -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "out", "arguments", "parts"),
    [
        ("flow", "out", ["--checkpoint", "bset"], ["latest, step_0000001, step_0000002, best", "did you mean 'best'"]),
        ("flow", "out", ["--checkpoint", "../flow/best"], ["the run has"]),
        ("flow", "out", ["--checkpoint", "best", "--weights", "model"], ["--weights model", "only EMA weights"]),
        ("flow", "out", ["--vae_ckpt", "nowhere"], ["--vae_ckpt nowhere"]),
        ("flow", "out", ["--wan_path", "nowhere"], ["--wan_path nowhere"]),
        ("flow", "out", ["--format", "reference"], ["--out", "must end in .pth"]),
        ("flow", "out.pth", [], ["--out", "--format reference"]),
        ("flow", "out.pth", ["--format", "reference", "--vae_ckpt", "x"], ["--vae_ckpt", "leave them out"]),
        ("vae", "out", ["--vae_ckpt", "x"], ["--vae_ckpt", "leave the flag out"]),
        ("nowhere", "out", [], ["no options.json", "--output_dir"]),
    ],
)
def test_arguments_that_cannot_work_are_one_line(runs, tmp_path, run, out, arguments, parts):
    message = refusal(runs / run, tmp_path / out, *arguments)
    assert all(part in message for part in parts)


def test_what_exists_is_never_replaced(runs, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.pth").write_text("mine")
    assert "already holds folder" in refusal(runs / "flow", tmp_path / "folder")
    assert "already holds file.pth" in refusal(runs / "flow", tmp_path / "file.pth", "--format", "reference")
    assert (tmp_path / "file.pth").read_text() == "mine"


@pytest.mark.parametrize(
    ("checkpoint", "damage", "match"),
    [
        ("latest", lambda run: (run / "options.json").write_text("{}"), "was not written by main.py"),
        ("latest", lambda run: (run / "options.json").write_text("{"), "not valid JSON"),
        ("latest", lambda run: (run / "latest").unlink(), "no checkpoint yet"),
        ("latest", lambda run: shutil.rmtree(run / "step_0000002"), "'step_0000002', which does not exist"),
        ("latest", lambda run: (run / "latest").write_bytes(b"\xff"), "which does not exist"),
        ("latest", lambda run: shutil.rmtree(run / "step_0000002" / "transformer_ema"), "no EMA weights"),
        ("latest", lambda run: cut(run / "step_0000002" / "transformer_ema"), "is damaged"),
        ("best", lambda run: (run / "best" / "metrics.json").write_text("{}"), "holds no step"),
    ],
)
def test_a_damaged_run_is_refused(run_copy, tmp_path, checkpoint, damage, match):
    damage(run_copy)
    for out, form in (("out", "pipeline"), ("out.pth", "reference")):
        assert match in refusal(run_copy, tmp_path / out, "--checkpoint", checkpoint, "--format", form)


def cut(folder):
    file = folder / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def test_checkpoints_are_folders_of_steps_in_their_order(tmp_path):
    for name in ("step_0000009", "step_10000000", "step_9999999", "step_backup"):
        (tmp_path / name).mkdir()
    (tmp_path / "step_0000001").write_text("no folder")
    assert [place.name for place in checkpoints(tmp_path)] == ["step_0000009", "step_9999999", "step_10000000"]
    assert latest_checkpoint(tmp_path) is None


# -- a run as --dit_ckpt or --vae_ckpt -----------------------------------------------------------------------------


def loads_of(capsys, **flags):
    """The pipeline of ``--weights auto`` with these flags, and what was said about a run."""
    loaded = load_flowrvs(**{"wan_path": None} | {name: str(value) for name, value in flags.items()}, text=False)
    return loaded, [line for line in capsys.readouterr().err.splitlines() if "Taken" in line]


@pytest.mark.parametrize("place", ["", "step_0000001", "best", "step_0000002/transformer_ema"])
def test_a_run_or_its_checkpoint_brings_the_folder_it_was_started_with(
    runs, toy_folder, tmp_path, monkeypatch, capsys, place
):
    monkeypatch.chdir(tmp_path)
    loaded, said = loads_of(capsys, dit_ckpt=runs / "flow" / place)
    assert loaded.folder == toy_folder
    assert said == [f"Taken from the run {runs / 'flow'}: --wan_path {toy_folder}"]
    loaded, said = loads_of(capsys, vae_ckpt=runs / "vae")
    assert loaded.folder == toy_folder
    assert len(said) == 1


def test_explicit_flags_win_over_those_of_the_run(run_copy, runs, toy_folder, tmp_path, capsys):
    other = shutil.copytree(toy_folder, tmp_path / "other")
    edit_record(run_copy, vae_ckpt=str(runs / "vae"))
    loaded, said = loads_of(capsys, dit_ckpt=run_copy, wan_path=other)
    assert loaded.folder == other
    assert runs / "vae" in loaded.files["vae"][0].parents
    assert said == [f"Taken from the run {run_copy}: --vae_ckpt {runs / 'vae'}"]
    loaded, said = loads_of(capsys, dit_ckpt=run_copy, wan_path=other, vae_ckpt=other / "vae")
    assert loaded.files["vae"][0].parent == other / "vae"
    assert said == []


def edit_record(run, **options):
    record = json.loads((run / "options.json").read_text())
    record["options"] |= options
    record.pop("sources")  # as earlier versions wrote it
    (run / "options.json").write_text(json.dumps(record))


def test_relative_paths_are_recorded_with_the_folder_that_they_are_relative_to(tmp_path, monkeypatch):
    (tmp_path / "wan").mkdir()
    monkeypatch.chdir(tmp_path)
    sources = sources_of({"wan_path": "wan", "dit_ckpt": "xmz111/FlowRVS", "vae_ckpt": None})
    assert sources == {"wan_path": str(tmp_path / "wan"), "dit_ckpt": "xmz111/FlowRVS", "vae_ckpt": None}
    (tmp_path / DEFAULT_WAN_PATH).mkdir()
    assert sources_of(dict.fromkeys(sources))["wan_path"] == str(tmp_path / DEFAULT_WAN_PATH)


def test_relative_paths_of_earlier_runs_are_relative_to_the_working_folder(run_copy, toy_folder, monkeypatch, capsys):
    edit_record(run_copy, wan_path=toy_folder.name)
    monkeypatch.chdir(toy_folder.parent)
    assert loads_of(capsys, dit_ckpt=run_copy)[0].folder.samefile(toy_folder)


@pytest.mark.parametrize("flag", ["wan_path", "vae_ckpt"])
def test_a_recorded_path_that_is_gone_names_the_flag_that_replaces_it(run_copy, capsys, flag):
    edit_record(run_copy, **{flag: "/gone/away"})
    with pytest.raises(UserError, match=rf"{run_copy}: its --{flag} was /gone/away, .*; give --{flag}"):
        loads_of(capsys, dit_ckpt=run_copy)


def test_a_recorded_name_of_the_hub_is_looked_up_there(run_copy, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    edit_record(run_copy, wan_path="someone/Wan-toy")
    with pytest.raises(UserError, match="--wan_path someone/Wan-toy: no such folder here, and the hub"):
        loads_of(capsys, dit_ckpt=run_copy)


def test_an_options_file_of_another_program_is_no_run(toy_folder, tmp_path, capsys):
    saved = shutil.copytree(toy_folder / "transformer", tmp_path / "saved")
    (saved / "options.json").write_text('{"speed": 3}')
    assert loads_of(capsys, wan_path=toy_folder, dit_ckpt=saved)[1] == []


def test_the_demo_segments_with_a_run_alone(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sample = str(Path(demo.__file__).parent / "assets" / "toy" / "sample.mp4")
    demo.main([
        "--input_path", sample, "--text_prompts", "a circle", "--dit_ckpt", str(runs / "flow"), "--max_frames", "1",
    ])  # fmt: skip
    assert "Taken from the run" in capsys.readouterr().err
    assert (tmp_path / "output" / "sample" / "result.json").is_file()
