"""The demo script from its arguments to its files, on a toy model and tiny clips."""

import contextlib
import gc
import hashlib
import json
import pickle
import subprocess
import sys
import threading
import time
import weakref
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import engine.demo.run
import inference_demo
from engine.demo.record import hashing
from util.frames import FrameSource
from util.video import open_frames
from util.video_writer import VideoWriter
from util.workers import MAX_PENDING

ROOT = Path(__file__).parents[3]
HEIGHT, WIDTH, FPS = 32, 48, 10


@pytest.fixture
def demo(tmp_path, toy_folder):
    """Runs the demo; flags given replace those it would set."""

    def run(input_path, *flags, prompts=("a dog",), wan_path=toy_folder, output_dir=tmp_path / "out"):
        arguments = ["--input_path", input_path, "--text_prompts", *prompts, "--output_dir", output_dir]
        arguments += [] if wan_path is None else ["--wan_path", wan_path]
        box = ["--reso_h", "24", "--reso_w", "32"]  # smaller than the clips
        inference_demo.main([str(argument) for argument in [*arguments, *box, *flags]])

    return run


def noise(num_frames, size=(HEIGHT, WIDTH)):
    return np.random.default_rng(0).integers(0, 256, (num_frames, *size, 3), np.uint8)


@pytest.fixture
def clip(tmp_path):
    """Six frames as a video file."""
    return write_clip(tmp_path / "clip.mp4", 6)


def write_clip(path, num_frames):
    with VideoWriter(path, Fraction(FPS)) as writer:
        for frame in noise(num_frames):
            writer.write(frame)
    return path


def write_folder(path, names, size=(HEIGHT, WIDTH)):
    path.mkdir()
    for name, frame in zip(names, noise(len(names), size), strict=True):
        Image.fromarray(frame).save(path / name)
    return path


def contents_of(folder):
    """Every file below a folder with its bytes, and every folder with None."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def read_record(tmp_path, name="clip"):
    return json.loads((tmp_path / "out" / name / "result.json").read_text(encoding="utf-8"))


def read_masks(tmp_path, prompt, name="clip"):
    return np.stack(
        [np.asarray(Image.open(file)) for file in sorted((tmp_path / f"out/{name}/masks/{prompt}").iterdir())]
    )


# What a run writes


def test_a_run_writes_masks_a_video_and_a_record(demo, clip, tmp_path):
    demo(clip, prompts=("a dog", "the red car"))
    assert names_in(tmp_path / "out") == ["clip", "clip_result.mp4"]
    assert names_in(tmp_path / "out" / "clip") == ["masks", "result.json"]
    assert names_in(tmp_path / "out" / "clip" / "masks") == ["0", "1"]
    for prompt in "01":
        folder = tmp_path / "out" / "clip" / "masks" / prompt
        assert names_in(folder) == [f"{index:05d}.png" for index in range(6)]
        for file in folder.iterdir():
            with Image.open(file) as mask:
                assert (mask.mode, mask.size) == ("L", (WIDTH, HEIGHT))
                assert set(np.unique(np.asarray(mask))) <= {0, 255}
    result = open_frames(str(tmp_path / "out" / "clip_result.mp4"))
    assert result.fps == FPS
    assert [frame.shape for frame in result] == 6 * [(HEIGHT, WIDTH, 3)]


def test_the_record_says_what_was_done_and_how_large_the_masks_are(demo, clip, tmp_path):
    demo(clip, "--num_steps", 2, "--threshold", 0.6, "--seed", 5, "--device", "cpu", prompts=("a dog", "“Hund” 狗"))
    record = read_record(tmp_path)
    expected = {
        "input": str(clip),
        "prompts": ["a dog", "“Hund” 狗"],
        "fps": FPS,
        "num_frames": 6,
        "size": {"height": HEIGHT, "width": WIDTH},
        "model_size": {"height": 16, "width": 32},  # 21 floored to the multiple of 8
        "num_steps": 2,
        "threshold": 0.6,
        "device": "cpu",
        "dtype": "float32",
        "seed": 5,
    }
    assert {key: record[key] for key in expected} == expected
    areas = [np.count_nonzero(read_masks(tmp_path, prompt), axis=(1, 2)).tolist() for prompt in (0, 1)]
    assert record["mask_area"] == areas
    assert len({tuple(colour) for colour in record["colours"]}) == 2
    assert {"read", "text", "encode", "dit", "decode", "write"} <= set(record["seconds"])
    assert "狗" in (tmp_path / "out" / "clip" / "result.json").read_text(encoding="utf-8")  # readable, not escaped


def test_the_record_holds_the_hashes_of_the_weight_files(demo, clip, tmp_path, toy_folder):
    demo(clip)
    weights = read_record(tmp_path)["weights"]
    files = {
        "transformer": toy_folder / "transformer" / "diffusion_pytorch_model.safetensors",
        "vae": toy_folder / "vae" / "diffusion_pytorch_model.safetensors",
        "text_encoder": toy_folder / "text_encoder" / "model.safetensors",
    }
    assert weights == {
        part: {"files": [str(file)], "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for part, file in files.items()
    }


class LargeFile:
    """Five seconds of reading."""

    def __init__(self):
        self.num_reads, self.begun = 0, threading.Event()

    def stat(self):
        return SimpleNamespace(st_size=5000, st_mtime_ns=0)

    def absolute(self):
        return Path("large.bin")

    def open(self, _mode):
        return contextlib.nullcontext(self)

    def read(self, _size):
        self.num_reads += 1
        self.begun.set()
        time.sleep(0.001)
        return b"x" if self.num_reads < 5000 else b""


def test_a_run_that_fails_does_not_wait_for_its_hashes():
    file = LargeFile()
    with pytest.raises(ZeroDivisionError), hashing({"vae": (file,)}):
        assert file.begun.wait(timeout=60)
        _ = 1 / 0
    assert file.num_reads < 5000


def test_the_record_names_the_checkpoints_that_replaced_weights(demo, clip, tmp_path, toy_folder):
    checkpoints = {}
    for part in ("transformer", "vae"):
        tensors = load_file(toy_folder / part / "diffusion_pytorch_model.safetensors")
        checkpoints[part] = tmp_path / f"{part}.pth"
        torch.save({"model": tensors}, checkpoints[part])
    demo(clip, "--dit_ckpt", checkpoints["transformer"], "--vae_ckpt", checkpoints["vae"])
    weights = read_record(tmp_path)["weights"]
    for part, path in checkpoints.items():
        assert weights[part] == {"files": [str(path)], "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


@pytest.mark.parametrize(("flags", "expected"), [(["--save_fig"], True), (["--no-save_fig"], False), ([], False)])
def test_save_fig_writes_each_overlay_as_a_picture(demo, clip, tmp_path, flags, expected):
    demo(clip, *flags)
    folder = tmp_path / "out" / "clip" / "overlay"
    assert folder.exists() == expected
    if expected:
        assert names_in(folder) == [f"{index:05d}.jpg" for index in range(6)]
        assert {Image.open(file).size for file in folder.iterdir()} == {(WIDTH, HEIGHT)}


def test_the_masks_of_a_folder_are_named_after_its_images(demo, tmp_path):
    folder = write_folder(tmp_path / "frames", ["b10.png", "b9.jpg", "a.v2.jpeg"])
    demo(folder)
    assert names_in(tmp_path / "out" / "frames" / "masks" / "0") == ["a.v2.png", "b10.png", "b9.png"]
    assert read_record(tmp_path, "frames")["fps"] == 24


def test_a_trailing_slash_changes_nothing(demo, tmp_path):
    folder = write_folder(tmp_path / "frames", ["a.png", "b.png"])
    demo(f"{folder}/")
    assert names_in(tmp_path / "out") == ["frames", "frames_result.mp4"]
    assert read_record(tmp_path, "frames")["input"] == str(tmp_path / "frames")


def test_the_working_folder_as_input_goes_by_its_name(demo, tmp_path, monkeypatch):

    monkeypatch.chdir(write_folder(tmp_path / "frames", ["a.png", "b.png"]))
    demo(".")
    assert names_in(tmp_path / "out") == ["frames", "frames_result.mp4"]
    assert read_record(tmp_path, "frames")["input"] == str(tmp_path / "frames")


@pytest.mark.parametrize("size", [(33, 47), (47, 33), (32, 47)])
def test_masks_of_odd_sizes_fit_their_frames_and_the_video_grows_by_a_pixel(demo, tmp_path, size):
    height, width = size
    demo(write_folder(tmp_path / "frames", ["a.png", "b.png"], size), "--save_fig")
    assert read_masks(tmp_path, 0, "frames").shape == (2, height, width)
    assert Image.open(tmp_path / "out" / "frames" / "overlay" / "a.jpg").size == (width, height)
    frames = list(open_frames(str(tmp_path / "out" / "frames_result.mp4")))
    assert [frame.shape for frame in frames] == 2 * [(height + height % 2, width + width % 2, 3)]


@pytest.mark.parametrize("kind", ["video", "folder"])
def test_one_frame_is_enough(demo, tmp_path, kind):
    source = write_clip(tmp_path / "clip.mp4", 1) if kind == "video" else write_folder(tmp_path / "clip", ["a.png"])
    demo(source)
    assert read_masks(tmp_path, 0).shape == (1, HEIGHT, WIDTH)
    assert len(list(open_frames(str(tmp_path / "out" / "clip_result.mp4")))) == 1


def test_frames_of_one_pixel_are_segmented(demo, tmp_path):
    demo(write_folder(tmp_path / "clip", ["a.png", "b.png"], (1, 1)), prompts=("a dog", "a cat"))
    assert read_masks(tmp_path, 1).shape == (2, 1, 1)


def test_fps_and_max_frames_choose_the_frames(demo, clip, tmp_path):
    demo(clip, "--fps", 20, "--max_frames", 3)
    record = read_record(tmp_path)
    assert (record["fps"], record["num_frames"]) == (20, 3)
    result = open_frames(str(tmp_path / "out" / "clip_result.mp4"))
    assert (result.fps, len(list(result))) == (20, 3)
    assert len(read_masks(tmp_path, 0)) == 3


def test_equal_prompts_get_equal_masks_and_different_ones_do_not(demo, clip, tmp_path):
    demo(clip, prompts=("a dog", "the red car on the left", "a dog"))
    first, other, again = (read_masks(tmp_path, prompt) for prompt in range(3))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_higher_threshold_gives_smaller_masks(demo, clip, tmp_path):
    areas = []
    for threshold in (0.3, 0.7):
        demo(clip, "--threshold", threshold)
        areas.append(np.count_nonzero(read_masks(tmp_path, 0)))
    assert areas[0] > areas[1]


def test_bf16_is_recorded(demo, clip, tmp_path):
    demo(clip, "--dtype", "bf16", "--max_frames", 1)
    assert read_record(tmp_path)["dtype"] == "bfloat16"


def test_a_yaml_file_may_hold_every_option(clip, tmp_path, toy_folder):
    options = {
        "input_path": str(clip),
        "text_prompts": ["a dog", "a cat"],
        "output_dir": str(tmp_path / "out"),
        "wan_path": str(toy_folder),
        "max_frames": 2,
    }
    (tmp_path / "demo.yaml").write_text(json.dumps(options))  # JSON is YAML
    inference_demo.main(["--config", str(tmp_path / "demo.yaml"), "--max_frames", "1"])
    record = read_record(tmp_path)
    assert (record["prompts"], record["num_frames"]) == (["a dog", "a cat"], 1)


# Earlier results


def test_overwrite_replaces_the_result_of_other_prompts(demo, clip, tmp_path):
    demo(clip, "--save_fig", prompts=("a dog", "a cat"))
    first_video = (tmp_path / "out" / "clip_result.mp4").read_bytes()
    demo(clip, "--max_frames", 2, "--overwrite", prompts=("the red car",))
    assert names_in(tmp_path / "out") == ["clip", "clip_result.mp4"]
    assert names_in(tmp_path / "out" / "clip") == ["masks", "result.json"]  # no stale overlay
    assert names_in(tmp_path / "out" / "clip" / "masks") == ["0"]
    assert len(read_masks(tmp_path, 0)) == 2
    assert read_record(tmp_path)["prompts"] == ["the red car"]
    assert (tmp_path / "out" / "clip_result.mp4").read_bytes() != first_video


def test_other_prompts_are_refused_by_name_and_the_first_result_stays(demo, refused, clip, tmp_path):
    demo(clip, prompts=("a dog", "a cat"))
    line = refused(clip, prompts=("the red car",))
    assert all(word in line for word in ("--output_dir", "'a dog'", "'a cat'", "--overwrite"))
    assert "a dog" in refused(clip, prompts=("a cat", "a dog"))  # the numbers of the masks would change


def test_the_same_prompts_replace_their_result_whatever_their_spaces(demo, clip, tmp_path):
    demo(clip, prompts=("a dog",))
    demo(clip, "--max_frames", 2, prompts=("  a   dog ",))
    assert len(read_masks(tmp_path, 0)) == 2


def test_an_unfinished_result_of_the_old_numbering_is_refused_and_kept(demo, clip, tmp_path, monkeypatch):
    """Before, mask k could be that of another frame: see ``result_folder.NUMBERING``."""
    monkeypatch.setattr("engine.demo.run.write_outputs", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        demo(clip)
    monkeypatch.undo()
    partial = tmp_path / "out" / ".clip.partial"
    record = json.loads((partial / "run.json").read_text())
    del record["numbering"]
    (partial / "run.json").write_text(json.dumps(record))
    before = contents_of(partial)
    with pytest.raises(SystemExit, match="earlier version"):
        demo(clip)
    assert contents_of(partial) == before
    demo(clip, "--overwrite")
    assert names_in(tmp_path / "out") == ["clip", "clip_result.mp4"]


def test_the_same_run_gives_the_same_files(demo, clip, tmp_path):
    results = []
    for _ in range(2):
        demo(clip, prompts=("a dog", "a cat"))
        results.append({name: data for name, data in contents_of(tmp_path / "out").items() if "json" not in name})
    assert results[0] == results[1]


def test_a_failed_second_run_leaves_the_first_result_whole(demo, tmp_path):
    folder = write_folder(tmp_path / "frames", ["a.png", "b.png", "c.png"])
    demo(folder, "--save_fig")
    before = contents_of(tmp_path / "out")
    (folder / "b.png").write_bytes(b"no image")
    with pytest.raises(SystemExit):
        demo(folder)
    assert contents_of(tmp_path / "out") == before


@pytest.mark.parametrize("at", ["engine.demo.segment_video.write_mask", "engine.demo.segment_video.Progress"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_ends_before_its_first_window_leaves_nothing(demo, clip, monkeypatch, at, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(at, fail)
    before = contents_of(clip.parent)
    with pytest.raises((SystemExit, RuntimeError)) as caught:
        demo(clip)
    # An interrupt ends in code 130, a bug keeps its traceback.
    assert getattr(caught.value, "code", None) == (130 if error is KeyboardInterrupt else None)
    assert contents_of(clip.parent) == before


# Without weights


def test_without_weights_the_shipped_toy_runs_and_says_so(demo, clip, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    demo("clip.mp4", "--max_frames", 1, wan_path=None, output_dir="out")
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("WARNING")]
    assert "toy model of assets/toy" in warning
    assert "masks of other videos are meaningless" in warning
    assert names_in(tmp_path / "out" / "clip" / "masks" / "0") == ["00000.png"]


def test_with_weights_there_is_no_warning_of_a_toy(demo, clip, capsys):
    demo(clip, "--max_frames", 1)
    assert "WARNING" not in capsys.readouterr().err


def test_a_checkpoint_without_its_folder_is_an_error_and_no_toy(refused, clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("models.hub.snapshot_download", no_hub)
    torch.save({"a": torch.zeros(1)}, tmp_path / "dit.pth")
    assert "--wan_path" in refused(clip, "--dit_ckpt", tmp_path / "dit.pth", wan_path=None)


def no_hub(*_, **__):
    raise OSError("no network in tests")


# Memory


class WatchedSource(FrameSource):
    """Passes the frames of a source on and counts how many of them are alive at once."""

    def __init__(self, source):
        self.source, self.path, self.files = source, source.path, source.files
        self.num_frames = source.num_frames
        self.most_alive = self.num_given = 0

    def __iter__(self):
        given = []
        for frame in self.source:
            given = [reference for reference in given if reference() is not None] + [weakref.ref(frame)]
            self.most_alive = max(self.most_alive, len(given))
            self.num_given += 1
            yield frame

    @property
    def clock(self):
        return self.source.clock

    def frame_name(self, index):
        return self.source.frame_name(index)


@pytest.mark.parametrize("kind", ["video", "folder"])
def test_only_a_few_frames_of_source_size_are_alive_at_once(demo, tmp_path, monkeypatch, kind):
    if kind == "video":
        path = write_clip(tmp_path / "clip.mp4", 20)
    else:
        path = write_folder(tmp_path / "clip", [f"{index}.png" for index in range(20)])
    watched = []

    def open_watched(*arguments):
        watched.append(WatchedSource(open_frames(*arguments)))
        return watched[-1]

    monkeypatch.setattr(engine.demo.run, "open_frames", open_watched)
    gc.collect()
    demo(path, prompts=("a dog", "a cat"))
    (source,) = watched
    assert source.num_given == 40  # read once for the model and once for the overlay
    # Those at work on threads, the one whose result is taken, the next one, and the first of a folder.
    assert source.most_alive <= MAX_PENDING + 3


# Bad input


@pytest.fixture
def refused(demo, tmp_path, capsys):
    """Runs the demo on what it must refuse; returns the one line it says, and checks that it leaves nothing."""

    def run(*arguments, **options):
        before = contents_of(tmp_path)
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            demo(*arguments, **options)
        stderr = capsys.readouterr().err
        # sys.exit prints a text on stderr and ends with 1; the option parser has printed its line itself.
        is_text = isinstance(caught.value.code, str)
        assert is_text or caught.value.code == 2
        line = caught.value.code if is_text else stderr.strip()
        assert line.startswith("inference_demo.py: error: ")
        assert "\n" not in line
        assert "Traceback" not in stderr
        assert contents_of(tmp_path) == before
        return line

    return run


def test_a_missing_input_is_refused(refused, tmp_path):
    assert f"--input_path {tmp_path / 'absent.mp4'}" in refused(tmp_path / "absent.mp4")


def test_an_empty_folder_is_refused(refused, tmp_path):
    (tmp_path / "frames").mkdir()
    assert f"--input_path {tmp_path / 'frames'}" in refused(tmp_path / "frames")


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_truncated_video_is_refused(refused, clip, share):
    content = clip.read_bytes()
    clip.write_bytes(content[: int(share * len(content))])
    assert f"--input_path {clip}" in refused(clip)


@pytest.mark.parametrize("damage", ["cut", "text"])
def test_a_corrupt_image_in_the_middle_is_refused(refused, tmp_path, damage):
    folder = write_folder(tmp_path / "frames", ["0.jpg", "1.jpg", "2.jpg"])
    content = (folder / "1.jpg").read_bytes()
    (folder / "1.jpg").write_bytes(content[: len(content) // 2] if damage == "cut" else b"no image")
    assert str(folder / "1.jpg") in refused(folder)


def test_images_of_different_sizes_are_refused(refused, tmp_path):
    folder = write_folder(tmp_path / "frames", ["0.jpg", "1.jpg"])
    Image.new("RGB", (64, 64)).save(folder / "2.jpg")
    assert str(folder / "2.jpg") in refused(folder)


@pytest.mark.parametrize(
    ("prompts", "words"),
    [((), ["--text_prompts"]), (("",), ["--text_prompts", "''"]), (("a dog", ' " '), ["--text_prompts"])],
)
def test_no_prompt_or_an_empty_one_is_refused(refused, clip, prompts, words):
    line = refused(clip, prompts=prompts)
    assert all(word in line for word in words)


class Payload:
    """Unpickled, it would create a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def write_checkpoint(path, kind, marker):
    if kind == "empty file":
        path.write_bytes(b"")
    elif kind == "empty dictionary":
        torch.save({}, path)
    elif kind == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    elif kind == "other tensors":
        torch.save({"head.weight": torch.zeros(2, 2)}, path)
    elif kind == "list":
        torch.save([torch.zeros(2, 2)], path)
    elif kind == "hostile":
        torch.save({"model": Payload(marker)}, path)
    elif kind == "hostile, old format":
        torch.save({"model": Payload(marker)}, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(Payload(marker), protocol=2))


def test_the_payload_of_these_tests_is_live(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "marker"))).close()
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("flag", ["--dit_ckpt", "--vae_ckpt"])
@pytest.mark.parametrize(
    "kind",
    [
        "empty file",
        "empty dictionary",
        "text",
        "other tensors",
        "list",
        "hostile",
        "hostile, old format",
        "bare pickle",
    ],
)
def test_a_bad_checkpoint_is_refused_and_never_executed(refused, clip, tmp_path, flag, kind):
    path, marker = tmp_path / "weights.pth", tmp_path / "marker"
    write_checkpoint(path, kind, marker)
    assert f"{flag} {path}" in refused(clip, flag, path)
    assert not marker.exists()


def test_a_missing_checkpoint_is_refused(refused, clip, tmp_path):
    assert f"--dit_ckpt {tmp_path / 'absent.pth'}" in refused(clip, "--dit_ckpt", tmp_path / "absent.pth")


@pytest.fixture
def toy_copy(tmp_path, toy_folder):
    """The toy folder again, its files linked, to take things out of."""
    copy = tmp_path / "copy"
    for file in toy_folder.rglob("*"):
        if file.is_file():
            link = copy / file.relative_to(toy_folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
    return copy


@pytest.mark.parametrize(
    ("removed", "named"),
    [
        ("vae", "vae/config.json"),
        ("vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"),
        ("text_encoder/model.safetensors", "text_encoder"),
        ("tokenizer/tokenizer.json", "tokenizer"),
        ("model_index.json", "model_index.json"),
    ],
)
def test_a_wan_folder_that_lacks_a_part_is_refused(refused, clip, toy_copy, removed, named):

    for file in sorted(toy_copy.rglob("*"), reverse=True):
        if str(file.relative_to(toy_copy)).startswith(removed):
            file.rmdir() if file.is_dir() else file.unlink()
    line = refused(clip, wan_path=toy_copy)
    assert "--wan_path" in line
    assert named in line


def test_a_missing_wan_folder_is_refused_with_the_download_command(refused, clip, tmp_path, monkeypatch):
    monkeypatch.setattr("models.hub.snapshot_download", no_hub)
    line = refused(clip, wan_path=tmp_path / "Wan2.1-T2V-1.3B-Diffusers")
    assert f"--wan_path {tmp_path}" in line
    assert "hf download" in line


def test_an_output_that_cannot_be_written_is_refused_before_any_work(refused, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(engine.demo.run, "load_flowrvs", lambda *_: pytest.fail("the weights were loaded"))
    (tmp_path / "file").write_text("here")
    assert str(tmp_path / "file" / "below") in refused(clip, output_dir=tmp_path / "file" / "below")


def test_results_that_would_land_in_the_input_folder_are_refused(refused, tmp_path):
    folder = write_folder(tmp_path / "frames", ["a.png"])
    assert "--output_dir" in refused(folder, output_dir=tmp_path)


def test_an_output_inside_the_input_folder_is_refused(refused, tmp_path):

    folder = write_folder(tmp_path / "frames", ["a.png"])
    assert "--output_dir" in refused(folder, output_dir=folder)


def test_a_folder_of_foreign_files_is_left_alone(refused, clip, tmp_path):
    (tmp_path / "out" / "clip").mkdir(parents=True)
    (tmp_path / "out" / "clip" / "thesis.txt").write_text("three years")
    assert "--output_dir" in refused(clip)


def test_the_result_of_another_input_is_left_alone(refused, demo, clip, tmp_path):
    demo(clip)
    other = write_folder(tmp_path / "clip", ["a.png"])
    line = refused(other)
    assert "--output_dir" in line
    assert "clip.mp4" in line


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_stranger_in_the_place_of_the_video_is_left_alone(refused, clip, tmp_path, kind):
    thesis = tmp_path / "out" / "clip_result.mp4"
    thesis = thesis if kind == "file" else thesis / "thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("three years")
    assert "--output_dir" in refused(clip)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--threshold", "0.9"], ["--threshold", "0.27", "0.73", "0.9"]),
        (["--threshold", "nan"], ["--threshold"]),
        (["--num_steps", "0"], ["--num_steps", "got 0"]),
        (["--use_dvi"], ["--use_dvi", "was removed"]),
        (["--max_frames", "0"], ["--max_frames", "got 0"]),
        (["--fps", "0"], ["--fps", "got 0"]),
        (["--prompt_batch", "0"], ["--prompt_batch"]),
        (["--window", "16"], ["--window", "4n+1", "got 16", "use 13 or 17"]),
        (["--window", "9", "--overlap", "5"], ["--overlap", "4 of 9", "got 5"]),
        (["--overlap", "4", "--window", "0"], ["--overlap", "--window"]),
        (["--overlap", "4"], ["--overlap 4", "--window"]),
        (["--vram", "10"], ["--vram", "'10'"]),
        (["--text_on", "disk"], ["--text_on", "'disk'"]),
        (["--num_step", "1"], ["--num_step", "did you mean '--num_steps'"]),
        (["--device", "gpu"], ["--device", "gpu"]),
        (["--device", "cuda:99"], ["--device cuda:99"]),
        (["--reso_h", "9", "--reso_w", "7"], ["--reso_w"]),
    ],
)
def test_a_bad_option_is_refused_by_name(refused, clip, flags, words):
    line = refused(clip, *flags)
    assert [word for word in words if word not in line] == []


# The process


def test_the_process_ends_with_1_and_a_single_line(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "inference_demo.py", "--input_path", "absent.mp4", "--text_prompts", "a dog"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("inference_demo.py: error: --input_path absent.mp4: no such file")
    assert names_in(tmp_path) == []


def test_a_video_longer_than_the_model_can_take_is_refused_before_it_fills_the_memory(refused, tmp_path, monkeypatch):
    shown = 0

    class Endless(FrameSource):
        path, files, num_frames = tmp_path / "gap.mkv", (), None

        def __iter__(self):
            nonlocal shown
            while True:
                shown += 1
                yield np.zeros((16, 16, 3), np.uint8)

    monkeypatch.setattr(engine.demo.run, "open_frames", lambda *_: Endless())
    (tmp_path / "gap.mkv").write_bytes(b"stands for a long video")
    assert "--max_frames 4093" in refused(tmp_path / "gap.mkv")
    assert 4094 <= shown <= 4094 + MAX_PENDING  # those already at work


def test_a_video_of_the_same_name_from_another_folder_is_not_written_over(demo, refused, tmp_path):
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        write_clip(tmp_path / folder / "clip.mp4", 2)
    demo(tmp_path / "first" / "clip.mp4")
    assert "another input" in refused(tmp_path / "second" / "clip.mp4")


def test_a_termination_signal_cleans_up(tmp_path, toy_folder):
    command = [sys.executable, str(ROOT / "inference_demo.py"), "--text_prompts", "a dog", "--wan_path"]
    command += [str(toy_folder), "--output_dir", str(tmp_path / "out"), "--input_path"]
    process = subprocess.Popen(
        [*command, str(write_clip(tmp_path / "clip.mp4", 120))], stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if "encode video" in line:
            break
    process.terminate()
    process.stderr.read()
    assert process.wait() == 143
    assert names_in(tmp_path) == ["clip.mp4"]
