"""The names of ``--dataset_file``: which readers they mean, and how their clips are made. Free of torch."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datasets.readers.a2d import A2DSentences
from datasets.readers.davis import RefDAVIS17
from datasets.readers.jhmdb import JHMDBSentences
from datasets.readers.long_rvos import LongRVOS
from datasets.readers.mevis import MeViS
from datasets.readers.refcoco import RefCOCO
from datasets.readers.ytvos import RefYouTubeVOS
from datasets.split import IMAGE, PSEUDO_VIDEO, VIDEO, Source, Split
from util.errors import MissingFileError, UserError
from util.flags import DATASET_PATHS

REFCOCO = ("refcoco", "refcoco+", "refcocog")


@dataclass(frozen=True)
class DatasetPaths:
    """Where the datasets lie; only those that are named need exist. ``cache_dir`` is for converted masks."""

    mevis: Path
    ytvos: Path
    davis: Path
    coco: Path
    long_rvos: Path
    a2d: Path
    jhmdb: Path
    toy: Path
    cache_dir: Path | None = None

    @classmethod
    def from_flags(cls, options: argparse.Namespace) -> "DatasetPaths":
        """From the flags of ``util.flags.add_dataset_flags``."""
        cache_dir = Path(options.cache_dir) if options.cache_dir else None
        return cls(**{name: Path(getattr(options, f"{name}_path")) for name in DATASET_PATHS}, cache_dir=cache_dir)


# The training split of a name, and the validation split with public masks.
TRAIN: dict[str, Callable[[DatasetPaths], Split]] = {
    "mevis": lambda paths: MeViS(paths.mevis, "train", paths.cache_dir),
    "ytvos": lambda paths: RefYouTubeVOS(paths.ytvos, "train"),
    "davis": lambda paths: RefDAVIS17(paths.davis, "train"),
    "refcoco": lambda paths: RefCOCO(paths.coco, "refcoco", "train"),
    "refcoco+": lambda paths: RefCOCO(paths.coco, "refcoco+", "train"),
    "refcocog": lambda paths: RefCOCO(paths.coco, "refcocog", "train"),
    "long_rvos": lambda paths: LongRVOS(paths.long_rvos, "train"),
    "a2d": lambda paths: A2DSentences(paths.a2d, "train"),
    "jhmdb": lambda paths: JHMDBSentences(paths.jhmdb),
    "toy": lambda paths: MeViS(paths.toy, "train", paths.cache_dir, "--toy_path"),
}
VALIDATION: dict[str, Callable[[DatasetPaths], Split]] = {
    "mevis": lambda paths: MeViS(paths.mevis, "valid_u", paths.cache_dir),
    "davis": lambda paths: RefDAVIS17(paths.davis, "valid"),
    "long_rvos": lambda paths: LongRVOS(paths.long_rvos, "valid"),
    "toy": lambda paths: MeViS(paths.toy, "valid_u", paths.cache_dir, "--toy_path"),
}
# Several datasets under one name.
GROUPS: dict[str, list[tuple[str, str]]] = {
    "pretrain": [(name, IMAGE) for name in REFCOCO],
    "joint": [("ytvos", VIDEO), *((name, PSEUDO_VIDEO) for name in REFCOCO)],
}
# One annotated frame a sentence: the frames around it cannot be supervised.
ONE_FRAME = (*REFCOCO, "a2d", "jhmdb")
NAMES = (*TRAIN, *GROUPS)


def training_sources(names: dict[str, float], paths: DatasetPaths) -> list[Source]:
    """The sources of a training set.

    Args:
        names: of ``NAMES``, each with its weight: how often an epoch visits its items.

    Raises:
        UserError: if a dataset is missing or damaged.
    """
    return [
        Source(member, _with_masks(TRAIN[member](paths)), form, weight)
        for name, weight in names.items()
        for member, form in GROUPS.get(name, [(name, IMAGE if name in ONE_FRAME else VIDEO)])
    ]


def validation_split(names: dict[str, float], paths: DatasetPaths) -> Split:
    """The split that watches a training run: of the first of the names that has one with public masks.

    Raises:
        UserError: if none has, or it is missing or damaged.
    """
    for name in names:
        if name in VALIDATION:
            return _with_masks(VALIDATION[name](paths))
    raise UserError(
        f"--eval_steps: {', '.join(names)} has no validation split with public masks; use --eval_steps 0, or one of "
        f"{', '.join(VALIDATION)}"
    )


def _with_masks(split: Split) -> Split:
    if not split.has_masks:
        raise MissingFileError(
            f"{split.origin}: no masks, which training and --eval_steps need; MeViS has them in mask_dict.json"
        )
    return split
