"""``inference_mevis.py``: the official unit and numbers, in one process or several."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import mini_mevis
import numpy as np
import pytest
from test_metrics import f_by_definition

import inference_mevis

ROOT = Path(__file__).parents[1]


@pytest.fixture
def root(tmp_path):
    mini_mevis.write(tmp_path / "data")
    return tmp_path


def run(root, toy_folder, out, *arguments):
    places = ["--mevis_path", str(root / "data"), "--output_dir", str(root / out), "--wan_path", str(toy_folder)]
    inference_mevis.main([*places, "--device", "cpu", *arguments])
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


def test_two_processes_score_every_unit_once_and_like_one(root, toy_folder):
    alone = run(root, toy_folder, "alone")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "inference_mevis.py", "--mevis_path", str(root / "data"), "--output_dir"]
    command += [str(root / "both"), "--wan_path", str(toy_folder), "--device", "cpu"]
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(command, cwd=ROOT, env=os.environ | environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert json.loads((root / "both" / "metrics.json").read_text()) == alone


def test_bad_paths_are_one_line_and_no_traceback(root, toy_folder):
    with pytest.raises(SystemExit) as caught:
        inference_mevis.main(["--mevis_path", str(root / "nowhere"), "--wan_path", str(toy_folder)])
    assert "--mevis_path" in caught.value.code
