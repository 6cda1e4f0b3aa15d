"""Submission zips: the servers' names, every mask checked, the same bytes each time."""

import io
import shutil
import zipfile
from pathlib import Path

import mini_datasets
import mini_mevis
import numpy as np
import predictions
import pytest
from PIL import Image

import evaluate

NAMES = sorted(mini_mevis.FRAMES)


@pytest.fixture
def data(tmp_path):
    """A split that hides its masks, and predictions of it."""
    truth = mini_mevis.write(tmp_path / "data", "valid")
    (tmp_path / "data" / "valid" / "mask_dict.json").unlink()
    for (video, exp_id), masks in truth.items():
        predictions.write(tmp_path / "pred" / "Annotations" / video / exp_id, NAMES, masks)
    return truth


def run(tmp_path, *arguments, out="mevis.zip"):
    places = ["--mevis_path", str(tmp_path / "data"), "--pred", str(tmp_path / "pred"), "--zip", str(tmp_path / out)]
    evaluate.main(["--dataset", "mevis", "--split", "valid", *places, *arguments])
    return tmp_path / out


def refused(tmp_path, *arguments, out="mevis.zip"):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as caught:
        run(tmp_path, *arguments, out=out)
    assert sorted(tmp_path.iterdir()) == before  # no zip, no part of one
    return caught.value.code


def test_mevis_has_the_videos_at_the_root(tmp_path, data, capsys):
    with zipfile.ZipFile(run(tmp_path)) as archive:
        names = archive.namelist()
        assert sorted(names) == sorted(f"{v}/{e}/{name}.png" for v, e in data for name in NAMES)
        for (video, exp_id), masks in data.items():
            for name, mask in zip(NAMES, masks, strict=True):
                image = Image.open(io.BytesIO(archive.read(f"{video}/{exp_id}/{name}.png")))
                assert image.mode == "L"
                assert (np.asarray(image) == mask * 255).all()
    assert "2 videos, 5 expressions, 15 masks" in capsys.readouterr().out


def test_ytvos_has_a_top_folder_and_the_videos_of_valid_alone(tmp_path):
    root = mini_datasets.write_ytvos(tmp_path / "ytvos").root
    for video in ("v1", "v-2"):
        for exp_id in ("0", "1", "10"):
            folder = tmp_path / "pred" / video / exp_id
            predictions.write(folder, mini_datasets.FRAMES, np.zeros((3, *mini_datasets.SIZE), bool))
    places = ["--ytvos_path", str(root), "--pred", str(tmp_path / "pred"), "--zip", str(tmp_path / "y.zip")]
    evaluate.main(["--dataset", "ytvos", *places])
    expected = {
        f"Annotations/{video}/{exp_id}/{name}.png"
        for video in ("v1", "v-2")
        for exp_id in ("0", "1", "10")
        for name in mini_datasets.FRAMES
    }
    with zipfile.ZipFile(tmp_path / "y.zip") as archive:
        assert set(archive.namelist()) == expected and len(archive.namelist()) == len(expected)


def test_a_list_of_videos_makes_up_the_split_of_ytvos_alone(tmp_path):
    root = mini_datasets.write_ytvos(tmp_path / "ytvos").root
    for exp_id in ("0", "1", "10"):
        predictions.write(tmp_path / "pred/v1" / exp_id, mini_datasets.FRAMES, np.zeros((3, *mini_datasets.SIZE), bool))
    (tmp_path / "list.txt").write_text("v1\n")
    places = ["--ytvos_path", str(root), "--pred", str(tmp_path / "pred"), "--video_list", str(tmp_path / "list.txt")]
    evaluate.main(["--dataset", "ytvos", *places, "--zip", str(tmp_path / "y.zip")])
    with zipfile.ZipFile(tmp_path / "y.zip") as archive:
        assert {name.split("/")[1] for name in archive.namelist()} == {"v1"}
    with pytest.raises(SystemExit, match="--video_list: chooses videos of ytvos, got --dataset davis"):
        evaluate.main(["--dataset", "davis", *places])


def test_the_same_masks_make_the_same_bytes(tmp_path, data):
    first = run(tmp_path).read_bytes()
    for file in (tmp_path / "pred").glob("**/*.png"):  # other times, other owners of the order
        file.write_bytes(file.read_bytes())
    assert run(tmp_path, out="again.zip").read_bytes() == first


def test_a_missing_mask_is_named(tmp_path, data):
    (tmp_path / "pred" / "Annotations" / "a" / "1" / "00002.png").unlink()
    assert "a/1 lacks 00002.png" in refused(tmp_path)


def test_a_missing_video_is_named(tmp_path, data):
    shutil.rmtree(tmp_path / "pred" / "Annotations" / "a")
    assert "2 of 5 expressions" in refused(tmp_path)


def test_extra_masks_are_named(tmp_path, data):
    shutil.copytree(tmp_path / "pred" / "Annotations" / "a", tmp_path / "pred" / "Annotations" / "z")
    assert ": z;" in refused(tmp_path)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("RGB", (56, 40)), "got mode RGB"),
        (Image.new("P", (56, 40)), "got mode P"),  # fit to be scored, not to be sent
        (Image.new("L", (40, 56)), "got 40 x 56"),
        (Image.new("L", (56, 40), 1), "got the value 1"),
    ],
)
def test_a_mask_that_a_server_would_misread_is_named(tmp_path, data, image, message):
    file = Path("Annotations", "b", "10", "00000.png")
    image.save(tmp_path / "pred" / file)
    answer = refused(tmp_path)
    assert str(file) in answer and message in answer


@pytest.mark.parametrize("flags", [["--partial"], ["--videos", "a"], ["--limit", "1"]])
def test_a_part_of_a_split_is_no_submission(tmp_path, data, flags):
    assert "whole splits only" in refused(tmp_path, *flags)


def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path, data):
    (tmp_path / "file").write_text("")
    shutil.rmtree(tmp_path / "pred" / "Annotations" / "a")  # which would be found next
    assert "cannot be written" in refused(tmp_path, out="file/mevis.zip")


def test_a_zip_is_called_zip(tmp_path, data):
    assert "must end in .zip" in refused(tmp_path, out="mevis.tar")


def test_datasets_without_a_server_have_no_zip(tmp_path):
    root = mini_datasets.write_long_rvos(tmp_path / "data").root
    with pytest.raises(SystemExit) as caught:
        places = ["--long_rvos_path", str(root), "--pred", str(root), "--zip", str(tmp_path / "l.zip")]
        evaluate.main(["--dataset", "long_rvos", *places])
    assert "got long_rvos" in caught.value.code
