"""The checker of datasets: a sound one is fine, every defect is listed with its file, several at once all are."""

import json
import subprocess
import sys
import threading

import mini_datasets as mini
import mini_mevis
import numpy as np
import pytest
from PIL import Image

from datasets.check.__main__ import main
from datasets.check.report import KINDS, SHOWN
from datasets.registry import CHECKED, TRAINED

GRADES = ("errors", "warnings", "notes")


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the checker; returns its exit code, the splits of its report, and what it printed."""

    def call(dataset, root, *more, folder=None):
        output = tmp_path / "report.json"
        code = 0
        try:
            main(["--dataset_file", dataset, f"--{folder or dataset}_path", str(root), "--output", str(output), *more])
        except SystemExit as end:
            code = end.code
        report = json.loads(output.read_text())
        assert report["dataset"] == dataset
        return code, report["splits"], capsys.readouterr().out

    return call


def found(report, grade="errors"):
    """{(kind, place)} of a split."""
    return {(finding["kind"], finding["place"]) for finding in report[grade]}


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def cut(file, share=0.7):
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])


# -- MeViS -------------------------------------------------------------------------------------------------------


@pytest.fixture
def mevis(tmp_path, monkeypatch):
    """valid_u with sorted frames and an unseen object."""
    monkeypatch.setattr(mini_mevis, "FRAMES", sorted(mini_mevis.FRAMES))
    mini_mevis.write(tmp_path / "mevis")
    return tmp_path / "mevis"


@pytest.fixture
def meta(mevis):
    return mevis / "valid_u" / "meta_expressions.json"


@pytest.fixture
def pictures(mevis):
    return mevis / "valid_u" / "JPEGImages"


def show_every_object(root):
    edit(root / "valid_u" / "mask_dict.json", lambda masks: masks.update({"3": masks["0"]}))


def test_a_sound_mevis_is_fine(run, mevis, meta):
    show_every_object(mevis)
    code, splits, text = run("mevis", mevis)
    assert code == 0
    report = splits["valid_u"]
    assert {key: report[key] for key in ("videos", "expressions", "frames")} == {
        "videos": 2, "expressions": 5, "frames": 6
    }  # fmt: skip
    assert (report["errors"], report["warnings"]) == ([], [])
    assert found(report, "notes") == {("no target", f"{meta}: b/10"), ("repeated sentence", f"{meta}: a/1")}
    assert "mevis valid_u: 2 videos, 5 expressions, 6 frames: fine\n" in text
    assert "0 errors, 0 warnings, 2 notes" in text


def test_warnings_leave_the_exit_code_0(run, mevis, meta):
    edit(meta, lambda content: content["videos"]["a"]["frames"].reverse())
    code, splits, text = run("mevis", mevis)
    assert code == 0
    assert found(splits["valid_u"], "warnings") == {("frame order", f"{meta}: a"), ("unseen object", f"{meta}: a/1")}
    assert "our readers sort them" in text and "no frame shows object 3" in text
    assert "fine" not in text


def test_several_defects_at_once_are_all_listed(run, mevis, meta, pictures):
    (pictures / "a" / "00000.jpg").unlink()
    cut(pictures / "a" / "00002.jpg")
    mini.write_picture(pictures / "b" / "00001.jpg", size=(20, 24))
    (pictures / "b" / "00002.jpg").write_text("no picture")
    edit(meta, lambda content: content["videos"]["b"]["expressions"]["1"].update(exp=" \n\t"))
    edit(mevis / "valid_u" / "mask_dict.json", lambda masks: masks["2"].pop())
    edit(
        mevis / "valid_u" / "mask_dict.json",
        lambda masks: masks["1"].__setitem__(1, mini_mevis.encode(np.ones((9, 7), bool))),
    )
    code, splits, text = run("mevis", mevis)
    assert code == 1
    expected = {
        ("missing frame", str(pictures / "a" / "00000.jpg")),
        ("broken frame", str(pictures / "a" / "00002.jpg")),
        ("broken frame", str(pictures / "b" / "00002.jpg")),
        ("frame size", str(pictures / "b" / "00001.jpg")),
        ("empty expression", f"{meta}: b/1"),
        ("number of masks", "a/00000"),
        ("mask size", "b/00001"),
    }
    # Of the two readable frames of b the first tells the size.
    assert found(splits["valid_u"]) == expected
    assert len(splits["valid_u"]["errors"]) == len(expected)
    for _, place in expected:
        assert place in text
    for finding in splits["valid_u"]["errors"]:
        assert finding["message"] in text
    assert "annotation 2 of a must list 3 masks, one per frame, got 2" in text
    assert f"{mevis / 'valid_u' / 'mask_dict.json'}: annotation 1 has size (9, 7)" in text
    assert "is 24 x 20, most frames of its video are 56 x 40" in text


def test_a_picture_filled_up_with_zeros_is_found(run, mevis, pictures):
    file = pictures / "a" / "00001.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (*mini_mevis.SIZE, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, quality=95)  # decoders take the zeros for short codes, and are content
    size = file.stat().st_size
    cut(file)
    file.write_bytes(file.read_bytes().ljust(size, b"\0"))
    code, splits, _ = run("mevis", mevis)
    assert (code, found(splits["valid_u"])) == (1, {("broken frame", str(file))})


@pytest.mark.parametrize(
    ("name", "text", "kind", "message"),
    [
        ("meta_expressions.json", '{"videos": {', "malformed", "not valid JSON"),
        ("meta_expressions.json", '{"videos": {"a": {"expressions": {}}}}', "malformed", "lacks the key 'frames'"),
        ("meta_expressions.json", '{"videos": {"a": 1, "b": 2, "a": 3}}', "duplicate key", "names 'a' twice"),
        ("mask_dict.json", '{"0": [null], "0": [null]}', "duplicate key", "annotation 0 stands in it twice"),
        ("mask_dict.json", '{"0": [{"size": [4, 4], "counts": "1"}]}', "malformed", "runs of an RLE"),
        ("meta_expressions.json", None, "missing file", "is missing; give the folder"),
    ],
)
def test_annotations_that_the_reader_refuses_end_their_split_alone(run, mevis, name, text, kind, message):
    show_every_object(mevis)
    mini_mevis.write(mevis, "train")
    file = mevis / "train" / name
    file.unlink() if text is None else file.write_text(text)
    code, splits, printed = run("mevis", mevis)
    assert code == 1
    (finding,) = splits["train"]["errors"]
    assert (finding["kind"], splits["train"]["videos"]) == (kind, 0)
    assert finding["place"].startswith(str(file)) and message in finding["message"]
    assert finding["place"] in printed and "mevis valid_u: 2 videos, 5 expressions, 6 frames: fine" in printed
    assert splits["valid_u"]["errors"] == []
    assert run("mevis", mevis, "--split", "valid_u")[0] == 0


def test_masks_that_must_be_there_are_missed_and_others_are_noted(run, mevis, meta):
    (mevis / "valid_u" / "mask_dict.json").unlink()
    code, splits, _ = run("mevis", mevis)
    assert (code, found(splits["valid_u"])) == (1, {("missing mask", str(meta))})
    (mevis / "valid_u").rename(mevis / "valid")
    code, splits, text = run("mevis", mevis)
    assert code == 0
    assert ("masks not checked", str(mevis / "valid" / "meta_expressions.json")) in found(splits["valid"], "notes")
    assert "6 frames: fine" in text


def test_masks_of_a_video_without_a_frame_are_said_to_be_unchecked(run, mevis, meta, pictures):
    for file in (pictures / "b").iterdir():
        file.unlink()
    code, splits, _ = run("mevis", mevis)
    assert (code, len(splits["valid_u"]["errors"])) == (1, 3)
    assert ("masks not checked", f"{meta}: b") in found(splits["valid_u"], "notes")


def test_long_lists_are_cut_in_the_summary_and_whole_in_the_report(run, mevis, meta, pictures):
    names = [f"{number:05d}" for number in range(40)]
    edit(meta, lambda content: content["videos"]["a"].update(frames=names))
    code, splits, text = run("mevis", mevis)
    assert code == 1
    missing = [one for one in splits["valid_u"]["errors"] if one["kind"] == "missing frame"]
    assert [one["place"] for one in missing] == [str(pictures / "a" / f"{name}.jpg") for name in names[3:]]
    assert "  error, missing frame: 37\n" in text
    assert f"    and {37 - SHOWN} more; --output FILE lists all\n" in text
    assert text.count("download or unpack") == SHOWN


def test_summary_and_report_agree(run, mevis, meta, pictures):
    (pictures / "a" / "00000.jpg").unlink()
    edit(meta, lambda content: content["videos"]["a"]["frames"].reverse())
    _, splits, text = run("mevis", mevis)
    counts = [len(splits["valid_u"][grade]) for grade in GRADES]
    assert f"{counts[0]} error, {counts[1]} warnings, {counts[2]} notes" in text
    for grade in GRADES:
        for finding in splits["valid_u"][grade]:
            assert f"{finding['place']}: {finding['message']}" in text
            assert KINDS[finding["kind"]] == grade
            assert f"  {grade[:-1]}, {finding['kind']}: " in text


def test_toy_is_checked_as_mevis_is(run, mevis):
    code, splits, _ = run("toy", mevis)
    assert (code, list(splits)) == (0, ["valid_u"])


def test_frames_of_test_without_sentences_are_no_split(run, mevis):
    (mevis / "test" / "JPEGImages").mkdir(parents=True)
    assert list(run("mevis", mevis)[1]) == ["valid_u"]


# -- Refer-YouTube-VOS, and the others that keep masks in PNGs -----------------------------------------------------


@pytest.fixture
def ytvos(tmp_path, monkeypatch):
    monkeypatch.setattr(mini, "FRAMES", sorted(mini.FRAMES))
    return mini.write_ytvos(tmp_path / "ytvos")


def test_a_sound_ytvos_is_fine(run, ytvos):
    code, splits, text = run("ytvos", ytvos.root)
    assert (code, list(splits)) == (0, ["train", "valid"])  # of test there are sentences alone
    assert all(splits[name]["errors"] + splits[name]["warnings"] == [] for name in splits)
    assert {key: splits["train"][key] for key in ("videos", "expressions", "frames")} == {
        "videos": 2, "expressions": 6, "frames": 6
    }  # fmt: skip
    assert ("masks not checked", str(ytvos.valid)) in found(splits["valid"], "notes")
    assert text.count(": fine") == 2


def test_defects_of_ytvos_are_all_listed(run, ytvos):
    images, annotations = ytvos.root / "train" / "JPEGImages", ytvos.root / "train" / "Annotations"
    (images / "v1" / "00005.jpg").unlink()
    cut(images / "v-2" / "00010.jpg", 0.5)
    (annotations / "v1" / "00000.png").unlink()
    cut(annotations / "v1" / "00010.png")
    mini.write_palette(annotations / "v-2" / "00000.png", np.ones((8, 8), np.uint8))
    code, splits, _ = run("ytvos", ytvos.root, "--split", "train")
    assert code == 1
    assert found(splits["train"]) == {
        ("missing frame", str(images / "v1" / "00005.jpg")),
        ("broken frame", str(images / "v-2" / "00010.jpg")),
        ("missing mask", "v1/00000"),
        ("broken mask", "v1/00010"),
        ("mask size", "v-2/00000"),
    }
    assert len(splits["train"]["errors"]) == 5  # though three expressions and two objects share these files
    for finding in splits["train"]["errors"]:
        if "mask" in finding["kind"]:
            assert str(annotations / f"{finding['place']}.png") in finding["message"]


def test_an_object_that_no_png_holds_is_a_warning(run, ytvos):
    edit(ytvos.train, lambda content: content["videos"]["v1"]["expressions"]["1"].update(obj_id="7"))
    edit(ytvos.train, lambda content: content["videos"]["v-2"]["frames"].reverse())
    code, splits, _ = run("ytvos", ytvos.root)
    assert code == 0
    assert found(splits["train"], "warnings") == {
        ("unseen object", f"{ytvos.train}: v1/1"),
        ("frame order", f"{ytvos.train}: v-2"),
    }


def test_davis_goes_by_either_name_of_valid(run, tmp_path):
    root = mini.write_davis(tmp_path / "davis", folder="val", meta_folder="val").root
    code, splits, _ = run("davis", root)
    assert (code, list(splits), splits["valid"]["frames"]) == (0, ["valid"], 6)


def test_long_rvos_misses_the_folder_of_an_object(run, tmp_path):
    data = mini.write_long_rvos(tmp_path / "long")
    assert run("long_rvos", data.root)[0] == 0
    folder = data.root / "valid" / "Annotations" / "v1" / "2"
    folder.rename(folder.with_name("9"))
    code, splits, _ = run("long_rvos", data.root)
    (finding,) = splits["valid"]["errors"]
    assert (code, finding["kind"]) == (1, "missing mask") and str(folder) in finding["message"]


# -- RefCOCO -----------------------------------------------------------------------------------------------------


@pytest.fixture
def refcoco(tmp_path):
    return mini.write_refcoco(tmp_path / "coco")


@pytest.fixture
def run_refcoco(run, refcoco):
    return lambda *more: run("refcoco+", refcoco.root, *more, folder="coco")


def test_a_sound_refcoco_is_fine(run_refcoco):
    code, splits, text = run_refcoco()
    assert (code, list(splits)) == (0, ["testA"])
    report = {"videos": 4, "expressions": 4, "frames": 4, "errors": [], "warnings": [], "notes": []}
    assert splits["testA"] == report
    assert "refcoco+ testA: 4 videos, 4 expressions, 4 frames: fine" in text


def test_defects_of_refcoco_are_all_listed(run_refcoco, refcoco):
    pictures = [refcoco.root / "train2014" / f"COCO_train2014_{number:012d}.jpg" for number in range(4)]
    pictures[0].unlink()
    cut(pictures[1])
    mini.write_picture(pictures[2], size=(16, 16))

    def change(content):
        content["images"][3]["caption"] = "\u3000 "
        content["images"].append({**content["images"][0], "id": "0b"})  # another sentence of the same picture
        content["annotations"].append({**content["annotations"][3], "image_id": "0b"})
        for number in (5, 6):
            content["images"].append({**content["images"][0], "id": number})
            content["annotations"].append({**content["annotations"][3], "image_id": number, "segmentation": [[1]]})

    edit(refcoco.source, change)
    code, splits, text = run_refcoco()
    assert code == 1
    expected = {
        ("malformed", str(refcoco.source)),
        ("missing frame", str(pictures[0])),
        ("broken frame", str(pictures[1])),
        ("mask size", f"2/{pictures[2].stem}"),
        ("empty expression", f"{refcoco.source}: 3/0"),
    }
    assert found(splits["testA"]) == expected
    assert len(splits["testA"]["errors"]) == len(expected) + 1  # two sentences are malformed
    assert splits["testA"]["expressions"] == 5
    assert "image 5: a polygon must" in text and "image 6: a polygon must" in text
    assert str(refcoco.source) in text and all(str(picture) in text for picture in pictures[:2])


def test_a_mask_without_pixels_is_a_warning(run_refcoco, refcoco):
    edit(refcoco.source, lambda content: content["annotations"][0].update(segmentation=[[1, 1, 2, 2]]))
    code, splits, _ = run_refcoco()
    assert (code, found(splits["testA"], "warnings")) == (0, {("unseen object", f"{refcoco.source}: 3/0")})


# -- A2D and JHMDB -----------------------------------------------------------------------------------------------


def test_every_clip_of_a2d_is_decoded_and_every_missing_one_listed(run, tmp_path):
    data = mini.write_a2d(tmp_path / "a2d")
    code, splits, _ = run("a2d", data.root)
    assert (code, splits["test"]["videos"], splits["test"]["frames"]) == (0, 2, 10)
    edit(data.source, lambda rows: rows.extend([["x", "gone", 1, 1], ["y", "gone", 2, 1], ["z", "away", 1, 1]]))
    clip = data.root / "Release" / "clips320H" / "other.mp4"
    content = clip.read_bytes()
    start = content.index(b"mdat") + 64  # behind the first frame, which the header is read with
    clip.write_bytes(content[:start] + bytes(100) + content[start + 100 :])
    (data.folder / "-clip" / "00005.h5").unlink()
    code, splits, _ = run("a2d", data.root)
    gone = {("missing file", str(clip.with_name(f"{name}.mp4"))) for name in ("gone", "away")}
    assert code == 1 and len(splits["test"]["errors"]) == 4
    assert found(splits["test"]) == gone | {("broken frame", str(clip)), ("missing mask", "-clip/00005")}


def test_defects_of_jhmdb_are_all_listed(run, tmp_path):
    data = mini.write_jhmdb(tmp_path / "jhmdb")
    code, splits, _ = run("jhmdb", data.root)
    assert (code, list(splits), splits["all"]["frames"]) == (0, ["all"], 6)
    frames = data.root / "Rename_Images"
    (frames / "wave" / "a_wave" / "00002.png").unlink()
    cut(frames / "jump" / "b_jump" / "00001.png")
    data.mat.write_bytes(b"nothing")
    code, splits, _ = run("jhmdb", data.root)
    assert code == 1
    assert found(splits["all"]) == {
        ("missing frame", str(frames / "wave" / "a_wave" / "00002.png")),
        ("broken frame", str(frames / "jump" / "b_jump" / "00001.png")),
        ("broken mask", "b_jump/00001"),
    }


# -- the command -------------------------------------------------------------------------------------------------


def test_every_single_dataset_of_the_registry_can_be_checked():
    assert set(CHECKED) == set(TRAINED)


def test_a_missing_folder_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--dataset_file", "ytvos", "--ytvos_path", str(tmp_path / "none")])
    assert str(end.value).endswith(f"--ytvos_path {tmp_path / 'none'}: no such folder; give the folder of the dataset")


@pytest.mark.parametrize("more", [[], ["--split", "train"]])
def test_a_folder_without_the_split_is_one_line(tmp_path, more):
    with pytest.raises(SystemExit) as end:
        main(["--dataset_file", "mevis", "--mevis_path", str(tmp_path), *more])
    assert f"{tmp_path / 'train'}" in str(end.value) and "\n" not in str(end.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset_file", "mevis", "--split", "testA"], "mevis has the splits train, valid_u, valid, test"),
        (["--dataset_file", "joint"], "invalid choice"),
        ([], "--dataset_file"),
    ],
)
def test_a_wrong_command_line_ends_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_an_output_that_cannot_be_is_refused_before_the_work(mevis, tmp_path, capsys):
    for output in (tmp_path, tmp_path / "none" / "report.json"):
        with pytest.raises(SystemExit, match=r"--output .*must be a file"):
            main(["--dataset_file", "mevis", "--mevis_path", str(mevis), "--output", str(output)])
    assert "valid_u" not in capsys.readouterr().out


def test_without_output_nothing_is_written_and_converted_masks_go_to_the_cache(mevis, tmp_path, capsys):
    before = set(tmp_path.rglob("*"))
    main(["--dataset_file", "mevis", "--mevis_path", str(mevis), "--cache_dir", str(tmp_path / "cache")])
    assert all((tmp_path / "cache") in (file, *file.parents) for file in set(tmp_path.rglob("*")) - before)
    assert "Wrote" not in capsys.readouterr().out


def test_videos_are_checked_beside_each_other(mevis, monkeypatch):
    meeting = threading.Barrier(2, timeout=10)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    met = []

    def check_video(split, expressions):
        met.append(meeting.wait())
        return []

    monkeypatch.setattr("datasets.check.videos.check_video", check_video)
    main(["--dataset_file", "mevis", "--mevis_path", str(mevis)])
    assert sorted(met) == [0, 1], "two videos were checked at the same time"


def test_the_checker_needs_no_torch():
    script = "import sys, datasets.check; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
