"""``inference_mevis.py`` and its sisters: the official unit and numbers, in one process or two, in one go or not."""

import json
import os
import random
import re
import shutil
import time

import cv2
import mini_datasets
import mini_mevis
import numpy as np
import pytest
from process_group import ProcessGroup, run_in_group, run_script
from test_metrics import f_by_definition

import inference_davis
import inference_mevis
import inference_ytvos
from datasets.toy import write_toy_mevis
from util.images import read_palette

# How often an evaluation is killed at a random moment; the figures of docs/inference.md are of FLOWRVS_TRIALS=10.
TRIALS = int(os.environ.get("FLOWRVS_TRIALS", "1"))
SMALL = ["--reso_h", "16", "--reso_w", "24"]  # at which the model sees frames


@pytest.fixture
def root(tmp_path):
    mini_mevis.write(tmp_path / "data")
    return tmp_path


def run(root, toy_folder, out, *arguments):
    places = ["--mevis_path", str(root / "data"), "--output_dir", str(root / out), "--wan_path", str(toy_folder)]
    inference_mevis.main([*places, "--device", "cpu", *SMALL, *arguments])
    return json.loads((root / out / "metrics.json").read_text())


def test_metrics_equal_a_direct_rendering_of_the_scoring(root, toy_folder):
    truth = mini_mevis.write(root / "again")
    metrics = run(root, toy_folder, "out")
    expected = {}
    for (video, exp_id), masks in truth.items():
        folder = root / "out" / "Annotations" / video / exp_id
        assert sorted(path.name for path in folder.iterdir()) == ["00000.png", "00001.png", "00002.png"]
        predictions = [cv2.imread(str(folder / f"0000{index}.png"), cv2.IMREAD_UNCHANGED) for index in range(3)]
        assert all(p.shape == mini_mevis.SIZE and set(np.unique(p)) <= {0, 255} for p in predictions)
        pairs = [(prediction > 0, mask) for prediction, mask in zip(predictions, masks, strict=True)]
        j = np.mean([(p & t).sum() / (p | t).sum() if (p | t).any() else 1.0 for p, t in pairs])
        f = np.mean([f_by_definition(p, t) for p, t in pairs])
        expected[f"{video}/{exp_id}"] = {"J": j, "F": f, "J&F": (j + f) / 2}
    assert metrics["units"].keys() == expected.keys()
    for unit, entries in expected.items():
        assert metrics["units"][unit] == pytest.approx(entries, abs=1e-12), unit
    for name in ("J", "F", "J&F"):
        assert metrics[name] == pytest.approx(np.mean([entries[name] for entries in expected.values()]), abs=1e-12)


def test_a_split_without_masks_writes_masks_alone(root, toy_folder):
    (root / "data" / "valid_u").rename(root / "data" / "valid")
    (root / "data" / "valid" / "mask_dict.json").unlink()
    with pytest.raises(FileNotFoundError):
        run(root, toy_folder, "out", "--split", "valid")
    assert len(list((root / "out" / "Annotations").glob("*/*/*.png"))) == 5 * 3


def results(out):
    masks = {path.relative_to(out): path.read_bytes() for path in out.glob("Annotations/**/*.png")}
    assert masks
    return masks, (out / "metrics.json").read_bytes()


def test_two_processes_give_the_masks_and_metrics_of_one(root, toy_folder):
    run(root, toy_folder, "alone")
    places = ["--mevis_path", str(root / "data"), "--output_dir", str(root / "both"), "--wan_path", str(toy_folder)]
    run_in_group(2, run_script, "inference_mevis", [*places, "--device", "cpu", *SMALL])
    assert results(root / "both") == results(root / "alone")
    assert not (root / "both" / ".claims").exists()


@pytest.fixture(scope="module")
def toy_root(tmp_path_factory):
    place = tmp_path_factory.mktemp("data") / "toy"
    write_toy_mevis(place, 5, num_train=1, num_valid_u=3, num_valid=1)
    return place


def wait_for_random_moment(draw, out, num_units):
    """Waits for a random number of expressions, and then anywhere in the writing of masks, records and metrics."""
    wanted = draw.randrange(num_units)
    started = time.monotonic()
    while len(list(out.glob("units/*/*.json"))) < wanted:
        assert time.monotonic() - started < 300
        time.sleep(0.002)
    time.sleep(draw.random() * 0.3)


def test_an_evaluation_killed_at_any_moment_goes_on_to_the_same_masks_and_metrics(toy_root, toy_folder, tmp_path):
    def command(out):
        places = ["--mevis_path", str(toy_root), "--output_dir", str(out), "--wan_path", str(toy_folder)]
        return [*places, "--device", "cpu", *SMALL, "--prompt_batch", "1", "--num_workers", "1"]

    inference_mevis.main(command(tmp_path / "whole"))
    whole = results(tmp_path / "whole")
    num_units = len(list((tmp_path / "whole" / "units").glob("*/*.json")))
    draw = random.Random(0)
    for trial in range(TRIALS):
        out = tmp_path / f"killed{trial}"
        num_processes = 1 + trial % 2
        group = ProcessGroup(num_processes, run_script, "inference_mevis", command(out))
        wait_for_random_moment(draw, out, num_units)
        group.kill(with_workers=trial % 3 != 2)  # every third time the workers live on, and meet the run that goes on
        run_in_group(num_processes, run_script, "inference_mevis", command(out))
        assert results(out) == whole, f"trial {trial}"


def test_a_second_run_needs_no_text_encoder(root, toy_folder, monkeypatch):
    first = run(root, toy_folder, "out", "--videos", "a")
    monkeypatch.setattr("engine.captions.load_text", lambda *_: pytest.fail("loaded again"))
    assert run(root, toy_folder, "out", "--videos", "a") == first


def test_limit_and_videos_choose(root, toy_folder):
    first = run(root, toy_folder, "first", "--limit", "1")
    assert {unit.split("/")[0] for unit in first["units"]} == {"b"}  # the first of the file, not of the alphabet
    named = run(root, toy_folder, "named", "--videos", "a", "b", "--limit", "1")
    assert named == first
    assert sorted(path.name for path in (root / "first" / "Annotations").iterdir()) == ["b"]


def test_another_run_is_refused_until_the_first_may_go(root, toy_folder):
    run(root, toy_folder, "out")
    before = results(root / "out")
    for arguments, message in (
        (["--videos", "a"], r"dataset.videos was 2, is 1"),
        (["--dtype", "bf16"], r"dtype was float32, is bfloat16"),
        (["--threshold", "0.6"], r"options.threshold was 0.5, is 0.6"),
    ):
        with pytest.raises(SystemExit) as caught:
            run(root, toy_folder, "out", *arguments)
        assert re.search(rf"--output_dir .*: holds another run \(.*{message}", caught.value.code)
        assert "--overwrite" in caught.value.code
        assert results(root / "out") == before
    assert run(root, toy_folder, "out", *arguments, "--overwrite") == run(root, toy_folder, "fresh", *arguments)
    assert results(root / "out") == results(root / "fresh")


def test_other_weights_are_refused(root, toy_folder, tmp_path):
    run(root, toy_folder, "out", "--videos", "a")
    other = tmp_path / "other"
    shutil.copytree(toy_folder, other)
    file = other / "transformer" / "diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(SystemExit, match=r"weights.transformer was"):
        run(root, other, "out", "--videos", "a")


def test_ref_youtube_vos_says_which_videos_were_taken_and_leaves_those_of_test(toy_folder, tmp_path, capsys):
    mini_datasets.write_ytvos(tmp_path / "data")
    out = tmp_path / "out"
    arguments = ["--ytvos_path", str(tmp_path / "data"), "--output_dir", str(out), "--wan_path", str(toy_folder)]
    inference_ytvos.main([*arguments, *SMALL, "--device", "cpu"])
    assert "2 videos: those of valid without the 1 of test" in capsys.readouterr().out
    written = {path.relative_to(out / "Annotations").as_posix() for path in out.glob("Annotations/**/*.png")}
    names = [(video, exp_id, frame) for video in ("v1", "v-2") for exp_id in ("0", "1", "10") for frame in (0, 5, 10)]
    assert written == {f"{video}/{exp_id}/{frame:05d}.png" for video, exp_id, frame in names}
    assert not (out / "metrics.json").exists()
    (tmp_path / "list.txt").write_text("t1\n")
    inference_ytvos.main(
        [*arguments, *SMALL, "--device", "cpu", "--overwrite", "--video_list", str(tmp_path / "list.txt")]
    )
    assert "1 videos listed in" in capsys.readouterr().out
    assert [path.name for path in (out / "Annotations").iterdir()] == ["t1"]


def test_ref_davis_has_the_objects_of_each_annotator_merged_beside_the_masks(toy_folder, tmp_path, capsys):
    mini_datasets.write_davis(tmp_path / "data")  # expressions 0, 1 and 10: objects 1, 1 and 3 of annotators 0, 1, 2
    out = tmp_path / "out"
    arguments = ["--davis_path", str(tmp_path / "data"), "--output_dir", str(out), "--wan_path", str(toy_folder)]
    inference_davis.main([*arguments, *SMALL, "--device", "cpu"])
    assert "protocol C" in capsys.readouterr().out
    assert sorted(path.name for path in out.glob("anno_*")) == ["anno_0", "anno_1", "anno_2"]
    for annotator, exp_id, number in ((0, "0", 1), (1, "1", 1), (2, "10", 3)):
        for frame in ("00000", "00005", "00010"):
            mask = cv2.imread(str(out / "Annotations" / "v1" / exp_id / f"{frame}.png"), cv2.IMREAD_UNCHANGED) > 0
            labels = read_palette(out / f"anno_{annotator}" / "v1" / f"{frame}.png")
            assert np.array_equal(labels, np.where(mask, number, 0))  # one object: nothing to decide
    assert json.loads((out / "metrics.json").read_text()).keys() == {"J", "F", "J&F", "units"}


def test_bad_paths_are_one_line_and_no_traceback(root, toy_folder):
    with pytest.raises(SystemExit) as caught:
        inference_mevis.main(["--mevis_path", str(root / "nowhere"), "--wan_path", str(toy_folder)])
    assert "--mevis_path" in caught.value.code
