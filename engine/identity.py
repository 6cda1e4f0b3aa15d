"""Identifies a model, so that a run never continues with the results of another model."""

from importlib.metadata import version
from typing import Any

import cv2

from models.text_cache import text_identity
from models.weights import LoadedFlowRVS
from util.hashes import fingerprint, hash_of

LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "pillow", "pycocotools")
CONFIG_ENTRIES = ("max_sequence_length", "box_height", "box_width", "objective")


def model_identity(loaded: LoadedFlowRVS, weights: str) -> dict[str, Any]:
    """Returns weights, configurations and library versions as JSON values.

    Args:
        weights: the value of ``--weights``.
    """
    pipeline = loaded.pipeline
    return {
        "weights": {network: fingerprint(files) for network, files in loaded.files.items()} | {"choice": weights},
        "model": {entry: pipeline.config[entry] for entry in CONFIG_ENTRIES}
        | {network: hash_of(dict(getattr(pipeline, network).config)) for network in ("transformer", "vae")}
        | {"text": hash_of(text_identity(loaded.folder))},
        "libraries": {library: version(library) for library in LIBRARIES} | {"opencv": cv2.__version__},
    }
