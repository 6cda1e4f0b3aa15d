"""Which splits each dataset can have, how to tell that one is there, and how to read it. Free of torch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datasets.readers import a2d, davis, long_rvos, mevis, refcoco, ytvos
from datasets.readers.jhmdb import JHMDBSentences
from datasets.registry import REFCOCO, DatasetPaths
from datasets.split import Split
from util.errors import MissingFileError, UserError

Faults = list[UserError]


@dataclass(frozen=True)
class Layout:
    """A dataset of the registry.

    Attributes:
        folder: the name of its folder in ``DatasetPaths``.
        splits: every one that it can have.
        signs: from its folder and a split to files or folders of which one is there if the split is.
        read: from the paths and a split to its reader; gathers what is wrong with single samples where it can.
    """

    folder: str
    splits: tuple[str, ...]
    signs: Callable[[Path, str], list[Path]]
    read: Callable[[DatasetPaths, str, Faults], Split]

    def present_splits(self, paths: DatasetPaths, split: str | None) -> list[str]:
        """The splits that are there; ``split`` alone if that is given.

        Raises:
            MissingFileError: if none is.
        """
        root: Path = getattr(paths, self.folder)
        origin = f"--{self.folder}_path {root}"
        if not root.is_dir():
            raise MissingFileError(f"{origin}: no such folder; give the folder of the dataset")
        wanted = self.splits if split is None else (split,)
        present = [name for name in wanted if any(sign.exists() for sign in self.signs(root, name))]
        if not present:
            sought = ", ".join(str(sign) for name in wanted for sign in self.signs(root, name))
            raise MissingFileError(f"{origin}: none of {sought} is there; give the folder of the dataset")
        return present


def _folder(root: Path, split: str) -> list[Path]:
    return [root / split]


def _mevis_signs(root: Path, split: str) -> list[Path]:
    # The frames of test are published alone: without sentences there is nothing to check.
    return [root / split / name for name in mevis.META_FILES] if split == "test" else [root / split]


def _davis_signs(root: Path, split: str) -> list[Path]:
    return [root / name for name in (davis.VALID_NAMES if split == "valid" else (split,))]


def _refcoco(name: str) -> Layout:
    return Layout(
        "coco",
        refcoco.SPLITS[name],
        lambda root, split: [root / name / f"instances_{name}_{split}.json"],
        lambda paths, split, faults: refcoco.RefCOCO(paths.coco, name, split, faults=faults),
    )


LAYOUTS = {
    "mevis": Layout(
        "mevis",
        mevis.SPLITS,
        _mevis_signs,
        lambda paths, split, _: mevis.MeViS(paths.mevis, split, paths.cache_dir),
    ),
    # Its pictures tell: the sentences of every split come in one archive.
    "ytvos": Layout("ytvos", ytvos.SPLITS, _folder, lambda paths, split, _: ytvos.RefYouTubeVOS(paths.ytvos, split)),
    "davis": Layout(
        "davis", ("train", "valid"), _davis_signs, lambda paths, split, _: davis.RefDAVIS17(paths.davis, split)
    ),
    **{name: _refcoco(name) for name in REFCOCO},
    "long_rvos": Layout(
        "long_rvos",
        long_rvos.SPLITS,
        _folder,
        lambda paths, split, _: long_rvos.LongRVOS(paths.long_rvos, split),
    ),
    "a2d": Layout(
        "a2d",
        a2d.SPLITS,
        lambda root, split: [root / f"a2d_sentences_single_frame_{split}_annotations.json"],
        lambda paths, split, faults: a2d.A2DSentences(paths.a2d, split, faults=faults),
    ),
    "jhmdb": Layout(
        "jhmdb",
        ("all",),  # it has none; its three-fold splits play no part here
        lambda root, _: [root / "jhmdb_sentences_samples_metadata.json"],
        lambda paths, _, faults: JHMDBSentences(paths.jhmdb, faults=faults),
    ),
    "toy": Layout(
        "toy",
        ("train", "valid_u", "valid"),
        _folder,
        lambda paths, split, _: mevis.MeViS(paths.toy, split, paths.cache_dir, "--toy_path"),
    ),
}
