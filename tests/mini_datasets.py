"""Each dataset in its own layout, a few pixels large, written by other libraries than those that read it."""

import json
from types import SimpleNamespace

import av
import h5py
import numpy as np
import scipy.io
from PIL import Image
from pycocotools import mask as coco_mask

SIZE = (32, 48)
FRAMES = ["00010", "00000", "00005"]  # in the file's own order, which is not sorted


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_picture(path, grey=128, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size[1], size[0]), (grey, grey, grey)).save(path)


def write_palette(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.frombytes("P", values.shape[::-1], values.tobytes())
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, *[7] * (3 * 253)])
    image.save(path)


def object_numbers(seed):
    """[H, W] of 0, 1, 2 and some void."""
    values = np.zeros(SIZE, np.uint8)
    values[2 + seed : 12, 3:20] = 1
    values[14:30, 10 + seed : 40] = 2
    values[0, :] = 255
    return values


def _videos(with_objects=True, names=("v1", "v-2"), **extra):
    expressions = {
        "0": {"exp": "the dog", "obj_id": "1", **extra},
        "1": {"exp": "The  cat", "obj_id": "2", **extra},
        "10": {"exp": "the dog", "obj_id": "1", **extra},
    }
    if not with_objects:
        expressions = {key: {"exp": fields["exp"]} for key, fields in expressions.items()}
    return {name: {"expressions": expressions, "frames": FRAMES} for name in names}


def _write_videos(images, annotations=None, names=("v1", "v-2")):
    """Returns {video: object numbers [T, H, W] in the order of sorted frames}."""
    truth = {}
    for video in names:
        truth[video] = np.stack([object_numbers(number) for number in range(len(FRAMES))])
        for frame, values in zip(sorted(FRAMES), truth[video], strict=True):
            write_picture(images / video / f"{frame}.jpg")
            if annotations:
                write_palette(annotations / video / f"{frame}.png", values)
    return truth


def write_ytvos(root):
    meta = root / "meta_expressions"
    truth = _write_videos(root / "train" / "JPEGImages", root / "train" / "Annotations")
    train = write_json(meta / "train" / "meta_expressions.json", {"videos": _videos()})
    names = ("v1", "v-2", "t1")  # the last is of test
    _write_videos(root / "valid" / "JPEGImages", names=names)
    valid = write_json(meta / "valid" / "meta_expressions.json", {"videos": _videos(False, names)})
    test = write_json(meta / "test" / "meta_expressions.json", {"videos": _videos(False, ("t1", "t2"))})
    return SimpleNamespace(root=root, train=train, valid=valid, test=test, truth=truth)


def write_davis(root, folder="valid", meta_folder="valid", level=""):
    truth = _write_videos(root / folder / "JPEGImages" / level, root / folder / "Annotations")
    source = write_json(root / "meta_expressions" / meta_folder / "meta_expressions.json", {"videos": _videos()})
    return SimpleNamespace(root=root, source=source, truth=truth)


def write_long_rvos(root, split="valid"):
    source = write_json(root / split / "meta_expressions.json", {"videos": _videos(type="dynamic")})
    truth = _write_videos(root / split / "JPEGImages")
    for video, values in truth.items():
        values[1][values[1] == 1] = 0  # absent there, so without a file
        for frame, numbers in zip(sorted(FRAMES), values, strict=True):
            for number in (1, 2):
                if (numbers == number).any():
                    file = root / split / "Annotations" / video / str(number) / f"{frame}.png"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(np.where(numbers == number, 255, 0).astype(np.uint8)).save(file)
    return SimpleNamespace(root=root, source=source, truth=truth)


TRIANGLE = [[4.0, 3.0, 40.0, 3.0, 40.0, 27.0]]
BOXES = [[2, 2, 10, 2, 10, 8, 2, 8], [20, 10, 30, 10, 30, 20, 20, 20], [1, 1, 2, 2]]  # and one that encloses nothing


def write_refcoco(root, dataset="refcoco+", split="testA"):
    block = np.zeros(SIZE, np.uint8)
    block[5:9, 7:30] = 1
    rle = coco_mask.encode(np.asfortranarray(block))
    # Columns of 32: 7 of background, the next 23 with 5 of background, 4 of the object and 23 of background.
    runs = [7 * 32 + 5, *([4, 28] * 22), 4, 23 + 18 * 32]
    height, width = SIZE
    segmentations = [
        TRIANGLE,
        BOXES,
        {"size": [height, width], "counts": rle["counts"].decode()},
        {"size": [height, width], "counts": runs},
    ]
    images, annotations = [], []
    for number, segmentation in enumerate(segmentations):
        name = f"COCO_train2014_{number:012d}.jpg"
        write_picture(root / "train2014" / name)
        images.append(
            {"id": number, "file_name": name, "height": height, "width": width, "original_id": 7}
            | {"caption": f"thing {number}", "dataset_name": dataset}
        )
        annotations.append(
            {"id": 100 + number, "image_id": number, "bbox": [0, 0, 1, 1], "segmentation": segmentation}
            | {"area": 1, "iscrowd": int(isinstance(segmentation, dict)), "category_id": 1, "original_id": 9}
        )
    source = root / dataset / f"instances_{dataset}_{split}.json"
    write_json(source, {"images": images, "annotations": annotations[::-1]})
    return SimpleNamespace(root=root, source=source, block=block.astype(bool))


GREYS = (20, 60, 100, 140, 180)  # of the frames of a clip


def write_clip(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for grey in GREYS:
            picture = np.full((*size, 3), grey, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def write_a2d(root, split="test"):
    for video in ("-clip", "other"):
        write_clip(root / "Release" / "clips320H" / f"{video}.mp4")
    folder = root / "text_annotations" / "a2d_annotation_with_instances"
    truth = np.stack([object_numbers(0) == number for number in (1, 2)])
    for name, instances in (("-clip/00002", [3, 7]), ("-clip/00005", [7]), ("other/00001", [1])):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        masks = truth[: len(instances)].transpose(0, 2, 1).astype(np.uint8)
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["instance"] = np.array(instances)
            file["reMask"] = masks[0] if len(instances) == 1 else masks
            file["reBBox"] = np.zeros((4, len(instances)))
    rows = [
        ["the first one", "-clip", 2, 3],
        ["the second one", "-clip", 2, 7],
        ["a copy", "-clip", 2, "1 (copy)"],
        ["alone now", "-clip", 5, 7],
        ["alone", "other", 1, "1"],
    ]
    source = write_json(root / f"a2d_sentences_single_frame_{split}_annotations.json", rows)
    # Samples: {expression id: (mask, position)}.
    samples = {"0": (truth[0], 1), "1": (truth[1], 1), "3": (truth[0], 4), "4": (truth[0], 0)}
    return SimpleNamespace(root=root, source=source, samples=samples, folder=folder)


def write_jhmdb(root):
    truth = np.stack([object_numbers(number) == 1 for number in range(3)])
    rows = []
    for action, video in (("wave", "a_wave"), ("jump", "b_jump")):
        for number in range(1, 5):  # the last has no mask
            write_picture(root / "Rename_Images" / action / video / f"{number:05d}.png", 40 * number)
        file = root / "puppet_mask" / action / video / "puppet_mask.mat"
        file.parent.mkdir(parents=True, exist_ok=True)
        scipy.io.savemat(file, {"part_mask": truth.transpose(1, 2, 0).astype(np.uint8)}, do_compression=True)
        for number in (1, 3):
            start = "./jhmdb_sentences/" if action == "wave" else "/elsewhere/data/"
            frame = f"{start}Rename_Images/{action}/{video}/{number:05d}.png"
            rows.append([video, frame, f"{start}puppet_mask/{action}/{video}/puppet_mask.mat", 3, "someone"])
    source = write_json(root / "jhmdb_sentences_samples_metadata.json", rows)
    return SimpleNamespace(root=root, source=source, truth=truth, mat=file)
