"""``evaluate.py`` on MeViS: the numbers by direct rendering, completeness, and refusals that name the file."""

import csv
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import mini_mevis
import numpy as np
import predictions
import pytest
from PIL import Image

import engine.scoring.run
import engine.scoring.score_folder
import evaluate
import inference_mevis
from util.workers import WorkerPool

ROOT = Path(__file__).parents[3]
NAMES = sorted(mini_mevis.FRAMES)


@pytest.fixture
def data(tmp_path):
    """The truth; ``data/`` and ``pred/`` in the test's folder."""
    truth = mini_mevis.write(tmp_path / "data")
    rng = np.random.default_rng(1)
    for (video, exp_id), masks in truth.items():
        predictions.write(tmp_path / "pred" / video / exp_id, NAMES, predictions.spoiled(masks, rng))
    return truth


def run(tmp_path, *arguments, pred="pred"):
    places = ["--mevis_path", str(tmp_path / "data"), "--pred", str(tmp_path / pred)]
    evaluate.main(
        ["--dataset", "mevis", *places, "--output_dir", str(tmp_path / "out"), "--num_workers", "0", *arguments]
    )
    return json.loads((tmp_path / "out" / "metrics.json").read_text())


def refused(tmp_path, *arguments):
    with pytest.raises(SystemExit) as caught:
        run(tmp_path, *arguments)
    assert not (tmp_path / "out").exists()
    return caught.value.code


def rendered(tmp_path, truth):
    """J, F, tIoU and vIoU of every unit, written out."""
    expected = {}
    for (video, exp_id), masks in truth.items():
        files = [tmp_path / "pred" / video / exp_id / f"{name}.png" for name in NAMES]
        pairs = list(zip([cv2.imread(str(file), 0) > 0 for file in files], masks, strict=True))
        ious = [predictions.j_by_definition(p, t) for p, t in pairs]
        either = [i for i, (p, t) in enumerate(pairs) if p.any() or t.any()]
        both = [i for i, (p, t) in enumerate(pairs) if p.any() and t.any()]
        j, f = np.mean(ious), np.mean([predictions.f_by_definition(p, t) for p, t in pairs])
        expected[f"{video}/{exp_id}"] = {
            "J": j,
            "F": f,
            "J&F": (j + f) / 2,
            "tIoU": len(both) / len(either) if either else 1,
            "vIoU": sum(ious[i] for i in both) / len(either) if either else 1,
            "temporal_change": np.mean([abs(b - a) for a, b in itertools.pairwise(ious)]),
            "temporal_drift": (ious[-1] - ious[0]) / (len(ious) - 1),
        }
    return expected


def test_metrics_equal_a_direct_rendering(tmp_path, data):
    metrics = run(tmp_path)
    expected = rendered(tmp_path, data)
    assert list(metrics["units"]) == ["b/0", "b/1", "b/10", "a/0", "a/1"]
    for unit, values in expected.items():
        assert {name: metrics["units"][unit][name] for name in values} == pytest.approx(values, abs=1e-12), unit
    for name in ("J", "F", "J&F", "tIoU", "vIoU", "temporal_change", "temporal_drift"):
        assert metrics[name] == pytest.approx(np.mean([values[name] for values in expected.values()]), abs=1e-12)
    answered = {
        unit: any(cv2.imread(str(f), 0).any() for f in (tmp_path / "pred" / unit).iterdir()) for unit in expected
    }
    # The object of a/1 is never seen, b/10 has none.
    assert metrics["N-acc"] == np.mean([not answered["b/10"], not answered["a/1"]])
    assert metrics["T-acc"] == np.mean([answered[unit] for unit in ("b/0", "b/1", "a/0")])
    assert metrics["units"]["b/0"]["true_area"] == pytest.approx(10 * 14 / (40 * 56))


def test_the_csv_has_a_line_for_each_unit(tmp_path, data):
    metrics = run(tmp_path)
    with (tmp_path / "out" / "metrics.csv").open(newline="") as file:
        rows = {row["unit"]: row for row in csv.DictReader(file)}
    assert rows.keys() == metrics["units"].keys()
    assert rows["b/1"]["caption"] == "both of them"
    assert float(rows["b/1"]["J&F"]) == metrics["units"]["b/1"]["J&F"]


def test_the_masks_of_inference_score_as_inference_says(tmp_path, data, toy_folder):
    places = ["--mevis_path", str(tmp_path / "data"), "--output_dir", str(tmp_path / "run")]
    inference_mevis.main([*places, "--wan_path", str(toy_folder), "--device", "cpu"])
    inferred = json.loads((tmp_path / "run" / "metrics.json").read_text())
    metrics = run(tmp_path, pred="run")
    for name in ("J", "F", "J&F"):
        assert metrics[name] == inferred[name]
    for unit, values in inferred["units"].items():
        assert {name: metrics["units"][unit][name] for name in values} == values


def test_workers_and_one_process_give_the_same(tmp_path, data):
    alone = run(tmp_path)
    assert run(tmp_path, "--num_workers", "2") == alone


def test_small_jobs_start_no_workers_unless_asked_to(tmp_path, data, monkeypatch):
    started = []

    class Pool(WorkerPool):
        def __init__(self, function, context, num_workers):
            started.append(num_workers)
            super().__init__(function, context, num_workers)

    monkeypatch.setattr(engine.scoring.score_folder, "WorkerPool", Pool)
    by_default = ["--dataset", "mevis", "--mevis_path", str(tmp_path / "data"), "--pred", str(tmp_path / "pred")]
    evaluate.main([*by_default, "--output_dir", str(tmp_path / "out")])
    assert started == []
    run(tmp_path, "--num_workers", "1")
    assert started == [1]
    monkeypatch.setattr(engine.scoring.score_folder, "PIXELS_WITHOUT_WORKERS", 0)
    monkeypatch.setattr(engine.scoring.score_folder, "num_cores", lambda: 1)
    evaluate.main([*by_default, "--output_dir", str(tmp_path / "out")])
    assert started == [1, 1]


def test_perfect_masks_score_one(tmp_path, data):
    for (video, exp_id), masks in data.items():
        predictions.write(tmp_path / "pred" / video / exp_id, NAMES, masks)
    metrics = run(tmp_path)
    assert [metrics[n] for n in ("J", "F", "J&F", "tIoU", "vIoU", "N-acc", "T-acc")] == [1] * 7
    assert metrics["temporal_change"] == 0


def test_kinds_of_sentences_have_their_own_means(tmp_path, data):
    file = tmp_path / "data" / "valid_u" / "meta_expressions.json"
    content = json.loads(file.read_text())
    for video, record in content["videos"].items():
        for fields in record["expressions"].values():
            fields["kind"] = "one" if video == "a" else "other"
    file.write_text(json.dumps(content))
    metrics = run(tmp_path)
    for kind, units in (("one", ["a/0", "a/1"]), ("other", ["b/0", "b/1", "b/10"])):
        for name in ("J", "F", "tIoU"):
            assert metrics["kinds"][kind][name] == pytest.approx(np.mean([metrics["units"][u][name] for u in units]))


def test_videos_and_limit_choose(tmp_path, data):
    everything = run(tmp_path)["units"]
    assert run(tmp_path, "--videos", "a")["units"] == {u: v for u, v in everything.items() if u[0] == "a"}
    assert run(tmp_path, "--limit", "1")["units"] == {u: v for u, v in everything.items() if u[0] == "b"}


def test_an_unknown_video_is_refused(tmp_path, data):
    assert "--videos: 'c'" in refused(tmp_path, "--videos", "c")


def test_palette_and_one_bit_masks_are_read(tmp_path, data):
    expected = run(tmp_path)
    for number, file in enumerate(sorted((tmp_path / "pred").glob("*/*/*.png"))):
        mask = cv2.imread(str(file), 0) > 0
        if number % 2:
            Image.fromarray(mask).save(file)  # one bit
        else:
            image = Image.frombytes("P", mask.shape[::-1], mask.astype(np.uint8).tobytes())
            image.putpalette([0, 0, 0, 255, 0, 0])
            image.save(file)
    assert run(tmp_path) == expected


# -- what is refused -----------------------------------------------------------------------------------------------


def test_a_missing_frame_is_named_unless_parts_are_allowed(tmp_path, data):
    everything = run(tmp_path)["units"]
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "pred" / "b" / "1" / "00001.png").unlink()
    shutil.rmtree(tmp_path / "pred" / "a" / "0")
    message = refused(tmp_path)
    assert "2 of 5 expressions" in message and "b/1 lacks 00001.png" in message and "a/0 lacks 00000.png" in message
    metrics = run(tmp_path, "--partial")
    assert metrics["missing"] == ["b/1", "a/0"]
    assert metrics["units"] == {u: v for u, v in everything.items() if u not in metrics["missing"]}
    assert metrics["J"] == pytest.approx(np.mean([v["J"] for v in metrics["units"].values()]))


def test_a_folder_without_any_expression_is_refused_even_in_part(tmp_path, data):
    for folder in ("a", "b"):
        shutil.rmtree(tmp_path / "pred" / folder)
    assert "at least one expression" in refused(tmp_path, "--partial")


def test_no_folder_is_refused(tmp_path, data):
    shutil.rmtree(tmp_path / "pred")
    assert "no such folder" in refused(tmp_path)
    (tmp_path / "pred").write_text("")
    assert "must be a folder, got a file" in refused(tmp_path)


def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path, data, monkeypatch):
    monkeypatch.setattr(engine.scoring.run, "score_folder", lambda *_: pytest.fail("it began to score"))
    (tmp_path / "file").write_text("")
    message = refused(tmp_path, "--output_dir", str(tmp_path / "file" / "out"))
    assert f"{tmp_path / 'file' / 'out'}: cannot be written" in message


def test_nothing_of_an_earlier_run_stays_beside_the_new_numbers(tmp_path, data):
    run(tmp_path)
    out = tmp_path / "out"
    run(tmp_path, "--compare", str(out / "metrics.json"))
    names = {"metrics.json", "metrics.csv"}
    assert {file.name for file in out.iterdir()} == names | {"report.html", "comparison.json"}
    run(tmp_path, "--no-report")
    assert {file.name for file in out.iterdir()} == names


@pytest.mark.parametrize("extra", ["c/0/00000.png", "a/7/00000.png", "a/0/00003.png", "a/0/notes.txt", "a/readme"])
def test_what_nobody_asked_for_is_named(tmp_path, data, extra):
    file = tmp_path / "pred" / extra
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"")
    message = refused(tmp_path)
    named = {"c/0/00000.png": " c;", "a/7/00000.png": "a/7;"}.get(extra, extra)
    assert named in message and "no expression" in message


def test_loose_and_hidden_files_are_let_be(tmp_path, data):
    for name in ("metrics.json", ".DS_Store", "a/.DS_Store", "a/0/.DS_Store"):
        (tmp_path / "pred" / name).write_text("{}")
    assert len(run(tmp_path)["units"]) == 5


def spoil_size(file):
    Image.new("L", (56, 39)).save(file)


def spoil_mode(file):
    Image.new("RGB", (56, 40)).save(file)


def spoil_values(file):
    Image.fromarray(np.full((40, 56), 128, np.uint8)).save(file)


def spoil_ones(file):
    Image.fromarray(np.ones((40, 56), np.uint8)).save(file)


def spoil_bytes(file):
    file.write_bytes(file.read_bytes()[:60])


def spoil_form(file):
    Image.new("L", (56, 40)).save(file, format="JPEG")


SPOILS = [
    (spoil_size, "56 x 40, got 56 x 39"),
    (spoil_mode, "got mode RGB"),
    (spoil_values, "got the value 128"),
    (spoil_ones, "got the value 1;"),
    (spoil_bytes, "damaged"),
    (spoil_form, "not a PNG"),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILS)
def test_a_bad_mask_is_named_with_what_is_wrong(tmp_path, data, spoil, message):
    file = tmp_path / "pred" / "b" / "1" / "00001.png"
    spoil(file)
    answer = refused(tmp_path)
    assert str(file) in answer and message in answer


def test_a_bad_mask_is_named_from_a_worker_too(tmp_path, data):
    spoil_values(tmp_path / "pred" / "b" / "1" / "00001.png")
    assert "got the value 128" in refused(tmp_path, "--num_workers", "1")


def test_a_split_without_masks_is_not_scored(tmp_path, data):
    (tmp_path / "data" / "valid_u" / "mask_dict.json").unlink()
    (tmp_path / "data" / "valid_u").rename(tmp_path / "data" / "valid")
    assert "no public masks" in refused(tmp_path, "--split", "valid")


def test_an_unknown_split_is_refused(tmp_path, data):
    assert "did you mean 'valid'" in refused(tmp_path, "--split", "vali")


def test_torch_is_never_imported():
    script = "import sys, evaluate; assert 'torch' not in sys.modules and 'accelerate' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
