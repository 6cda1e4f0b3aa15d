"""Every name of --dataset_file builds and trains through the one clip path."""

import re
import subprocess
import sys
from pathlib import Path

import mini_datasets
import mini_mevis
import pytest
import yaml

import inference_davis
import inference_mevis
import inference_ytvos
import main
from datasets.clip import collate
from datasets.referring import ClipOptions, ReferringClips
from datasets.registry import (
    DATASETS,
    GROUPS,
    IMAGE,
    PSEUDO_VIDEO,
    TRAINED,
    VIDEO,
    DatasetPaths,
    open_split,
    split_name,
    training_sources,
    validation_split,
)
from datasets.transforms import Augmentation, Box
from engine.scoring.protocols import PROTOCOLS
from util.errors import UserError

ROOT = Path(__file__).parents[2]
FLAGS = {DATASETS[name].path_flag for name in TRAINED}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    root = tmp_path_factory.mktemp("all")
    for name in ("mevis", "toy"):
        for split in ("train", "valid_u"):
            mini_mevis.write(root / name, split)
    mini_datasets.write_ytvos(root / "ytvos")
    for split in ("train", "valid"):
        mini_datasets.write_davis(root / "davis", split, split)
        mini_datasets.write_long_rvos(root / "long_rvos", split)
    for name in ("refcoco", "refcoco+", "refcocog"):
        mini_datasets.write_refcoco(root / "coco", name, "train")
    mini_datasets.write_a2d(root / "a2d", "train")
    mini_datasets.write_jhmdb(root / "jhmdb")
    return DatasetPaths({name: root / name for name in FLAGS})


def clips_of(sources):
    options = ClipOptions(5, Box(32, 56, 8), "mixed", Augmentation(0.5, 0.5, 0.2))
    return ReferringClips(sources, options)


@pytest.mark.parametrize("name", main.DATASET_NAMES)
def test_each_name_builds_and_gives_clips_of_one_kind(name, paths):
    sources = training_sources({name: 1.0}, paths)
    clips = clips_of(sources)
    assert len(clips) > 0
    for item in range(len(clips)):
        clip = clips[0, item]
        form = sources[clips.items[item].source].form
        num_frames = 1 if form == IMAGE else 5
        assert clip.frames.shape[:2] == (num_frames, 3)
        assert clip.masks.shape == (num_frames, 1, *clip.frames.shape[2:])
        assert -1 <= clip.frames.min() <= clip.frames.max() <= 1
        assert set(clip.masks.unique().tolist()) <= {0.0, 1.0}
        collate([clip])


def test_groups_have_the_forms_of_the_fields_recipes():
    assert {form for _, form in GROUPS["pretrain"]} == {IMAGE}
    assert dict(GROUPS["joint"]) == {
        "ytvos": VIDEO, "refcoco": PSEUDO_VIDEO, "refcoco+": PSEUDO_VIDEO, "refcocog": PSEUDO_VIDEO
    }  # fmt: skip
    assert {member for group in GROUPS.values() for member, _ in group} <= set(TRAINED)


def test_validation_is_that_of_the_first_dataset_which_has_one(paths):
    assert {name for name, row in DATASETS.items() if row.validation_split} <= set(TRAINED)
    split = validation_split({"ytvos": 1.0, "davis": 1.0}, paths)
    assert split.has_masks
    assert split.root == paths.folders["davis"]
    with pytest.raises(UserError, match="--eval_steps: ytvos"):
        validation_split({"ytvos": 1.0}, paths)


@pytest.mark.parametrize("as_file", [False, True])
def test_a_mixture_is_given_by_flags_or_yaml(as_file, tmp_path):
    arguments = ["--mixture", "mevis=1.0", "ytvos=0.5"]
    if as_file:
        (tmp_path / "x.yaml").write_text(yaml.safe_dump({"mixture": {"mevis": 1.0, "ytvos": 0.5}}))
        arguments = ["--config", str(tmp_path / "x.yaml")]
    assert main.build_parser().parse_args(arguments).mixture == [("mevis", 1.0), ("ytvos", 0.5)]


@pytest.mark.parametrize(
    ("mixture", "match"), [("mevi=1", "did you mean 'mevis'"), ("mevis=0", "above 0|between"), ("mevis=x", "number")]
)
def test_a_wrong_mixture_is_named(mixture, match, capsys):
    with pytest.raises(SystemExit):
        main.build_parser().parse_args(["--mixture", mixture])
    assert re.search(match, capsys.readouterr().err)


def test_clips_of_different_sizes_and_lengths_train_in_batches(paths, toy_folder, tmp_path):
    flags = [
        "--wan_path", str(toy_folder), "--device", "cpu", "--num_frames", "5", "--num_workers", "0", "--max_steps", "3",
        "--batch_size", "2", "--print_freq", "1", "--reso_h", "32", "--reso_w", "56",
        "--mixture", "mevis=1", "refcoco=1", "--output_dir", str(tmp_path / "run"),
        *(part for name in FLAGS for part in (f"--{name}_path", str(paths.folders[name]))),
    ]  # fmt: skip
    main.main(flags)
    assert (tmp_path / "run" / "step_0000003").is_dir()
    assert '"recentred_share"' in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_training_runs_beside_the_hugging_face_package_of_the_same_name(paths, toy_folder, tmp_path):
    """accelerate looks for a distribution called ``datasets`` and then imports the module of that name: ours."""
    distribution = tmp_path / "site" / "datasets-4.0.0.dist-info"
    distribution.mkdir(parents=True)
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: datasets\nVersion: 4.0.0\n")
    flags = [
        "--wan_path", str(toy_folder), "--device", "cpu", "--num_frames", "5", "--num_workers", "1", "--max_steps", "1",
        "--eval_steps", "1", "--mevis_path", str(paths.folders["mevis"]), "--output_dir", str(tmp_path / "run"),
    ]  # fmt: skip
    script = (
        "import importlib.metadata as m, sys; assert m.version('datasets') == '4.0.0'\n"
        "from accelerate.utils import is_datasets_available; assert is_datasets_available()\n"
        f"import main; main.main({flags!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n{script}"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run" / "validation.jsonl").is_file()


# Rows


@pytest.mark.parametrize("name", DATASETS)
def test_val_and_valid_mean_the_same_split_everywhere(name, tmp_path, capsys):
    row = DATASETS[name]
    for split in row.splits:
        assert split_name(name, split) == split
    has_one = {"val", "valid"} & set(row.splits)
    for split in ("val", "valid"):
        if has_one:
            assert {split_name(name, split)} == has_one
        else:
            with pytest.raises(UserError, match=f"--split: {re.escape(name)} has the splits "):
                split_name(name, split)


@pytest.mark.parametrize("script", [inference_mevis, inference_ytvos, inference_davis], ids=lambda one: one.PROGRAM)
def test_scripts_take_either_name_of_a_split_and_refuse_others(script, capsys):
    parse = script.build_parser().parse_args
    assert parse(["--split", "val"]).split == parse(["--split", "valid"]).split == "valid"
    with pytest.raises(SystemExit):
        parse(["--split", "vali"])
    assert "has the splits train" in capsys.readouterr().err


@pytest.mark.parametrize("name", DATASETS)
def test_each_row_opens_its_own_reader_or_names_its_own_flag(name, tmp_path):
    row = DATASETS[name]
    paths = DatasetPaths({row.path_flag: tmp_path / "absent"})
    for split in row.splits:
        with pytest.raises(UserError, match=f"--{row.path_flag}_path|needs the package"):
            open_split(name, split, paths)


def test_each_row_is_complete():
    assert {row.protocol for row in DATASETS.values()} == set(PROTOCOLS)
    for name, row in DATASETS.items():
        assert {row.scored_split, row.train_split, row.validation_split} - {None} <= set(row.splits), name
        assert row.default_path, name


def test_the_registry_imports_no_reader():
    script = "import sys, datasets.registry; sys.exit(bool({'numpy', 'cv2', 'torch', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0
