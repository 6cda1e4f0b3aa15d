"""The demo on videos of several windows: bounded memory, agreement, going on where it stopped."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

import engine.demo.outputs
import engine.demo.run
import engine.demo.segment_video
import inference_demo
from engine.demo.delivery import staged_result
from engine.demo.inputs import Job
from engine.demo.result_folder import PartialResult
from util.errors import UserError
from util.frames import FrameSource
from util.video_writer import VideoWriter

ROOT = Path(__file__).parents[3]
HEIGHT, WIDTH = 32, 48


@pytest.fixture
def clip(tmp_path):
    """Eighteen frames."""
    frames = np.random.default_rng(0).integers(0, 256, (18, HEIGHT, WIDTH, 3), np.uint8)
    with VideoWriter(tmp_path / "clip.mp4", Fraction(10)) as writer:
        for frame in frames:
            writer.write(frame)
    return tmp_path / "clip.mp4"


def arguments(clip, wan, out, *flags, prompts=("a dog", "the red car", "a dog")):
    box = ["--reso_h", "16", "--reso_w", "24"]
    given = ["--input_path", clip, "--text_prompts", *prompts, "--wan_path", wan, "--output_dir", out, *box, *flags]
    return [str(argument) for argument in given]


@pytest.fixture
def demo(clip, toy_folder, tmp_path):
    def run(*flags, out="out", **options):
        inference_demo.main(arguments(clip, toy_folder, tmp_path / out, *flags, **options))
        return json.loads((tmp_path / out / "clip" / "result.json").read_text())

    return run


def files_of(folder):
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def without_times(record):
    return {name: value for name, value in record.items() if name != "seconds"}


WINDOWS = ("--window", 5, "--overlap", 1)  # from frames 0, 4, 8, 12 and, moved back, 13


# What is recorded


def test_windows_and_their_agreement_are_recorded_by_prompt(demo, caplog):
    record = demo(*WINDOWS)
    assert record["windows"] == [[0, 4], [4, 8], [8, 12], [12, 16], [13, 17]]
    assert [one["frames"] for one in record["agreement"]] == [[4, 4], [8, 8], [12, 12], [16, 16]]
    for one in record["agreement"]:
        assert len(one["iou"]) == 3
        assert all(0 <= value <= 1 for value in one["iou"])
        assert one["iou"][0] == one["iou"][2]
    low = sum(value < 0.5 for one in record["agreement"] for value in one["iou"])
    assert sum("disagree" in entry.message for entry in caplog.records) == low


def test_disagreement_below_a_half_is_a_warning_that_names_prompt_and_frames(caplog):
    engine.demo.segment_video._warn_of_disagreement(["a dog", "a cat"], [(4, 6), (8, 10)], [[0.5, 1.0], [0.9, 0.49]])
    (entry,) = caplog.records
    assert "'a cat' in frames 8 to 9 (IoU 0.49)" in entry.getMessage()


def test_a_window_as_long_as_the_video_gives_the_files_of_none(demo, tmp_path):
    whole = demo(out="whole")
    assert whole["windows"] == [[0, 17]]
    assert whole["agreement"] == []
    cut = demo("--window", 21, out="cut")
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")
    assert cut["mask_area"] == whole["mask_area"]


# Going on


@pytest.mark.parametrize("window", [0, 1, 3, 4])
def test_a_run_that_fails_after_any_window_goes_on_and_ends_with_the_same_files(
    demo, tmp_path, monkeypatch, capsys, window
):
    expected = demo(*WINDOWS, out="straight")
    save = PartialResult.save

    def fail_after(self, progress):
        save(self, progress)
        if len(progress.spans) == window + 1:
            raise RuntimeError("lightning")

    with monkeypatch.context() as patch:
        patch.setattr(PartialResult, "save", fail_after)
        with pytest.raises(RuntimeError):
            demo(*WINDOWS)
    partial = tmp_path / "out" / ".clip.partial"
    assert str(partial) in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".clip.partial"]
    encoded = []
    pipeline_type = engine.demo.run.load_flowrvs.__globals__["FlowRVS"]
    encode = pipeline_type.encode_video
    monkeypatch.setattr(pipeline_type, "encode_video", lambda *a: (encoded.append(1), encode(*a))[1])
    again = demo(*WINDOWS)
    assert len(encoded) == 4 - window
    assert without_times(again) == without_times(expected)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "straight")


def test_a_run_that_fails_over_its_overlays_goes_on_there(demo, tmp_path, monkeypatch):
    expected = demo(out="straight")
    with monkeypatch.context() as patch:
        patch.setattr(engine.demo.outputs, "draw_masks", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            demo()
    assert without_times(demo()) == without_times(expected)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["clip", "clip_result.mp4"]


def test_a_run_killed_with_9_goes_on(clip, toy_folder, demo, tmp_path):
    expected = demo(*WINDOWS, out="straight")
    flags = arguments(clip, toy_folder, tmp_path / "out", *WINDOWS)
    command = [sys.executable, str(ROOT / "inference_demo.py"), *flags]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    progress = tmp_path / "out" / ".clip.partial" / "progress.safetensors"
    deadline = time.monotonic() + 120
    while not progress.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert progress.is_file()
    assert without_times(demo(*WINDOWS)) == without_times(expected)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "straight")


def test_other_arguments_start_anew(demo, tmp_path, monkeypatch, capsys):
    expected = demo("--window", 9, prompts=("a cat",), out="straight")
    with monkeypatch.context() as patch:
        patch.setattr(engine.demo.outputs, "draw_masks", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            demo(*WINDOWS)
    assert without_times(demo("--window", 9, prompts=("a cat",))) == without_times(expected)
    assert "Starting again" in capsys.readouterr().err
    assert files_of(tmp_path / "out") == files_of(tmp_path / "straight")


def test_a_preset_that_no_longer_exists_starts_anew(tmp_path, capsys):
    partial = PartialResult(tmp_path)
    partial.describe({"input": "a"}, "enormous")
    (tmp_path / "progress.safetensors").touch()
    assert partial.begin({"input": "a"}, ["small", "enormous"]) == "enormous"
    assert partial.begin({"input": "a"}, ["small"]) is None
    assert "Starting again" in capsys.readouterr().err
    assert not partial.has_progress


def test_two_runs_at_one_place_are_refused(clip, tmp_path):
    job = Job(clip, ["a dog"])
    with pytest.raises(UserError, match="another run"), staged_result(tmp_path / "out", job):
        with staged_result(tmp_path / "out", job):
            pass
    assert not (tmp_path / "out").exists()


def test_damaged_progress_says_what_to_remove(tmp_path):
    (tmp_path / "progress.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match=f"remove {tmp_path}"):
        PartialResult(tmp_path).load()


# Memory


class Generated(FrameSource):
    """Frames made as they are asked for; counts them."""

    def __init__(self, num_frames):
        self.path, self.files, self.num_frames = Path("made.mp4"), (), num_frames

    def __iter__(self):
        for index in range(self.num_frames):
            yield np.full((HEIGHT, WIDTH, 3), index % 256, np.uint8)


def test_no_more_frames_or_logits_are_held_for_a_longer_video(pipeline, tmp_path, monkeypatch):
    """Counted when the last window is done: values of all tensors, and frames in the longest list of them."""
    options = engine.demo.segment_video.SegmentOptions(box_height=8, box_width=8, window=5)
    held = {}

    def save(self, progress):
        num_frames = int(self.folder.name)
        if progress.joint.stop == num_frames:
            gc.collect()
            objects = gc.get_objects()
            num_values = sum(one.numel() for one in objects if type(one) is torch.Tensor)
            lists = [len(one) for one in objects if type(one) is list and one and type(one[0]) is np.ndarray]
            held[num_frames] = (num_values, max(lists, default=0))

    monkeypatch.setattr(PartialResult, "save", save)
    for num_frames in (9, 41):
        (tmp_path / str(num_frames)).mkdir()
        partial = PartialResult(tmp_path / str(num_frames))
        engine.demo.segment_video.segment_video(
            pipeline, Generated(num_frames), ["a dog"], torch.zeros(1, 32, 64), partial, options
        )  # fmt: skip
    assert held[41][0] <= 1.01 * held[9][0]
    assert held[41][1] <= 5 + 4


# Out of memory


def test_out_of_memory_is_retried_once_with_less_and_the_smaller_preset_is_kept(demo, monkeypatch, capsys):
    load, embed = engine.demo.run.load_flowrvs, engine.demo.run.embed_now
    embedded = []

    def load_full(*given, **named):
        loaded = load(*given, **named)

        def run_out_once(*_):
            hook.remove()
            run_out()

        hook = loaded.pipeline.transformer.register_forward_pre_hook(run_out_once)
        return loaded

    def embed_counted(*given):
        embedded.append(given)
        return embed(*given)

    monkeypatch.setattr(engine.demo.run, "load_flowrvs", load_full)
    monkeypatch.setattr(engine.demo.run, "embed_now", embed_counted)
    record = demo()
    assert "WARNING: out of memory; starting again with --text_on gpu --window 161" in capsys.readouterr().err
    assert record["windows"] == [[0, 17]]
    assert len(embedded) == 1  # the captions did fit: they are not embedded again


def run_out(*_):
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_out_of_memory_twice_is_an_error_of_one_line(demo, monkeypatch, tmp_path):
    load = engine.demo.run.load_flowrvs

    def load_full(*given, **named):
        loaded = load(*given, **named)
        loaded.pipeline.transformer.register_forward_pre_hook(run_out)
        return loaded

    monkeypatch.setattr(engine.demo.run, "load_flowrvs", load_full)
    with pytest.raises(SystemExit, match="out of memory"):
        demo()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["gpu", "layers", "cpu"])
def test_the_place_of_the_text_encoder_changes_nothing(demo, tmp_path, place):
    record = demo("--text_on", place, "--max_frames", 1)
    assert record["text_on"] == place
    assert record["mask_area"] == demo("--max_frames", 1, out="plain")["mask_area"]
