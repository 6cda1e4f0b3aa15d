"""``datasets.convert folder`` on every kind of clip: mask k lands beside decoded frame k, or the counts are told."""

import json

import cv2
import numpy as np
import pytest
from clips import CLIPS, all_kinds, index_of

from datasets.convert.folder import convert_folder
from datasets.readers.mevis import MeViS
from util.errors import UserError


def write_masks(folder, num_masks, size):
    """Mask k has k + 1 pixels."""
    folder.mkdir(parents=True)
    for index in range(num_masks):
        mask = np.zeros(size, np.uint8)
        mask.flat[: index + 1] = 1
        cv2.imwrite(str(folder / f"{index}.png"), mask)


def convert(folder, clip, num_masks, size):
    (folder / "videos").mkdir()
    clip.path.rename(folder / "videos" / f"a{clip.path.suffix}")
    write_masks(folder / "masks" / "a", num_masks, size)
    (folder / "sentences.csv").write_text("video,objects,sentence,split\na,1,a dog,train\n")
    convert_folder(folder / "videos", folder / "masks", folder / "sentences.csv", folder / "out")


CONVERTIBLE = all_kinds(but=("no times",))  # a raw stream has a suffix that is none of a video


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_each_mask_lands_beside_its_decoded_frame(tmp_path, name):
    clip = CLIPS[name](tmp_path)
    size = (33, 47) if name == "odd size" else (32, 48)
    convert(tmp_path, clip, len(clip.frames), size)
    split = MeViS(tmp_path / "out", "train")
    (expression,) = split.expressions
    frames = [cv2.imread(str(file)) for file in sorted((tmp_path / "out/train/JPEGImages/a").iterdir())]
    assert [index_of(frame) for frame in frames] == clip.frames
    masks = split.masks(expression, list(range(len(frames))), size)
    assert masks.sum(axis=(1, 2)).tolist() == [index + 1 for index in range(len(frames))]


@pytest.mark.parametrize("name", ["jitter of a phone", "two programmes one after the other"])
def test_another_number_of_masks_is_refused_with_both_counts(tmp_path, name):
    clip = CLIPS[name](tmp_path)
    with pytest.raises(UserError, match=f"{len(clip.frames) - 1} masks for {len(clip.frames)} frames"):
        convert(tmp_path, clip, len(clip.frames) - 1, (32, 48))
    assert not (tmp_path / "out").exists()


def test_a_converted_video_names_its_frames_once(tmp_path):
    clip = CLIPS["mp4"](tmp_path)
    convert(tmp_path, clip, 20, (32, 48))
    content = json.loads((tmp_path / "out/train/meta_expressions.json").read_text())
    assert content["videos"]["a"]["frames"] == [f"{index:05d}" for index in range(20)]


@pytest.mark.parametrize("name", ["...mp4", "..mp4"])
def test_a_name_never_leads_out_of_the_folder(tmp_path, name):
    clip = CLIPS["mp4"](tmp_path)
    (tmp_path / "videos").mkdir()
    clip.path.rename(tmp_path / "videos" / name)
    (tmp_path / "sentences.csv").write_text(f"video,objects,sentence,split\n{name.removesuffix('.mp4')},,a dog,train\n")
    with pytest.raises(UserError):
        convert_folder(tmp_path / "videos", tmp_path / "masks", tmp_path / "sentences.csv", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sentences.csv", "videos"]
