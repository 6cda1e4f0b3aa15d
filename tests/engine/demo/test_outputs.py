"""What --save writes: each kind agrees with the mask files, frame by frame."""

import csv
import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import CLIPS, Encoding, index_of, write
from PIL import Image
from pycocotools.coco import COCO

import inference_demo
from engine.demo import delivery, outputs
from util.video import open_frames
from util.video_clock import make_clock
from util.video_writer import VideoWriter

ROOT = Path(__file__).parents[3]
EVERYTHING = ("overlay", "mask_video", "mask_video_exact", "cutout", "side_by_side", "rle", "csv")
PROMPTS = ("a dog", "the red car, left")


@pytest.fixture
def demo(tmp_path, toy_folder):
    """Runs the demo and returns the record of the first input."""

    def run(*inputs, flags=(), prompts=PROMPTS):
        arguments = ["--input_path", *inputs, *(["--text_prompts", *prompts] if prompts else [])]
        arguments += [
            "--wan_path",
            toy_folder,
            "--output_dir",
            tmp_path / "out",
            "--reso_h",
            24,
            "--reso_w",
            32,
            *flags,
        ]
        inference_demo.main([str(argument) for argument in arguments])
        file = tmp_path / "out" / Path(inputs[0]).stem / "result.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    return run


def noise_clip(path, size=(33, 47), num_frames=6, **how):
    frames = np.random.default_rng(1).integers(0, 256, (num_frames, *size, 3), np.uint8)
    with VideoWriter(path, how.pop("clock", Fraction(10)), **how) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def masks_in(folder, prompt=0):
    return [np.asarray(Image.open(file)) > 0 for file in sorted((folder / "masks" / str(prompt)).iterdir())]


def test_every_kind_is_written_and_agrees_with_the_masks(demo, tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    size = (33, 47)
    for index, frame in enumerate(np.random.default_rng(1).integers(0, 256, (5, *size, 3), np.uint8)):
        Image.fromarray(frame).save(folder / f"f{index}.png")
    record = demo(folder, flags=["--save", *EVERYTHING, "--threshold", 0.5])
    out = tmp_path / "out" / "frames"
    assert (tmp_path / "out" / "frames_result.mp4").is_file()
    assert len(list(open_frames(out / "side_by_side.mp4"))) == 5
    assert next(iter(open_frames(out / "side_by_side.mp4"))).shape == (34, 94, 3)
    for prompt in (0, 1):
        masks = masks_in(out, prompt)
        assert any(mask.any() and not mask.all() for mask in masks)
        for shown, mask in zip(open_frames(out / f"mask_video/{prompt}.mp4"), masks, strict=True):
            assert ((shown[:33, :47, 0] >= 128) == mask).all()
        with av.open(str(out / f"mask_video_exact/{prompt}.mkv")) as container:
            for shown, mask in zip(container.decode(video=0), masks, strict=True):
                assert (shown.to_ndarray() == 255 * mask).all()
        with av.open(str(out / f"cutout/{prompt}.mov")) as container:
            for shown, mask in zip(container.decode(video=0), masks, strict=True):
                assert ((shown.to_ndarray(format="rgba")[..., 3] > 127) == mask).all()
        assert record["mask_area"][prompt] == [int(mask.sum()) for mask in masks]
    check_tables(out, record)


def check_tables(out, record):
    coco = COCO(str(out / "rle.json"))
    assert [coco.cats[number]["name"] for number in sorted(coco.cats)] == list(PROMPTS)
    assert [coco.imgs[number]["file_name"] for number in sorted(coco.imgs)] == [f"f{index}.png" for index in range(5)]
    with (out / "masks.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    for prompt in (0, 1):
        for index, mask in enumerate(masks_in(out, prompt)):
            row = rows[5 * prompt + index]
            assert (row["sentence"], row["frame"], row["source_frame"]) == (PROMPTS[prompt], f"f{index}", str(index))
            assert float(row["time"]) == pytest.approx(index / 24, abs=1e-5)
            assert (row["present"], row["area"]) == (str(int(mask.any())), str(mask.sum()))
            annotations = coco.loadAnns(coco.getAnnIds(imgIds=[index + 1], catIds=[prompt + 1]))
            assert len(annotations) == int(mask.any())
            if mask.any():
                assert (coco.annToMask(annotations[0]).astype(bool) == mask).all()
                ys, xs = mask.nonzero()
                box = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
                assert annotations[0]["bbox"] == box
                assert [int(row[name]) for name in ("x", "y", "width", "height")] == box
                centre = [float(row["center_x"]), float(row["center_y"])]
                assert centre == pytest.approx([xs.mean(), ys.mean()], abs=0.01)
    assert record["source_frames"] == list(range(5))


def test_nothing_beside_masks_is_written_without_a_kind(demo, tmp_path):
    demo(noise_clip(tmp_path / "clip.mp4"), flags=["--save"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["clip"]
    assert sorted(path.name for path in (tmp_path / "out" / "clip").iterdir()) == ["masks", "result.json"]


def test_a_new_result_removes_the_outputs_that_it_does_not_have_and_nothing_else(demo, tmp_path):
    clip = noise_clip(tmp_path / "clip.mp4")
    demo(clip, flags=["--save", *EVERYTHING, "--save_fig"])
    (tmp_path / "out" / "clip" / "notes.txt").write_text("of the user")
    demo(clip, flags=["--save", "rle"])
    names = sorted(path.name for path in (tmp_path / "out" / "clip").iterdir())
    assert names == ["masks", "notes.txt", "result.json", "rle.json"]
    assert not (tmp_path / "out" / "clip_result.mp4").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ["--colors", "red", "#0f0"],
        ["--overlay_style", "contour"],
        *(pytest.param(one, marks=pytest.mark.slow) for one in (["--overlay_style", "spotlight"], ["--opacity", 0.9])),
        *(pytest.param(["--legend", place], marks=pytest.mark.slow) for place in ("off", "bottom")),
    ],
)
def test_each_look_changes_the_overlay_and_not_the_masks(demo, tmp_path, flags):
    clip = noise_clip(tmp_path / "clip.mp4", (96, 160), 2)
    demo(clip, flags=["--save_fig"])
    plain = np.asarray(Image.open(tmp_path / "out/clip/overlay/00000.jpg"))
    masks = masks_in(tmp_path / "out" / "clip")
    record = demo(clip, flags=["--save_fig", *flags])
    assert (np.asarray(Image.open(tmp_path / "out/clip/overlay/00000.jpg")) != plain).any()
    assert all((one == two).all() for one, two in zip(masks, masks_in(tmp_path / "out" / "clip"), strict=True))
    if flags[0] == "--colors":
        assert record["colours"] == [[255, 0, 0], [0, 255, 0]]


def test_mask_controls_change_the_mask_files_and_are_recorded(demo, tmp_path):
    clip = noise_clip(tmp_path / "clip.mp4")
    plain = demo(clip)
    grown = demo(clip, flags=["--grow", 3, "--fill_holes"])
    assert grown["mask_controls"] == {
        "min_area": 0, "keep_largest": False, "fill_holes": True, "smooth": 0, "grow": 3, "shrink": 0,
    }  # fmt: skip
    assert sum(map(sum, grown["mask_area"])) > sum(map(sum, plain["mask_area"]))
    assert grown["mask_area"][0] == [int(mask.sum()) for mask in masks_in(tmp_path / "out" / "clip")]


def test_what_is_in_no_frame_is_not_found(demo, tmp_path, capsys):
    clip = noise_clip(tmp_path / "clip.mp4")
    assert demo(clip)["found"] == [True, True]
    assert "not found" not in capsys.readouterr().out
    assert demo(clip, flags=["--min_area", 33 * 47 + 100])["found"] == [False, False]
    out = capsys.readouterr().out
    assert "not found: 'a dog'" in out
    assert "not found: 'the red car, left'" in out


@pytest.mark.parametrize("later", [["--save", "csv"], ["--save", "overlay"]])
def test_what_a_stopped_run_left_half_written_is_not_delivered(demo, tmp_path, monkeypatch, later):
    clip = noise_clip(tmp_path / "clip.mp4")
    writes = []

    def stop(self, pictures):
        writes.append(pictures)
        if len(writes) == 3:
            raise KeyboardInterrupt
        write_frame(self, pictures)

    write_frame = outputs._Videos.write
    monkeypatch.setattr(outputs._Videos, "write", stop)
    with pytest.raises(SystemExit):
        demo(clip, flags=["--save", *EVERYTHING, "--save_fig"])
    monkeypatch.undo()
    demo(clip, flags=later)
    names = {path.name for path in (tmp_path / "out" / "clip").iterdir()}
    assert names == {"masks", "result.json", *(["masks.csv"] if "csv" in later else [])}
    video = tmp_path / "out" / "clip_result.mp4"
    assert video.exists() == ("overlay" in later)
    assert not video.exists() or len(list(open_frames(video))) == 6


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_stopped_delivery_is_finished_by_the_next_start(demo, tmp_path, monkeypatch, at):
    clip = noise_clip(tmp_path / "clip.mp4")
    demo(clip, flags=["--save", "overlay", "csv"])
    moves = []

    def stop(source, target):
        moves.append(source)
        if len(moves) == at:
            raise KeyboardInterrupt
        move(source, target)

    move = delivery.move_over
    monkeypatch.setattr(delivery, "move_over", stop)
    with pytest.raises(SystemExit):
        demo(clip, flags=["--save", "overlay", "rle", "--grow", 2])
    monkeypatch.undo()
    with pytest.raises(SystemExit, match="other prompts"):  # first the stopped result is put in place
        demo(clip, prompts=("a cat",))
    record = json.loads((tmp_path / "out" / "clip" / "result.json").read_text())
    assert (record["save"], record["mask_controls"]["grow"]) == (["overlay", "rle"], 2)
    assert {path.name for path in (tmp_path / "out" / "clip").iterdir()} == {"masks", "result.json", "rle.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"clip", "clip_result.mp4"}
    assert [int(mask.sum()) for mask in masks_in(tmp_path / "out" / "clip")] == record["mask_area"][0]


def test_a_folder_with_another_programs_record_is_left_alone(demo, tmp_path, capsys):
    clip = noise_clip(tmp_path / "clip.mp4")
    target = tmp_path / "out" / "clip"
    target.mkdir(parents=True)
    (target / "result.json").write_text('{"score": 1}')
    assert "not a result of this program" in refusal(demo, capsys, clip, flags=["--overwrite"])
    assert (target / "result.json").read_text() == '{"score": 1}'


def test_a_video_of_the_user_beside_a_result_without_overlay_is_left_alone(demo, tmp_path, capsys):
    clip = noise_clip(tmp_path / "clip.mp4")
    demo(clip, flags=["--save", "csv"])
    (tmp_path / "out" / "clip_result.mp4").write_bytes(b"of the user")
    assert "not a result" in refusal(demo, capsys, clip)
    assert (tmp_path / "out" / "clip_result.mp4").read_bytes() == b"of the user"


# Times and sound


SHOWING_FRAMES = ("--save_fig", "--min_area", 99999, "--legend", "off")  # empty masks: overlays show the source


def shown_in(folder):
    """The frames of the source that overlay images show."""
    files = sorted((folder / "overlay").iterdir())
    return [index_of(np.asarray(Image.open(file))) for file in files]


AT_ONCE = ("variable rate mkv", "transport stream with AAC", "edit list that skips five frames")


@pytest.mark.parametrize(
    "name", [*AT_ONCE, *(pytest.param(name, marks=pytest.mark.slow) for name in CLIPS if name not in AT_ONCE)]
)
def test_the_result_has_a_mask_per_decoded_frame_its_times_and_its_sound(demo, tmp_path, name):
    clip = CLIPS[name](tmp_path)
    record = demo(clip.path, prompts=("a dog",), flags=SHOWING_FRAMES)
    assert len(masks_in(tmp_path / "out" / "clip")) == len(clip.frames) == record["num_frames"]
    result = open_frames(tmp_path / "out" / "clip_result.mp4")
    assert len(list(result)) == len(clip.frames)
    assert shown_in(tmp_path / "out" / "clip") == clip.frames
    times = [round(1000 * start) for start in result.clock.starts]
    assert times == pytest.approx(clip.times, abs=1)
    assert [1000 * time for time in record["times"]] == pytest.approx(clip.times, abs=1)
    assert (result.sound is not None) == clip.has_sound
    assert bool(record["sound"]) == clip.has_sound


def test_fps_is_recorded_with_the_frame_and_time_of_each_mask(demo, tmp_path):
    clip = CLIPS["variable rate mkv"](tmp_path)
    record = demo(clip.path, prompts=("a dog",), flags=["--fps", 5, *SHOWING_FRAMES])
    assert len(record["source_frames"]) == len(masks_in(tmp_path / "out" / "clip")) == 11
    assert record["times"] == [clip.times[frame] / 1000 for frame in record["source_frames"]]
    assert record["fps"] == 5
    assert shown_in(tmp_path / "out" / "clip") == record["source_frames"]


def test_flat_pixels_are_segmented_in_shape_and_the_result_keeps_them(demo, tmp_path):
    """PAL on a 16:9 screen: 112 x 90 pixels of 64:45 are shown as 159 x 90."""
    clip = noise_clip(tmp_path / "clip.mp4", (90, 112), pixel_aspect=Fraction(64, 45))
    record = demo(clip, flags=["--reso_h", 96, "--reso_w", 160])
    assert record["model_size"] == {"height": 88, "width": 160}
    assert record["size"] == {"height": 90, "width": 112}
    assert open_frames(tmp_path / "out" / "clip_result.mp4").pixel_aspect == Fraction(64, 45)


# Several inputs


@pytest.fixture
def three(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    return [noise_clip(folder / f"{name}.mp4", num_frames=number) for number, name in enumerate("abc", start=2)]


def counts_in(tmp_path, names="abc"):
    return {name: len(masks_in(tmp_path / "out" / name)) for name in names if (tmp_path / "out" / name).exists()}


def test_several_files_and_a_folder_of_them_give_a_result_each(demo, tmp_path, three):
    demo(three[0], three[2])
    assert counts_in(tmp_path) == {"a": 2, "c": 4}
    demo(three[0].parent, flags=["--skip_done"])
    assert counts_in(tmp_path) == {"a": 2, "b": 3, "c": 4}


@pytest.mark.slow
def test_several_videos_give_the_masks_of_single_runs(demo, tmp_path, three):
    demo(three[0].parent)
    together = {path: path.read_bytes() for path in (tmp_path / "out").glob("*/masks/*/*.png")}
    for clip in three:
        demo(clip)
    assert {path: path.read_bytes() for path in (tmp_path / "out").glob("*/masks/*/*.png")} == together


@pytest.mark.parametrize("kind", ["csv", "csv with a byte-order mark", "jsonl"])
def test_a_list_groups_the_sentences_of_a_video(demo, tmp_path, three, kind):
    rows = [("a.mp4", "a dog"), ("b.mp4", "the cat, asleep"), ("a.mp4", "the red car")]
    if kind == "jsonl":
        text = "".join(json.dumps({"video": video, "sentence": text}) + "\n" for video, text in rows)
    else:
        text = "video,sentence\n" + "".join(f'{video},"{text}"\n' for video, text in rows)
    file = three[0].parent / f"list.{kind[:5].split()[0]}"
    file.write_text(text, encoding="utf-8-sig" if "mark" in kind else "utf-8")
    demo(file, prompts=None)
    for name, prompts in (("a", ["a dog", "the red car"]), ("b", ["the cat, asleep"])):
        assert json.loads((tmp_path / "out" / name / "result.json").read_text())["prompts"] == prompts


def test_a_video_that_fails_is_told_at_the_end_and_the_others_are_written(demo, tmp_path, three, capsys):
    three[1].write_bytes(three[1].read_bytes()[:500])
    with pytest.raises(SystemExit) as caught:
        demo(three[0].parent)
    assert "1 of 3 videos failed" in caught.value.code
    assert str(three[1]) in caught.value.code
    assert counts_in(tmp_path) == {"a": 2, "c": 4}
    assert "WARNING" in capsys.readouterr().err


def test_a_fault_of_ours_ends_no_other_video(demo, tmp_path, three, monkeypatch, capsys):
    def fail_for_the_first(folder, source, *more):
        if source.path == three[0]:
            raise AttributeError("a bug")
        return write_outputs(folder, source, *more)

    write_outputs = outputs.write_outputs
    monkeypatch.setattr("engine.demo.run.write_outputs", fail_for_the_first)
    with pytest.raises(SystemExit, match="1 of 3 videos failed"):
        demo(three[0].parent)
    assert "AttributeError: a bug" in capsys.readouterr().err
    assert counts_in(tmp_path) == {"b": 3, "c": 4}


def test_overlays_beside_the_videos_are_no_input(demo, tmp_path, three):
    for _ in range(2):
        demo(three[0].parent, flags=["--output_dir", three[0].parent])
    assert sorted(path.name for path in three[0].parent.glob("*.mp4")) == sorted(
        f"{name}{end}.mp4" for name in "abc" for end in ("", "_result")
    )


def test_a_link_gives_its_own_name_to_the_result(demo, tmp_path, three):
    (tmp_path / "link.mp4").symlink_to(three[0])
    demo(tmp_path / "link.mp4")
    assert counts_in(tmp_path, ["link"]) == {"link": 2}


def test_skip_done_runs_what_has_other_prompts_or_no_result(demo, tmp_path, three, capsys):
    demo(three[0])
    before = (tmp_path / "out" / "a" / "result.json").read_bytes()
    demo(*three, flags=["--skip_done"])
    assert "1 of 3 results exist" in capsys.readouterr().out
    assert (tmp_path / "out" / "a" / "result.json").read_bytes() == before
    demo(*three, flags=["--skip_done"])  # all done: not even the weights are needed


def refusal(demo, capsys, *inputs, **options):
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        demo(*inputs, **options)
    line = caught.value.code if isinstance(caught.value.code, str) else capsys.readouterr().err.strip()
    assert "\n" not in line
    return line


def test_two_inputs_of_one_name_are_refused_before_any_work(demo, tmp_path, three, capsys, monkeypatch):
    monkeypatch.setattr("engine.demo.run.load_flowrvs", lambda *_, **__: pytest.fail("the weights were loaded"))
    (tmp_path / "a.avi").write_bytes(b"video")
    line = refusal(demo, capsys, three[0], tmp_path / "a.avi")
    assert "'a'" in line
    assert not (tmp_path / "out").exists()


def test_a_folder_of_images_and_videos_is_refused(demo, tmp_path, three, capsys):
    Image.new("RGB", (8, 8)).save(three[0].parent / "photo.jpg")
    line = refusal(demo, capsys, three[0].parent)
    assert "photo.jpg" in line
    assert "a.mp4" in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("video\na.mp4\n", ["sentence"]),
        ("video,sentence\nabsent.mp4,a dog\n", ["row 2", "absent.mp4"]),
        ("video,sentence\na.mp4,\n", ["row 2", "sentence"]),
        ("video,sentence\n,a dog\n", ["row 2", "'video'"]),
        ("video;sentence\na.mp4;a dog\n", ["commas"]),
        ("video,sentence\na.mp4,one, two\n", ["row 2", "double quotes"]),
        ("video,sentence\n", ["got none"]),
        ("", ["video, sentence"]),
    ],
)
def test_a_wrong_list_is_refused_by_row(demo, three, capsys, text, words):
    file = three[0].parent / "list.csv"
    file.write_text(text)
    line = refusal(demo, capsys, file, prompts=None)
    assert [word for word in [str(file), *words] if word not in line] == []


def test_a_list_and_prompts_are_refused_together(demo, three, capsys):
    (three[0].parent / "list.csv").write_text("video,sentence\na.mp4,a dog\n")
    assert "--text_prompts" in refusal(demo, capsys, three[0].parent / "list.csv")


@pytest.mark.parametrize("prompts", [("the", "red", "ball"), ("dog", "on", "grass")])
def test_forgotten_quotes_are_seen(demo, three, capsys, prompts):
    assert f'"{" ".join(prompts)}"' in refusal(demo, capsys, three[0], prompts=prompts)


def test_several_prompts_of_one_word_are_fine(demo, tmp_path, three):
    assert demo(three[0], prompts=("dog", "cat"))["prompts"] == ["dog", "cat"]


@pytest.mark.parametrize("flag", ["--prompts", "--text_prompt", "--input"])
def test_a_mistyped_flag_is_named_and_not_the_one_that_is_missing(capsys, flag):
    with pytest.raises(SystemExit):
        inference_demo.main([flag, "a dog"])
    line = capsys.readouterr().err
    assert f"unrecognized argument: {flag}" in line
    assert "did you mean" in line


# Names


@pytest.mark.parametrize("name", ["...mp4", "..mp4"])
def test_a_name_never_leads_out_of_the_folder_of_results(demo, tmp_path, capsys, name):
    planted = tmp_path / "masks"
    planted.mkdir()
    (planted / "thesis.txt").write_text("three years")
    clip = noise_clip(tmp_path / "clip.mp4").rename(tmp_path / name)
    assert "rename" in refusal(demo, capsys, clip)
    assert (planted / "thesis.txt").read_text() == "three years"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "masks"])


@pytest.mark.parametrize("name", ["Füße 狗 😀.mp4", "a b'c\"d.mp4", "-rf.mp4", "$(touch x).mp4", "a\nb.mp4", ".mp4"])
def test_strange_names_give_a_result_of_that_name(demo, tmp_path, name):
    clip = noise_clip(tmp_path / "clip.mp4", num_frames=1).rename(tmp_path / name)
    record = demo(clip)
    assert record["input"] == str(clip)
    stem = Path(name).stem
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([stem, f"{stem}_result.mp4"])


def test_names_that_are_no_utf8_reach_every_table(demo, tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    Image.new("RGB", (48, 32), "red").save(Path(os.fsdecode(os.fsencode(folder) + b"/\xe9.png")))
    record = demo(folder, flags=["--save", *EVERYTHING])
    assert record["num_frames"] == 1
    assert "caf\ufffd" in record["input"]
    assert "\ufffd.png" in (tmp_path / "out" / folder.name / "rle.json").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_terminal_without_utf8_does_not_end_a_finished_run(tmp_path, toy_folder):
    clip = write(tmp_path / "clip.mp4", 2, Encoding()).rename(tmp_path / "狗.mp4")
    command = [sys.executable, ROOT / "inference_demo.py", "--input_path", clip, "--text_prompts", "狗 läuft"]
    command += ["--wan_path", toy_folder, "--output_dir", tmp_path / "out", "--reso_h", "24", "--reso_w", "32"]
    command += ["--min_area", "999999"]  # so that the prompt is printed too
    environment = {"PATH": "/usr/bin:/bin", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
    assert b"Wrote" in done.stdout
    assert (tmp_path / "out" / "狗_result.mp4").is_file()


def test_a_variable_rate_reaches_every_video(demo, tmp_path):
    clock = make_clock([Fraction(time, 1000) for time in (0, 30, 500, 520)], Fraction(1, 10), Fraction(25), Fraction(9))
    clip = noise_clip(tmp_path / "clip.mp4", (32, 48), 4, clock=clock)
    demo(clip, flags=["--save", *EVERYTHING, "--cutout_format", "webm"])
    out = tmp_path / "out"
    videos = [out / "clip_result.mp4", *(out / "clip").glob("*/*.m*"), *(out / "clip").glob("*.mp4")]
    videos += (out / "clip").glob("cutout/*.webm")
    assert len(videos) == 1 + 4 + 1 + 2
    for video in videos:
        source = open_frames(video)
        assert len(list(source)) == 4
        assert [round(1000 * start) for start in source.clock.starts] == [0, 30, 500, 520]
