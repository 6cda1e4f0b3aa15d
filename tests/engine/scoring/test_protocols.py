"""Each dataset's protocol on a few pixels, against a direct rendering of it."""

import itertools
import json

import cv2
import mini_datasets
import numpy as np
import predictions
import pytest
from pycocotools import mask as coco_mask

import evaluate
from datasets.readers.a2d import A2DSentences
from datasets.readers.jhmdb import JHMDBSentences
from datasets.readers.long_rvos import LongRVOS
from datasets.readers.refcoco import RefCOCO
from datasets.readers.ytvos import RefYouTubeVOS
from engine.scoring.davis_protocol import merge_masks

SIZE = mini_datasets.SIZE
NAMES = sorted(mini_datasets.FRAMES)


def run(tmp_path, dataset, *arguments):
    places = ["--pred", str(tmp_path / "pred"), "--output_dir", str(tmp_path / "out"), "--num_workers", "0"]
    evaluate.main(["--dataset", dataset, *places, *map(str, arguments)])
    assert (tmp_path / "out" / "metrics.csv").is_file()
    return json.loads((tmp_path / "out" / "metrics.json").read_text())


def predict(tmp_path, truth, seed=0):
    """Writes spoiled masks; returns them by (video, expression id). ``truth``: that key to (names, masks)."""
    rng = np.random.default_rng(seed)
    predicted = {}
    for (video, exp_id), (names, masks) in truth.items():
        predicted[video, exp_id] = predictions.spoiled(masks, rng)
        predictions.write(tmp_path / "pred" / video / exp_id, names, predicted[video, exp_id])
    return predicted


def units_of(metrics, name):
    return {tuple(unit.split("/")): values[name] for unit, values in metrics["units"].items()}


def mean_j(prediction, truth):
    return np.mean([predictions.j_by_definition(p, t) for p, t in zip(prediction, truth, strict=True)])


def mean_f(prediction, truth):
    return np.mean([predictions.f_by_definition(p, t) for p, t in zip(prediction, truth, strict=True)])


# -- videos --------------------------------------------------------------------------------------------------------


def read_truth(split):
    """{key: (names, masks)} of a reader, whose own tests compare it with the files."""
    return {
        expression.key: (
            [expression.frames[index] for index in positions],
            split.masks(expression, positions, SIZE),
        )
        for expression in split.expressions
        for positions in [list(expression.annotated or range(len(expression.frames)))]
    }


def test_ytvos_scores_where_its_masks_were_added(tmp_path):
    root = mini_datasets.write_ytvos(tmp_path / "data").root
    (root / "valid").rename(root / "old")
    (root / "train").rename(root / "valid")
    meta = root / "meta_expressions"
    (meta / "train" / "meta_expressions.json").replace(meta / "valid" / "meta_expressions.json")
    truth = read_truth(RefYouTubeVOS(root, "valid"))
    predicted = predict(tmp_path, truth)
    metrics = run(tmp_path, "ytvos", "--ytvos_path", root)
    expected = {key: mean_j(predicted[key], masks) for key, (_, masks) in truth.items()}
    assert units_of(metrics, "J") == pytest.approx(expected)
    assert metrics["J"] == pytest.approx(np.mean(list(expected.values())))
    assert metrics["F"] == pytest.approx(np.mean([mean_f(predicted[key], masks) for key, (_, masks) in truth.items()]))


def test_long_rvos_reports_tiou_and_viou_for_each_kind(tmp_path):
    root = mini_datasets.write_long_rvos(tmp_path / "data").root
    source = root / "valid" / "meta_expressions.json"
    content = json.loads(source.read_text())
    content["videos"]["v1"]["expressions"]["1"]["type"] = "static"
    source.write_text(json.dumps(content))
    truth = read_truth(LongRVOS(root, "valid"))
    predicted = predict(tmp_path, truth)
    metrics = run(tmp_path, "long_rvos", "--long_rvos_path", root)
    tiou, viou = {}, {}
    for key, (_, masks) in truth.items():
        pairs = list(zip(predicted[key], masks, strict=True))
        either = sum(p.any() or t.any() for p, t in pairs)
        both = [predictions.j_by_definition(p, t) for p, t in pairs if p.any() and t.any()]
        tiou[key], viou[key] = len(both) / either, sum(both) / either
    assert units_of(metrics, "tIoU") == pytest.approx(tiou)
    assert units_of(metrics, "vIoU") == pytest.approx(viou)
    assert metrics["kinds"]["static"]["vIoU"] == pytest.approx(viou["v1", "1"])
    assert metrics["kinds"]["dynamic"]["tIoU"] == pytest.approx(
        np.mean([v for k, v in tiou.items() if k != ("v1", "1")])
    )


# -- images --------------------------------------------------------------------------------------------------------


def image_scores(predicted, truth, passes):
    """oIoU, mIoU and P@K, written out."""
    pairs = [(predicted[key], masks) for key, (_, masks) in truth.items()]
    ious = [(p & t).sum() / (p | t).sum() for p, t in pairs]
    return {
        "oIoU": sum((p & t).sum() for p, t in pairs) / sum((p | t).sum() for p, t in pairs),
        "mIoU": np.mean(ious),
        **{f"P@{k / 10}": np.mean([passes(iou, k / 10) for iou in ious]) for k in range(5, 10)},
    }


def half_of(masks):
    """The upper half of the pixels: IoU exactly one half where their number is even."""
    flat = np.flatnonzero(masks)
    half = np.zeros(masks.size, bool)
    half[flat[: len(flat) // 2]] = True
    return half.reshape(masks.shape)


def write_images(tmp_path, truth):
    """As ``predict``, the first IoU being exactly one half."""
    predicted = {}
    rng = np.random.default_rng(3)
    for number, (key, (names, masks)) in enumerate(truth.items()):
        noisy = np.roll(masks, number, axis=-1) & (rng.random(masks.shape) > 0.1 * number)
        predicted[key] = half_of(masks) if number == 0 else noisy
        predictions.write(tmp_path / "pred" / key[0] / key[1], names, predicted[key])
    return predicted


def test_refcoco_reports_oiou_miou_and_precision_with_equal_let_pass(tmp_path):
    made = mini_datasets.write_refcoco(tmp_path / "data")
    # As runs alone, so that the first can be halved exactly.
    content = json.loads(made.source.read_text())
    block = coco_mask.encode(np.asfortranarray(made.block.astype(np.uint8)))
    segmentation = {"size": list(SIZE), "counts": block["counts"].decode()}
    content["annotations"] = [{**entry, "segmentation": segmentation} for entry in content["annotations"]]
    made.source.write_text(json.dumps(content))
    truth = read_truth(RefCOCO(made.root, "refcoco+", "testA"))
    predicted = write_images(tmp_path, truth)
    metrics = run(tmp_path, "refcoco+", "--coco_path", made.root, "--split", "testA")
    expected = image_scores(predicted, truth, lambda iou, k: iou >= k)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert metrics["units"]["0/0"]["J"] == 0.5
    assert expected != image_scores(predicted, truth, lambda iou, k: iou > k)


@pytest.mark.parametrize("dataset", ["a2d", "jhmdb"])
def test_a2d_and_jhmdb_score_the_annotated_frame_alone_and_equal_does_not_pass(tmp_path, dataset):
    if dataset == "a2d":
        root = mini_datasets.write_a2d(tmp_path / "data").root
        truth = read_truth(A2DSentences(root, "test"))
    else:
        root = mini_datasets.write_jhmdb(tmp_path / "data").root
        truth = read_truth(JHMDBSentences(root))
    assert all(len(names) == 1 for names, _ in truth.values())
    predicted = write_images(tmp_path, truth)
    metrics = run(tmp_path, dataset, f"--{dataset}_path", root)
    expected = image_scores(predicted, truth, lambda iou, k: iou > k)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert metrics["units"].keys() == {"/".join(key) for key in truth}
    first = next(iter(truth))
    if predicted[first].sum() * 2 == truth[first][1].sum():
        assert metrics["units"]["/".join(first)]["J"] == 0.5


def test_frames_around_the_annotated_one_may_be_predicted_too(tmp_path):
    root = mini_datasets.write_a2d(tmp_path / "data").root
    predict(tmp_path, read_truth(A2DSentences(root, "test")))
    expected = run(tmp_path, "a2d", "--a2d_path", root)
    predictions.write(tmp_path / "pred" / "-clip" / "0", ["00004"], np.ones((1, *SIZE), bool))
    assert run(tmp_path, "a2d", "--a2d_path", root) == expected


# -- classes -------------------------------------------------------------------------------------------------------


def class_scores(scores):
    """``scores``: {(video, class name): J}. J by class, and their mean."""
    classes = {name: np.mean([j for (_, other), j in scores.items() if other == name]) for _, name in scores}
    return classes, np.mean(list(classes.values()))


def write_burst(root):
    """Two sequences of four frames, two of them annotated; returns {(video, class id): masks}."""
    rng = np.random.default_rng(4)
    tracks = {"s1": {"1": 5, "2": 5, "3": 9}, "s2": {"1": 9}}
    sequences, truth = [], {}
    for video, classes in tracks.items():
        masks = {track: rng.random((2, *SIZE)) < 0.1 for track in classes}
        masks["1"][0] = False  # not seen there, and not listed
        segmentations = [
            {
                track: {
                    "rle": coco_mask.encode(np.asfortranarray(masks[track][row].astype(np.uint8)))["counts"].decode()
                }
                for track in classes
                if masks[track][row].any()
            }
            for row in range(2)
        ]
        images = [f"frame{number}.jpg" for number in range(4)]
        sequences.append(
            {"seq_name": video, "dataset": "LaSOT", "height": SIZE[0], "width": SIZE[1], "all_image_paths": images}
            | {"annotated_image_paths": [images[1], images[3]], "segmentations": segmentations}
            | {"track_category_ids": classes}
        )
        for number in set(classes.values()):
            truth[video, str(number)] = np.any([masks[t] for t, n in classes.items() if n == number], axis=0)
    categories = [{"id": 5, "name": "cat"}, {"id": 9, "name": "tree house"}]
    content = {"sequences": sequences, "categories": categories}
    mini_datasets.write_json(root / "annotations_burst" / "val" / "all_classes.json", content)
    return truth


def test_burst_is_the_mean_over_videos_then_over_classes(tmp_path):
    truth = write_burst(tmp_path / "TAO")
    predicted = predict(tmp_path, {key: (["frame1", "frame3"], masks) for key, masks in truth.items()})
    metrics = run(tmp_path, "burst", "--burst_path", tmp_path / "TAO")
    names = {"5": "cat", "9": "tree house"}
    classes, overall = class_scores({(v, names[n]): mean_j(predicted[v, n], masks) for (v, n), masks in truth.items()})
    assert {kind: means["J"] for kind, means in metrics["kinds"].items()} == pytest.approx(classes)
    assert metrics["J"] == pytest.approx(overall)
    assert metrics["J"] != pytest.approx(np.mean(list(units_of(metrics, "J").values())))  # not over units
    assert "F" not in metrics


def write_vspw(root):
    """Two videos; returns {(video, class): (truth, void)}."""
    rng = np.random.default_rng(5)
    classes = {"w1": [0, 7], "w2": [7]}
    truth = {}
    for video, numbers in classes.items():
        values = rng.choice(np.array([0, 255, 1, 8, 20], np.uint8), (3, *SIZE))
        for index in (2, 0, 1):  # no order to rely on
            mini_datasets.write_picture(root / "data" / video / "origin" / f"{index:08d}_7.jpg")
            cv2_file = root / "data" / video / "mask" / f"{index:08d}_7.png"
            cv2_file.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(cv2_file), values[index])
        for number in numbers:
            truth[video, str(number)] = values == number + 1, (values == 0) | (values == 255)
    (root / "val.txt").write_text("w1\nw2\n")
    mini_datasets.write_json(root / "val_vid2classes.json", classes)
    return truth


def test_vspw_leaves_void_out_of_j(tmp_path):
    truth = write_vspw(tmp_path / "VSPW_480p")
    names = [f"{index:08d}_7" for index in range(3)]
    predicted = predict(tmp_path, {key: (names, masks) for key, (masks, _) in truth.items()})
    metrics = run(tmp_path, "vspw", "--vspw_path", tmp_path / "VSPW_480p")
    scores = {
        (video, f"class {number}"): mean_j(predicted[video, number] & ~void, masks & ~void)
        for (video, number), (masks, void) in truth.items()
    }
    classes, overall = class_scores(scores)
    assert {kind: means["J"] for kind, means in metrics["kinds"].items()} == pytest.approx(classes)
    assert metrics["J"] == pytest.approx(overall)


def test_vspw_names_its_classes_where_the_names_are_given(tmp_path):
    truth = write_vspw(tmp_path / "VSPW_480p")
    names = {"others": 0} | {f"stuff {value}": value for value in range(1, 125)}
    mini_datasets.write_json(tmp_path / "VSPW_480p" / "label_num_dic_final.json", names)
    predict(tmp_path, {key: ([f"{i:08d}_7" for i in range(3)], masks) for key, (masks, _) in truth.items()})
    assert run(tmp_path, "vspw", "--vspw_path", tmp_path / "VSPW_480p")["kinds"].keys() == {"stuff 1", "stuff 8"}


def test_mask_folders_ignore_what_is_neither_black_nor_white(tmp_path):
    rng = np.random.default_rng(6)
    truth, names = {}, ["0001", "0002"]
    for key in (("p1", "smoke"), ("p2", "smoke"), ("p2", "breaking wave")):
        values = rng.choice(np.array([0, 128, 255], np.uint8), (2, *SIZE))
        folder = tmp_path / "data" / "Annotations" / key[0] / key[1]
        folder.mkdir(parents=True)
        for name, value in zip(names, values, strict=True):
            cv2.imwrite(str(folder / f"{name}.png"), value)
        truth[key] = values == 255, values == 128
    predicted = predict(tmp_path, {key: (names, masks) for key, (masks, _) in truth.items()})
    metrics = run(tmp_path, "folder", "--folder_path", tmp_path / "data")
    scores = {key: mean_j(predicted[key] & ~void, masks & ~void) for key, (masks, void) in truth.items()}
    classes, overall = class_scores(scores)
    assert units_of(metrics, "J") == pytest.approx(scores)
    assert {kind: means["J"] for kind, means in metrics["kinds"].items()} == pytest.approx(classes)
    assert metrics["J"] == pytest.approx(overall)


# -- Ref-DAVIS17 ---------------------------------------------------------------------------------------------------


def write_davis(root):
    """Two videos of two objects, described by four annotators; returns {video: object numbers [T, H, W]}."""
    made = mini_datasets.write_davis(root)
    expressions = {
        str(4 * number + annotator): {"exp": f"{annotator} says {number}", "obj_id": str(number + 1)}
        for number in range(2)
        for annotator in range(4)
    }
    videos = {video: {"expressions": expressions, "frames": mini_datasets.FRAMES} for video in made.truth}
    mini_datasets.write_json(made.source, {"videos": videos})
    # A third object from the first frame on in one video, that nobody speaks of, and a late one in the other.
    for video, index in (("v1", 0), ("v-2", 1)):
        for frame in range(index, 3):
            made.truth[video][frame, 24:31, 42:47] = 3
            file = root / "valid" / "Annotations" / video / f"{NAMES[frame]}.png"
            mini_datasets.write_palette(file, made.truth[video][frame])
    return made.truth


def protocol_a(merged, numbers):
    """J and F of the objects of one video, the best of all assignments, written out."""
    void = numbers == 255
    objects = range(1, int(numbers[0][~void[0]].max()) + 1)
    proposals = range(1, max(int(merged.max()), len(objects)) + 1)
    pairs = {
        (proposal, number): (
            mean_j((merged == proposal) & ~void, numbers == number),
            mean_f((merged == proposal) & ~void, numbers == number),
        )
        for proposal in proposals
        for number in objects
    }
    best = max(
        itertools.permutations(proposals, len(objects)),
        key=lambda chosen: sum(sum(pairs[proposal, number]) for number, proposal in enumerate(chosen, 1)),
    )
    return [pairs[proposal, number] for number, proposal in enumerate(best, 1)]


def merge_by_definition(probabilities):
    """[N, H, W] to numbers, pixel by pixel."""
    merged = np.zeros(probabilities.shape[1:], np.uint8)
    for place in np.ndindex(merged.shape):
        values = [0.1, *(p if p >= 0.5 else 0 for p in probabilities[(slice(None), *place)])]
        merged[place] = values.index(max(values))
    return merged


def predict_davis(tmp_path, truth):
    """Masks of each expression, by (video, expression id): overlapping, and two objects swapped."""
    rng = np.random.default_rng(7)
    predicted = {}
    for video, numbers in truth.items():
        for exp_id in range(8):
            number = exp_id // 4 + 1
            number = 3 - number if exp_id % 4 == 2 else number  # the third annotator's objects are swapped
            mask = np.roll(numbers == number, rng.integers(-2, 3, 2), (1, 2)) | (rng.random(numbers.shape) < 0.03)
            predicted[video, str(exp_id)] = mask
            predictions.write(tmp_path / "pred" / video / str(exp_id), NAMES, mask)
    return predicted


def expected_a(truth, merged_of):
    """J and F of protocol A. ``merged_of(annotator, video)``: numbers [T, H, W]."""
    per_annotator = [
        np.mean(
            [pair for video, numbers in truth.items() for pair in protocol_a(merged_of(annotator, video), numbers)], 0
        )
        for annotator in range(4)
    ]
    return per_annotator, np.mean(per_annotator, axis=0)


def test_davis_a_from_binary_masks_and_c_beside_it(tmp_path):
    truth = write_davis(tmp_path / "data")
    predicted = predict_davis(tmp_path, truth)
    metrics = run(tmp_path, "davis", "--davis_path", tmp_path / "data")

    def merged_of(annotator, video):
        masks = [predicted[video, str(4 * number + annotator)] for number in range(2)]
        return np.stack([merge_by_definition(np.stack(frame).astype(float)) for frame in zip(*masks, strict=True)])

    per_annotator, (j, f) = expected_a(truth, merged_of)
    for annotator, pair in enumerate(per_annotator):
        assert [metrics["annotators"][str(annotator)][name] for name in ("J", "F")] == pytest.approx(pair)
    assert (metrics["J"], metrics["F"], metrics["J&F"]) == pytest.approx((j, f, (j + f) / 2))
    assert "first object" in metrics["overlaps"]
    # Three objects of v1, of which the third has no sentence; two of v-2, whose third comes too late to count.
    assert [name for name in metrics["objects"] if name.startswith("anno_0")] == [
        *("anno_0/v-2/1", "anno_0/v-2/2"), *("anno_0/v1/1", "anno_0/v1/2", "anno_0/v1/3"),
    ]  # fmt: skip
    direct = {
        key: (
            mean_j(masks, truth[key[0]] == int(key[1]) // 4 + 1),
            mean_f(masks, truth[key[0]] == int(key[1]) // 4 + 1),
        )
        for key, masks in predicted.items()
    }
    assert units_of(metrics, "J") == pytest.approx({key: pair[0] for key, pair in direct.items()})
    assert (metrics["C"]["J"], metrics["C"]["F"]) == pytest.approx(np.mean(list(direct.values()), axis=0))
    # The matching forgives the third annotator's swap, which C does not.
    swapped = np.mean([pair[0] for key, pair in direct.items() if int(key[1]) % 4 == 2])
    assert swapped < 0.2 < metrics["annotators"]["2"]["J"]


def write_merged(tmp_path, truth):
    """``anno_*`` of numbers of proposals, three of them; returns {(annotator, video): numbers}."""
    rng = np.random.default_rng(8)
    merged = {}
    for annotator, video in itertools.product(range(4), truth):
        numbers = np.where(truth[video] == 255, 0, truth[video])
        noise = rng.integers(0, 5, numbers.shape).astype(np.uint8)
        merged[annotator, video] = np.where(rng.random(numbers.shape) < 0.8, (numbers * 3) % 4, noise).astype(np.uint8)
        for name, values in zip(NAMES, merged[annotator, video], strict=True):
            mini_datasets.write_palette(tmp_path / "pred" / f"anno_{annotator}" / video / f"{name}.png", values)
    return merged


def test_davis_a_takes_merged_masks_where_they_are_given(tmp_path):
    truth = write_davis(tmp_path / "data")
    merged = write_merged(tmp_path, truth)
    metrics = run(tmp_path, "davis", "--davis_path", tmp_path / "data")
    _, (j, f) = expected_a(truth, lambda annotator, video: merged[annotator, video])
    assert (metrics["J"], metrics["F"]) == pytest.approx((j, f))
    assert metrics["overlaps"] == "as merged in anno_*"
    assert "C" not in metrics and "units" not in metrics
    predict_davis(tmp_path, truth)  # beside them
    both = run(tmp_path, "davis", "--davis_path", tmp_path / "data")
    assert (both["J"], both["F"]) == (metrics["J"], metrics["F"])
    assert len(both["units"]) == 16


def davis_refuses(tmp_path, *arguments):
    with pytest.raises(SystemExit) as caught:
        run(tmp_path, "davis", "--davis_path", tmp_path / "data", *arguments)
    return caught.value.code


def test_davis_a_needs_every_merged_mask(tmp_path):
    truth = write_davis(tmp_path / "data")
    write_merged(tmp_path, truth)
    everything = run(tmp_path, "davis", "--davis_path", tmp_path / "data")
    (tmp_path / "pred" / "anno_3" / "v1" / "00005.png").unlink()
    assert "anno_3/v1/00005.png" in davis_refuses(tmp_path)
    part = run(tmp_path, "davis", "--davis_path", tmp_path / "data", "--partial")
    assert part["objects"] == {name: v for name, v in everything["objects"].items() if "/v1/" not in name}
    assert part["missing"] == [f"v1/{exp_id}" for exp_id in range(8)]


@pytest.mark.parametrize("extra", ["anno_2/v1/00015.png", "anno_2/v9/00000.png"])
def test_davis_names_merged_masks_of_no_frame(tmp_path, extra):
    truth = write_davis(tmp_path / "data")
    write_merged(tmp_path, truth)
    mini_datasets.write_palette(tmp_path / "pred" / extra, np.zeros(SIZE, np.uint8))
    assert extra.removesuffix("00000.png") in davis_refuses(tmp_path)


def test_davis_a_leaves_out_sequences_of_which_an_expression_is_missing(tmp_path):
    truth = write_davis(tmp_path / "data")
    predict_davis(tmp_path, truth)
    (tmp_path / "pred" / "v1" / "6" / "00005.png").unlink()
    assert "v1/6 lacks 00005.png" in davis_refuses(tmp_path)
    metrics = run(tmp_path, "davis", "--davis_path", tmp_path / "data", "--partial")
    assert {name.split("/")[1] for name in metrics["objects"]} == {"v-2"}
    assert len(metrics["units"]) == 15  # C goes by expressions
    assert metrics["C"]["missing"] == ["v1/6"]


def test_davis_refuses_more_proposals_than_the_toolkit_does(tmp_path):
    truth = write_davis(tmp_path / "data")
    write_merged(tmp_path, truth)
    mini_datasets.write_palette(tmp_path / "pred" / "anno_1" / "v1" / "00000.png", np.full(SIZE, 21, np.uint8))
    assert "1 to 20, got 21" in davis_refuses(tmp_path)


def test_davis_refuses_expressions_that_are_not_four_annotators(tmp_path):
    mini_datasets.write_davis(tmp_path / "data")  # 0, 1 and 10
    for video, exp_id in itertools.product(("v1", "v-2"), ("0", "1", "10")):
        predictions.write(tmp_path / "pred" / video / exp_id, NAMES, np.zeros((3, *SIZE), bool))
    assert "must have expression ids 0 to 4N-1" in davis_refuses(tmp_path)


def test_pixels_that_several_masks_claim_go_to_the_first_as_in_a_merge_of_equal_probabilities():
    masks = np.random.default_rng(9).random((3, 2, 8, 9)) < 0.4
    expected = np.stack([merge_by_definition(masks[:, frame].astype(float)) for frame in range(2)])
    assert (merge_masks(masks) == expected).all()
