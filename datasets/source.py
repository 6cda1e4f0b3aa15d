"""A split, and how it is trained on. Free of torch."""

from dataclasses import dataclass

from datasets.split import Split

VIDEO, IMAGE, PSEUDO_VIDEO = "video", "image", "pseudo_video"


@dataclass(frozen=True)
class Source:
    """A split with masks, as a part of a training set.

    Attributes:
        name: of the dataset.
        form: ``video``; ``image``, one-frame clips; ``pseudo_video``, an image under a moving camera.
        weight: how often an epoch visits each of its items: 0.5 is a drawn half, 2 is each twice.
    """

    name: str
    split: Split
    form: str = VIDEO
    weight: float = 1.0
