"""What tells one model from another, so that a run never goes on with another's results."""

from importlib.metadata import version
from typing import Any

import cv2

from models.text_cache import text_identity
from models.weights import LoadedFlowRVS
from util.hashes import fingerprint, hash_of

LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "pillow", "pycocotools")
CONFIG_ENTRIES = ("max_sequence_length", "box_height", "box_width", "objective")


def model_identity(loaded: LoadedFlowRVS, weights: str) -> dict[str, Any]:
    """Weights, configurations and library versions, in JSON values.

    Args:
        weights: which of a checkpoint's, --weights.
    """
    pipeline = loaded.pipeline
    return {
        "weights": {part: fingerprint(files) for part, files in loaded.files.items()} | {"choice": weights},
        "model": {entry: pipeline.config[entry] for entry in CONFIG_ENTRIES}
        | {part: hash_of(dict(getattr(pipeline, part).config)) for part in ("transformer", "vae")}
        | {"text": hash_of(text_identity(loaded.folder))},
        "libraries": {library: version(library) for library in LIBRARIES} | {"opencv": cv2.__version__},
    }
