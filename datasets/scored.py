"""The names of ``--dataset`` in ``evaluate.py``: which reader they mean, and which of its splits. Free of torch."""

import argparse
from pathlib import Path

from datasets.readers.a2d import A2DSentences
from datasets.readers.burst import BURST
from datasets.readers.davis import RefDAVIS17
from datasets.readers.jhmdb import JHMDBSentences
from datasets.readers.long_rvos import LongRVOS
from datasets.readers.mask_folder import MaskFolder
from datasets.readers.mevis import MeViS
from datasets.readers.refcoco import SPLITS as REFCOCO_SPLITS
from datasets.readers.refcoco import RefCOCO
from datasets.readers.vspw import VSPWStuff
from datasets.readers.ytvos import RefYouTubeVOS
from datasets.registry import DatasetPaths
from datasets.split import Split
from util.errors import UserError, did_you_mean

MEVIS_SPLITS = ("valid_u", "train", "valid", "test")
# The splits of each name, the one that is scored by default first; some datasets have one alone.
SPLITS: dict[str, tuple[str, ...]] = {
    "mevis": MEVIS_SPLITS,
    "ytvos": ("valid", "train", "test"),
    "davis": ("valid", "train"),
    **{name: (*splits[1:], splits[0]) for name, splits in REFCOCO_SPLITS.items()},
    "long_rvos": ("valid", "train", "test"),
    "a2d": ("test", "train"),
    "jhmdb": ("all",),
    "toy": MEVIS_SPLITS,
    "burst": ("val", "test"),
    "vspw": ("val",),
    "folder": ("all",),
}
NAMES = tuple(SPLITS)


def open_split(options: argparse.Namespace) -> Split:
    """The split that the flags of ``evaluate.py`` name.

    Raises:
        UserError: if there is no such split, or it is missing or damaged.
    """
    name, split = options.dataset, options.split or SPLITS[options.dataset][0]
    if split not in SPLITS[name]:
        raise UserError(
            f"--split: {name} has {', '.join(SPLITS[name])}, got '{split}'{did_you_mean(split, SPLITS[name])}"
        )
    paths = DatasetPaths.from_flags(options)
    if options.video_list and name != "ytvos":
        raise UserError(f"--video_list: chooses videos of ytvos, got --dataset {name}; use --videos")
    videos = Path(options.video_list) if options.video_list else None
    if name in REFCOCO_SPLITS:
        return RefCOCO(paths.coco, name, split)
    readers = {
        "mevis": lambda: MeViS(paths.mevis, split, paths.cache_dir),
        "ytvos": lambda: RefYouTubeVOS(paths.ytvos, split, videos),
        "davis": lambda: RefDAVIS17(paths.davis, split),
        "long_rvos": lambda: LongRVOS(paths.long_rvos, split),
        "a2d": lambda: A2DSentences(paths.a2d, split),
        "jhmdb": lambda: JHMDBSentences(paths.jhmdb),
        "toy": lambda: MeViS(paths.toy, split, paths.cache_dir, "--toy_path"),
        "burst": lambda: BURST(Path(options.burst_path), split),
        "vspw": lambda: VSPWStuff(Path(options.vspw_path)),
        "folder": lambda: MaskFolder(Path(options.folder_path)),
    }
    opened: Split = readers[name]()
    return opened
