"""A hand-made split in MeViS's layout with everything that has gone wrong somewhere before."""

import json

import cv2
import numpy as np
from pycocotools import mask as coco_mask

FRAMES = ["00002", "00000", "00001"]  # in the file's own order, which is not sorted
SIZE = (40, 56)


def truth():
    """Masks of each annotation in the order of FRAMES; all-empty entries become null."""
    masks = np.zeros((4, len(FRAMES), *SIZE), bool)
    masks[0, :, 4:14, 6:20] = True
    masks[1, 0, 20:34, 30:50] = True  # seen in one frame only
    masks[2, 1:, 0:40, 0:3] = True
    return masks  # annotation 3 is never seen


def encode(mask):
    if not mask.any():
        return None
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def write(root, split="valid_u", seed=0):
    """Writes ``root/split`` and returns {(video, exp_id): true masks in sorted frame order}."""
    rng = np.random.default_rng(seed)
    targets = {
        ("b", "0"): ("the dog", [0]),
        ("b", "1"): ("both of them", [0, 1]),
        ("b", "10"): ("nothing here", []),
        ("a", "0"): ("the dog", [2]),  # the same sentence in another video
        ("a", "1"): ("the dog", [3]),  # and twice in this one
    }
    videos = {}
    for (video, exp_id), (caption, annotations) in targets.items():
        entry = videos.setdefault(video, {"vid_id": len(videos), "frames": FRAMES, "expressions": {}})
        entry["expressions"][exp_id] = {"exp": caption, "obj_id": annotations, "anno_id": annotations}
    for video in videos:
        folder = root / split / "JPEGImages" / video
        folder.mkdir(parents=True)
        for frame in FRAMES:
            cv2.imwrite(str(folder / f"{frame}.jpg"), rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
    (root / split / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
    masks = truth()
    mask_dict = {str(number): [encode(mask) for mask in frames] for number, frames in enumerate(masks)}
    (root / split / "mask_dict.json").write_text(json.dumps(mask_dict))
    order = np.argsort(FRAMES)
    return {
        key: masks[annotations].any(0)[order] if annotations else np.zeros((3, *SIZE), bool)
        for key, (_, annotations) in targets.items()
    }
