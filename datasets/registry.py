"""One row per dataset: flag, folder, splits, reader, training, scoring, checking. A new dataset is a reader and a row.

Importing this module imports no reader, so that every program knows the names at once.
"""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from util.errors import MissingFileError, UserError, did_you_mean

if TYPE_CHECKING:
    from datasets.split import Split

VIDEO, IMAGE, PSEUDO_VIDEO = "video", "image", "pseudo_video"
SAME_SPLIT = {"val": "valid", "valid": "val"}  # datasets and their users have both names for it

Faults = list[UserError]


@dataclass(frozen=True)
class DatasetPaths:
    """Where the datasets lie; only those that are opened must exist.

    Attributes:
        folders: by the name of the flag: ``mevis`` for ``--mevis_path``.
        cache_dir: for converted masks; None is beside their source.
        video_list: the videos of a split of Ref-YouTube-VOS, one id a line; None is those of the split.
    """

    folders: dict[str, Path]
    cache_dir: Path | None = None
    video_list: Path | None = None

    @classmethod
    def from_flags(cls, options: argparse.Namespace) -> "DatasetPaths":
        """Reads the flags of ``add_dataset_flags``; some programs have a few of them only."""
        given = {row.path_flag: getattr(options, f"{row.path_flag}_path", None) for row in DATASETS.values()}
        cache_dir, video_list = (getattr(options, name, None) for name in ("cache_dir", "video_list"))
        return cls(
            {flag: Path(path) for flag, path in given.items() if path is not None},
            Path(cache_dir) if cache_dir else None,
            Path(video_list) if video_list else None,
        )


@dataclass(frozen=True)
class Dataset:
    """A row of the registry.

    Attributes:
        path_flag: ``mevis`` for ``--mevis_path``; datasets in one folder share it.
        default_path: the default of that flag.
        splits: every split that the dataset can have.
        scored_split: the split that is scored by default: one with public masks, where there is one.
        open: opens a split with the dataset's reader. With a list of faults, readers that can do so add what is wrong
            with single samples to it instead of raising.
        protocol: the name of its scoring protocol, see ``engine.scoring.protocols.PROTOCOLS``.
        train_split: the split to train on; None if the dataset has none.
        validation_split: the split with public masks that validates a training run; None if there is none.
        form: ``video``, or ``image`` if an expression has one annotated frame: its neighbours cannot be supervised.
        signs: returns files or folders of a split, one of which exists if the split does; None if ``datasets.check``
            does not know the dataset.
    """

    path_flag: str
    default_path: str
    splits: tuple[str, ...]
    scored_split: str
    open: Callable[[DatasetPaths, str, Faults | None], "Split"]
    protocol: str
    train_split: str | None = None
    validation_split: str | None = None
    form: str = VIDEO
    signs: Callable[[Path, str], list[Path]] | None = None


@dataclass(frozen=True)
class Source:
    """A split with masks, as part of a training set.

    Attributes:
        name: of the dataset.
        split: the expressions, frames and masks.
        form: ``video``; ``image``, one-frame clips; ``pseudo_video``, an image under a moving camera.
        weight: how often an epoch visits each of its items: 0.5 is a random half, 2 is each twice.
    """

    name: str
    split: "Split"
    form: str = VIDEO
    weight: float = field(default=1.0)


# -- the rows ----------------------------------------------------------------------------------------------------


def _reader(module: str, name: str) -> Any:
    """Imports a name of ``datasets.readers``, when it is first needed."""
    return getattr(import_module(f"datasets.readers.{module}"), name)


def _mevis(flag: str, default_path: str, splits: tuple[str, ...]) -> Dataset:
    def open_split(paths: DatasetPaths, split: str, _: Faults | None) -> "Split":
        opened: Split = _reader("mevis", "MeViS")(paths.folders[flag], split, paths.cache_dir, f"--{flag}_path")
        return opened

    def signs(root: Path, split: str) -> list[Path]:
        # The frames of test are published alone: without captions there is nothing to check.
        meta_files = _reader("mevis", "META_FILES")
        return [root / split / name for name in meta_files] if split == "test" else [root / split]

    return Dataset(
        flag, default_path, splits, "valid_u", open_split, "video",
        train_split="train", validation_split="valid_u", signs=signs,
    )  # fmt: skip


def _refcoco(name: str, splits: tuple[str, ...], scored_split: str) -> Dataset:
    return Dataset(
        "coco", "datasets/coco", splits, scored_split,
        lambda paths, split, faults: _reader("refcoco", "RefCOCO")(paths.folders["coco"], name, split, faults=faults),
        "image",
        train_split="train", form=IMAGE,
        signs=lambda root, split: [root / name / f"instances_{name}_{split}.json"],
    )  # fmt: skip


DATASETS: dict[str, Dataset] = {
    "mevis": _mevis("mevis", "datasets/MeViS", ("train", "valid_u", "valid", "test")),
    "ytvos": Dataset(
        "ytvos", "datasets/refer_youtube_vos", ("train", "valid", "test"), "valid",
        lambda paths, split, _: _reader("ytvos", "RefYouTubeVOS")(paths.folders["ytvos"], split, paths.video_list),
        "video",
        train_split="train",
        # Its frames are a sign, its captions are not: those of all splits come in one archive.
        signs=lambda root, split: [root / split],
    ),
    "davis": Dataset(
        "davis", "datasets/refer_davis", ("train", "valid"), "valid",
        lambda paths, split, _: _reader("davis", "RefDAVIS17")(paths.folders["davis"], split),
        "video",
        train_split="train", validation_split="valid",
        signs=lambda root, split: [
            root / name for name in (_reader("davis", "VALID_NAMES") if split == "valid" else (split,))
        ],
    ),
    "refcoco": _refcoco("refcoco", ("train", "val", "testA", "testB"), "val"),
    "refcoco+": _refcoco("refcoco+", ("train", "val", "testA", "testB"), "val"),
    "refcocog": _refcoco("refcocog", ("train", "val", "test"), "val"),
    "long_rvos": Dataset(
        "long_rvos", "datasets/long_rvos", ("train", "valid", "test"), "valid",
        lambda paths, split, _: _reader("long_rvos", "LongRVOS")(paths.folders["long_rvos"], split),
        "video",
        train_split="train", validation_split="valid",
        signs=lambda root, split: [root / split],
    ),
    "a2d": Dataset(
        "a2d", "datasets/a2d_sentences", ("train", "test"), "test",
        lambda paths, split, faults: _reader("a2d", "A2DSentences")(paths.folders["a2d"], split, faults=faults),
        "strict_image",
        train_split="train", form=IMAGE,
        signs=lambda root, split: [root / f"a2d_sentences_single_frame_{split}_annotations.json"],
    ),
    "jhmdb": Dataset(
        # It has no splits; its three-fold ones play no part here.
        "jhmdb", "datasets/jhmdb_sentences", ("all",), "all",
        lambda paths, _, faults: _reader("jhmdb", "JHMDBSentences")(paths.folders["jhmdb"], faults=faults),
        "strict_image",
        train_split="all", form=IMAGE,
        signs=lambda root, _: [root / "jhmdb_sentences_samples_metadata.json"],
    ),
    "burst": Dataset(
        "burst", "datasets/TAO", ("val", "test"), "val",
        lambda paths, split, _: _reader("burst", "BURST")(paths.folders["burst"], split),
        "class",
    ),
    "vspw": Dataset(
        "vspw", "datasets/VSPW_480p", ("val",), "val",
        lambda paths, *_: _reader("vspw", "VSPWStuff")(paths.folders["vspw"]),
        "class",
    ),
    "folder": Dataset(
        "folder", "datasets/folder", ("all",), "all",
        lambda paths, *_: _reader("mask_folder", "MaskFolder")(paths.folders["folder"]),
        "class",
    ),
    "toy": _mevis("toy", "runs/toy-mevis", ("train", "valid_u", "valid")),
}  # fmt: skip
SCORED = tuple(DATASETS)
CHECKED = tuple(name for name, row in DATASETS.items() if row.signs)
TRAINED = tuple(name for name, row in DATASETS.items() if row.train_split)
_REFCOCO = ("refcoco", "refcoco+", "refcocog")
# Several datasets under one name, each with the form of its clips.
GROUPS: dict[str, list[tuple[str, str]]] = {
    "pretrain": [(name, IMAGE) for name in _REFCOCO],
    "joint": [("ytvos", VIDEO), *((name, PSEUDO_VIDEO) for name in _REFCOCO)],
}


# -- flags -------------------------------------------------------------------------------------------------------


def add_dataset_flags(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Adds the folders of some datasets, and ``--cache_dir``."""
    group = parser.add_argument_group("datasets")
    for flag, default in {DATASETS[name].path_flag: DATASETS[name].default_path for name in names}.items():
        group.add_argument(f"--{flag}_path", default=default, metavar="DIR", help=f"folder of {flag}")
    group.add_argument(
        "--cache_dir", metavar="DIR", help="folder for converted masks; by default beside the file they come from"
    )


def add_path_flag(parser: argparse.ArgumentParser, name: str, content: str) -> None:
    """Adds the folder of one dataset, with help on what it must hold."""
    row = DATASETS[name]
    parser.add_argument(
        f"--{row.path_flag}_path", default=row.default_path, metavar="DIR", help=f"folder of the dataset: {content}"
    )


def split_type(name: str) -> Callable[[str], str]:
    """Returns an argparse type: a split of a dataset, see ``split_name``."""

    def parse(text: str) -> str:
        try:
            return split_name(name, text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix("--split: ")) from None

    return parse


def split_name(name: str, split: str | None) -> str:
    """Returns the name of a split as the dataset has it: ``val`` and ``valid`` mean the same everywhere.

    Args:
        name: of the dataset.
        split: as the user gave it; None is the split that is scored by default.

    Raises:
        UserError: if the dataset has no such split.
    """
    row = DATASETS[name]
    if split is None:
        return row.scored_split
    for same in (split, SAME_SPLIT.get(split, split)):
        if same in row.splits:
            return same
    raise UserError(
        f"--split: {name} has the splits {', '.join(row.splits)}, got '{split}'{did_you_mean(split, row.splits)}"
    )


# -- opening -----------------------------------------------------------------------------------------------------


def open_split(name: str, split: str | None, paths: DatasetPaths, faults: Faults | None = None) -> "Split":
    """Opens a split of a dataset.

    Args:
        split: see ``split_name``.
        faults: see ``Dataset.open``.

    Raises:
        UserError: if there is no such split, or it is missing or damaged.
    """
    if paths.video_list and name != "ytvos":
        raise UserError(f"--video_list: chooses videos of ytvos, got --dataset {name}; use --videos")
    return DATASETS[name].open(paths, split_name(name, split), faults)


def present_splits(name: str, split: str | None, paths: DatasetPaths) -> list[str]:
    """Returns the splits of a dataset that are on disk; only ``split`` if that is given.

    Raises:
        UserError: if the dataset has no such split.
        MissingFileError: if none is there.
    """
    row = DATASETS[name]
    assert row.signs is not None, f"{name} cannot be checked"
    root = paths.folders[row.path_flag]
    origin = f"--{row.path_flag}_path {root}"
    wanted = row.splits if split is None else (split_name(name, split),)
    if not root.is_dir():
        raise MissingFileError(f"{origin}: no such folder; give the folder of the dataset")
    present = [one for one in wanted if any(sign.exists() for sign in row.signs(root, one))]
    if not present:
        sought = ", ".join(str(sign) for one in wanted for sign in row.signs(root, one))
        raise MissingFileError(f"{origin}: none of {sought} exists; give the folder of the dataset")
    return present


def training_sources(names: dict[str, float], paths: DatasetPaths) -> list[Source]:
    """Opens the datasets of a training set.

    Args:
        names: of ``TRAINED`` or ``GROUPS``, each with its weight: how often an epoch visits its items.

    Raises:
        UserError: if a dataset is missing or damaged.
    """
    return [
        Source(member, _with_masks(open_split(member, DATASETS[member].train_split, paths)), form, weight)
        for name, weight in names.items()
        for member, form in GROUPS.get(name) or [(name, DATASETS[name].form)]
    ]


def validation_split(names: dict[str, float], paths: DatasetPaths) -> "Split":
    """Opens the split that validates a training run: that of the first dataset which has one with public masks.

    Raises:
        UserError: if none has, or it is missing or damaged.
    """
    for name in names:
        if name in DATASETS and DATASETS[name].validation_split:
            return _with_masks(open_split(name, DATASETS[name].validation_split, paths))
    having = [name for name, row in DATASETS.items() if row.validation_split]
    raise UserError(
        f"--eval_steps: {', '.join(names)} has no validation split with public masks; use --eval_steps 0, or train "
        f"on one of {', '.join(having)}"
    )


def _with_masks(split: "Split") -> "Split":
    if not split.has_masks:
        raise MissingFileError(
            f"{split.origin}: has no masks, which training and --eval_steps need; MeViS has them in mask_dict.json"
        )
    return split
