"""Computes reference scores on a toy MeViS: scores without a model, and the ceiling that the decoder sets.

PYTHONPATH=. python benchmarks/toy_yardsticks.py --mevis_path runs/toy-mevis --wan_path runs/toy-wan [--vae_ckpt
...]
"""

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from datasets.readers.mevis import MeViS
from datasets.transforms import Geometry
from engine.scoring.summary import Unit, summarise
from models import mask_vae
from models.flowrvs import FlowRVS
from models.weights import load_flowrvs
from util.errors import exit_on_user_error
from util.flags import add_weight_flags
from util.metrics import score
from util.options import OptionParser
from util.rle import decode_rle

Masks = NDArray[np.bool_]


def all_objects(split: MeViS) -> dict[str, list[Masks]]:
    """Returns masks [T, H, W] of every object of every video, with or without a caption."""
    videos = json.loads((split.folder / "meta_expressions.json").read_text(encoding="utf-8"))["videos"]
    rles = json.loads((split.folder / "mask_dict.json").read_text(encoding="utf-8"))
    objects: dict[str, list[Masks]] = {}
    for video, entry in videos.items():
        lists = [rles[str(thing["anno_id"])] for thing in entry["objects"]]
        size = next(tuple(rle["size"]) for frames in lists for rle in frames if rle is not None)
        objects[video] = [np.stack([decode_rle(rle, size) for rle in frames]) for frames in lists]
    return objects


@torch.no_grad()
def decoded_truth(pipeline: FlowRVS, truth: Masks) -> Masks:
    """Returns the ground truth after encoder and decoder, at source size."""
    size, vae = (truth.shape[1], truth.shape[2]), pipeline.vae
    fitted = Geometry(0, 0, *size, pipeline.fitted_size(*size), is_mirrored=False).move_masks(truth, size)
    masks = torch.from_numpy(fitted).float()[None, None]
    logits = mask_vae.decode_logits(vae, mask_vae.encode_masks(vae, masks))[0, 0]
    return mask_vae.logits_to_masks(mask_vae.resize_logits(logits, size))


def main() -> None:
    parser = OptionParser(prog="benchmarks/toy_yardsticks.py", description="Yardsticks of a toy MeViS.")
    parser.add_argument("--mevis_path", required=True, metavar="DIR", help="a toy MeViS; its valid_u is scored")
    add_weight_flags(parser)
    options = parser.parse_args()
    with exit_on_user_error(parser.prog):
        split = MeViS(Path(options.mevis_path), "valid_u")
        pipeline = load_flowrvs(options.wan_path, options.dit_ckpt, options.vae_ckpt, options.weights).pipeline
        objects = all_objects(split)
        rng = np.random.default_rng(0)
        units: dict[str, list[Unit]] = {}
        for expression in split.expressions:
            things = objects[expression.video]
            size = (things[0].shape[1], things[0].shape[2])
            truth = split.masks(expression, list(range(len(expression.frames))), size)
            guesses = {
                "empty masks": np.zeros_like(truth),
                "a random object": things[rng.integers(len(things))],
                "all objects": np.any(things, axis=0),
                "the truth, decoded": decoded_truth(pipeline, truth),
            }
            for name, guess in guesses.items():
                units.setdefault(name, []).append((*expression.key, score(guess, truth)))
        for name, scored in units.items():
            metrics = summarise(scored, split.expressions)
            kinds = "  ".join(f"{kind} {entry['J&F']:.3f}" for kind, entry in metrics["kinds"].items())
            print(f"{name:20s} J {metrics['J']:.3f}  F {metrics['F']:.3f}  J&F {metrics['J&F']:.3f}   ({kinds})")


if __name__ == "__main__":
    main()
