"""The report stands alone and shows the run; two runs are compared pair by pair, whole videos drawn."""

import base64
import json
import re
from pathlib import Path

import cv2
import mini_datasets
import mini_mevis
import numpy as np
import predictions
import pytest

import evaluate
from datasets.readers.davis import RefDAVIS17
from datasets.readers.mevis import MeViS
from engine.scoring import report
from engine.scoring.comparison import compare, paired_interval
from engine.scoring.html_page import table as make_table
from engine.scoring.prediction_folder import PredictionFolder
from engine.scoring.report import TRUTH_COLOUR, draw_frame, write_report
from util.errors import UserError

NAMES = sorted(mini_mevis.FRAMES)


@pytest.fixture
def data(tmp_path):
    """``data/``, and ``good/`` and ``bad/`` predictions."""
    truth = mini_mevis.write(tmp_path / "data")
    rng = np.random.default_rng(2)
    for (video, exp_id), masks in truth.items():
        predictions.write(tmp_path / "good" / video / exp_id, NAMES, masks)
        predictions.write(tmp_path / "bad" / video / exp_id, NAMES, predictions.spoiled(masks, rng))
    return truth


def run(tmp_path, pred, *arguments):
    places = ["--mevis_path", str(tmp_path / "data"), "--pred", str(tmp_path / pred)]
    places += ["--output_dir", str(tmp_path / f"scores-{pred}"), "--num_workers", "0"]
    evaluate.main(["--dataset", "mevis", *places, *arguments])
    return tmp_path / f"scores-{pred}"


def sections(page):
    """{heading: content}."""
    parts = page.split("<h2>")[1:]
    return dict(part.split("</h2>", 1) for part in parts)


def rows(section):
    """The cells of a section's table, without its head."""
    lines = re.findall(r"<tr>(.*?)</tr>", section, re.DOTALL)[1:]
    return {cells[0]: cells[1:] for cells in (re.findall(r"<td[^>]*>(.*?)</td>", line) for line in lines)}


def test_the_page_needs_nothing_but_itself(tmp_path, data):
    page = (run(tmp_path, "bad") / "report.html").read_text()
    assert "<script" not in page and "http" not in page and "@import" not in page and "url(" not in page
    sources = re.findall(r'src="([^"]*)"', page)
    assert sources and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    for source in sources:
        picture = cv2.imdecode(np.frombuffer(base64.b64decode(source.split(",")[1]), np.uint8), cv2.IMREAD_COLOR)
        height, width = mini_mevis.SIZE
        assert picture.shape[:2] == (round(480 * height / width), 480)


def test_groups_show_the_means_of_their_units(tmp_path, data):
    source = tmp_path / "data" / "valid_u" / "meta_expressions.json"
    content = json.loads(source.read_text())
    content["videos"]["b"]["expressions"]["1"]["kind"] = "several"
    source.write_text(json.dumps(content))
    folder = run(tmp_path, "bad")
    units = json.loads((folder / "metrics.json").read_text())["units"]
    page = sections((folder / "report.html").read_text())

    def line(*names):
        return [str(len(names)), *(f"{np.mean([units[n][m] for n in names]):.4f}" for m in ("J&F", "J", "F"))]

    assert rows(page["By number of targets"]) == {"0": line("b/10"), "1": line("b/0", "a/0", "a/1"), "2": line("b/1")}
    videos = rows(page["By video, the worst first"])
    assert videos == {"a": line("a/0", "a/1"), "b": line("b/0", "b/1", "b/10")}
    assert [float(cells[1]) for cells in videos.values()] == sorted(float(cells[1]) for cells in videos.values())
    # 140 of 2240 pixels are 6.25 %, the bar of 120 5.4 %; with the box of 280 in one of three frames 10.4 %.
    assert rows(page["By object size"]) == {
        "never seen": line("b/10", "a/1"), "5 to 20 %": line("b/0", "b/1", "a/0")
    }  # fmt: skip
    assert rows(page["By kind of sentence"]) == {
        "not labelled": line("b/0", "b/10", "a/0", "a/1"), "several": line("b/1")
    }  # fmt: skip


def test_histograms_count_every_unit(tmp_path, data):
    page = sections((run(tmp_path, "bad") / "report.html").read_text())
    charts = page["Distributions over expressions"].split("<svg")[1:]
    assert len(charts) == 3
    for chart in charts:
        assert sum(int(count) for count in re.findall(r"<title>.*?: (\d+)</title>", chart)) == 5


def test_the_worst_and_the_best_are_shown(tmp_path, data):
    folder = run(tmp_path, "bad")
    units = json.loads((folder / "metrics.json").read_text())["units"]
    page = sections((folder / "report.html").read_text())
    visible = {unit: v["J&F"] for unit, v in units.items() if v["true_frames"] or v["predicted_frames"]}
    ranked = sorted(visible, key=visible.__getitem__)
    captions = {name: re.findall(r"· (\S+)/\d+ ·", page[name]) for name in ("Worst by J&amp;F", "Best by J&amp;F")}
    assert captions["Worst by J&amp;F"][0] == ranked[0]
    assert captions["Best by J&amp;F"][0] == ranked[-1]
    assert sorted(unit for units_shown in captions.values() for unit in units_shown) == sorted(visible)


def test_pictures_tint_the_prediction_and_outline_the_truth(tmp_path, data):
    split = MeViS(tmp_path / "data", "valid_u")
    expression = next(one for one in split.expressions if one.key == ("b", "0"))
    empty = np.zeros((3, *mini_mevis.SIZE), bool)
    predictions.write(tmp_path / "none" / "b" / "0", NAMES, empty)
    bare, _ = draw_frame(PredictionFolder(tmp_path / "none", split, split.expressions), expression)
    good, name = draw_frame(PredictionFolder(tmp_path / "good", split, split.expressions), expression)
    truth = data["b", "0"][NAMES.index(name)]
    shown = cv2.resize(truth.view(np.uint8), good.shape[1::-1], interpolation=cv2.INTER_NEAREST).view(bool)
    inner = cv2.erode(shown.view(np.uint8), np.ones((7, 7))).view(bool)
    changed = (good != bare).any(-1)
    assert inner.any() and changed[inner].all() and not changed[~shown].any()  # of a hit, the tint alone is added
    outline = (bare == TRUTH_COLOUR).all(-1)
    assert outline.any() and not outline[inner].any()


def test_sentences_without_kinds_have_no_table_of_kinds(tmp_path, data):
    assert "By kind of sentence" not in sections((run(tmp_path, "bad") / "report.html").read_text())


def test_long_tables_end(tmp_path, data, monkeypatch):
    monkeypatch.setattr(report, "MOST_ROWS", 1)
    table = sections((run(tmp_path, "bad") / "report.html").read_text())["By video, the worst first"]
    assert len(rows(table)) == 1 and "And 1 more" in table


def test_numbers_stand_below_each_other_where_some_are_missing():
    table = make_table(["", "J"], [["a", 0.5], ["b", ""]])
    assert table.count('class="number"') == 3 and '<td class="number"></td>' in table


def test_captions_cannot_break_the_page(tmp_path, data):
    source = tmp_path / "data" / "valid_u" / "meta_expressions.json"
    source.write_text(source.read_text().replace("both of them", "<script>alert(1)</script>"))
    page = (run(tmp_path, "bad") / "report.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_the_report_can_be_left_out(tmp_path, data):
    assert not (run(tmp_path, "bad", "--no-report") / "report.html").exists()


def test_datasets_without_pictures_or_f_have_a_report_too(tmp_path):
    folder = tmp_path / "truth" / "Annotations" / "v" / "smoke"
    masks = np.zeros((2, 8, 900), bool)
    masks[:, 2:5, 3:60] = True
    predictions.write(folder, ["1", "2"], masks)
    places = ["--folder_path", str(tmp_path / "truth"), "--pred", str(tmp_path / "truth"), "--num_workers", "0"]
    evaluate.main(["--dataset", "folder", *places, "--output_dir", str(tmp_path / "out")])
    page = sections((tmp_path / "out" / "report.html").read_text())
    assert rows(page["By kind of sentence"]) == {"smoke": ["1", "1.0000"]}
    assert "data:image/jpeg" in page["Worst by J"]


# -- two runs ------------------------------------------------------------------------------------------------------


def test_a_run_against_itself_differs_by_nothing(tmp_path, data):
    folder = run(tmp_path, "bad")
    run(tmp_path, "bad", "--compare", str(folder / "metrics.json"))
    comparison = json.loads((folder / "comparison.json").read_text())
    assert set(comparison) == {"J&F", "J", "F", "tIoU", "vIoU", "temporal_change"}
    assert all(entry["difference"] == entry["low"] == entry["high"] == 0 for entry in comparison.values())


def test_the_better_run_is_ahead_by_the_difference_of_the_means(tmp_path, data):
    bad = run(tmp_path, "bad")
    good = run(tmp_path, "good", "--compare", str(bad / "metrics.json"))
    entry = json.loads((good / "comparison.json").read_text())["J&F"]
    means = [json.loads((folder / "metrics.json").read_text())["J&F"] for folder in (good, bad)]
    assert (entry["this"], entry["other"]) == pytest.approx(means)
    assert entry["difference"] == pytest.approx(means[0] - means[1])
    assert 0 < entry["low"] <= entry["difference"] <= entry["high"]
    page = sections((good / "report.html").read_text())
    assert rows(page["Against the other run"])["J&amp;F"][2] == f"{entry['difference']:+.4f}"


def test_runs_on_other_expressions_are_not_compared(tmp_path, data):
    part = run(tmp_path, "bad", "--limit", "1")
    with pytest.raises(SystemExit) as caught:
        run(tmp_path, "good", "--compare", str(part / "metrics.json"))
    assert "one run only has a/0, a/1" in caught.value.code
    assert not (tmp_path / "scores-good").exists()  # found before scoring


NO_METRICS = [None, "{", "[]", '{"J": 1}', '{"units": []}', '{"units": {"a/0": 1}}']
NO_METRICS += [f'{{"units": {{"a/0": {{"J": {value}}}}}}}' for value in ('"high"', "NaN", "true", "null")]


@pytest.mark.parametrize("content", NO_METRICS)
def test_what_is_no_metrics_file_is_refused_before_scoring(tmp_path, data, content):
    file = tmp_path / "other.json"
    if content:
        file.write_text(content)
    with pytest.raises(SystemExit) as caught:
        run(tmp_path, "good", "--compare", str(file))
    assert str(file) in caught.value.code
    assert not (tmp_path / "scores-good").exists()


def test_runs_without_a_common_measure_are_not_compared():
    with pytest.raises(UserError, match="of J&F, J"):
        compare({"units": {"v/0": {"J": 0.5}}}, {"units": {"v/0": {"oIoU": 0.5}}}, Path("other.json"))


def test_davis_is_compared_by_the_objects_of_protocol_a(tmp_path):
    objects = {f"anno_{k}/{video}/1": {"J": 0.5, "F": 0.7, "J&F": 0.6} for k in range(4) for video in ("v", "w")}
    better = {key: {**values, "J": 0.5 + 0.2 * ("/w/" in key)} for key, values in objects.items()}
    entry = compare({"objects": better}, {"objects": objects}, tmp_path)["J"]
    # Drawing two videos: both v, one of each, both w.
    assert [entry[name] for name in ("difference", "low", "high")] == pytest.approx([0.1, 0, 0.2])


def test_a_constant_difference_is_certain():
    interval = paired_interval(np.full(30, 0.25), [str(number % 7) for number in range(30)])
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.25, 0.25, 0.25))


def test_the_interval_of_single_items_is_that_of_the_normal_law():
    differences = np.random.default_rng(0).normal(0.1, 1, 400)
    interval = paired_interval(differences, [str(number) for number in range(400)])
    half = 1.96 * differences.std() / 20
    # 10,000 draws know a bound of the interval to about 2 % of its half width.
    assert (interval.low, interval.high) == pytest.approx((interval.mean - half, interval.mean + half), abs=0.06 * half)


def test_sentences_about_one_video_are_drawn_together():
    differences = np.repeat(np.random.default_rng(1).normal(0, 1, 40), 10)
    single = paired_interval(differences, [str(number) for number in range(400)])
    grouped = paired_interval(differences, [str(number // 10) for number in range(400)])
    assert (grouped.high - grouped.low) / (single.high - single.low) == pytest.approx(np.sqrt(10), rel=0.1)


def test_the_same_seed_gives_the_same_interval():
    differences = np.random.default_rng(2).normal(0, 1, 50)
    groups = [str(number) for number in range(50)]
    assert paired_interval(differences, groups) == paired_interval(differences, groups)
    assert paired_interval(differences, groups) != paired_interval(differences, groups, seed=1)


def test_davis_with_merged_masks_alone_has_a_short_report(tmp_path):
    metrics = {"J": 0.5, "F": 0.7, "J&F": 0.6, "protocol": "A", "overlaps": "as merged in anno_*"}
    metrics |= {"annotators": {"0": {"J": 0.5, "F": 0.7, "J&F": 0.6}}, "objects": {}}
    split = RefDAVIS17(mini_datasets.write_davis(tmp_path / "data").root, "valid")
    write_report(tmp_path / "r.html", "t", metrics, PredictionFolder(tmp_path, split, split.expressions))
    page = sections((tmp_path / "r.html").read_text())
    assert list(page) == ["Overall"]
    assert rows(page["Overall"])["annotator 0"] == ["0.5000", "0.7000", "0.6000"]
