"""``evaluate``: the masks of a call, each once, in bounded memory, resumed without a trace."""

import json
import threading
import weakref

import cv2
import mini_mevis
import numpy as np
import pytest
import torch
from accelerate import PartialState
from tiny_training import CaptionTable
from torch.nn.functional import interpolate

import engine.inference.read_ahead
from datasets.readers.mevis import MeViS
from datasets.split import Expression, Split, with_videos
from engine.inference.read_ahead import VIDEOS_AHEAD, load_videos
from engine.inference.results_folder import ResultsFolder
from engine.inference.segment_split import merge_objects, segment_split
from engine.inference.workload import VideoWork, list_workload
from engine.segment_options import SegmentOptions
from models.output import pack_masks
from util.bitmasks import unpack_masks
from util.errors import UserError
from util.images import read_palette
from util.mask_files import write_labels

SMALL = {"box_height": 16, "box_width": 24}  # at which the model sees frames


@pytest.fixture
def split(tmp_path):
    mini_mevis.write(tmp_path / "data")
    return MeViS(tmp_path / "data", "valid_u")


@pytest.fixture
def captions(split, toy_pipeline):
    texts = [expression.caption for expression in split.expressions]
    return CaptionTable(toy_pipeline, texts)


@pytest.fixture
def run(toy_pipeline, split, captions):
    def run(folder, prompt_batch=2):
        folder.path.mkdir(exist_ok=True)
        options = SegmentOptions(prompt_batch=prompt_batch, **SMALL)
        return segment_split(toy_pipeline, split, captions, folder, options, PartialState())

    return run


def contents(folder, pattern="Annotations/**/*.png"):
    files = {path.relative_to(folder.path): path.read_bytes() for path in folder.path.glob(pattern)}
    assert files
    return files


def test_masks_are_those_of_a_call(run, toy_pipeline, split, tmp_path):
    folder = ResultsFolder(tmp_path / "out")
    run(folder)
    for video in ("a", "b"):
        expressions = [expression for expression in split.expressions if expression.video == video]
        frames = np.stack(split.read_frames(expressions[0], [0, 1, 2]))
        result = toy_pipeline(frames, [expression.caption for expression in expressions], prompt_batch=2, **SMALL)
        for expression, masks in zip(expressions, result.masks, strict=True):
            place = folder.annotations / video / expression.exp_id
            for frame, mask in zip(expression.frames, masks, strict=True):
                written = cv2.imread(str(place / f"{frame}.png"), cv2.IMREAD_UNCHANGED)
                assert np.array_equal(written, 255 * mask.astype(np.uint8))


def test_a_call_with_embeddings_equals_one_with_sentences(toy_pipeline):
    frames = np.random.default_rng(0).integers(0, 256, (5, 40, 72, 3), dtype=np.uint8)
    table = CaptionTable(toy_pipeline, ["a dog", "a cat"])
    result = toy_pipeline(frames, prompt_embeds=table.lookup(["a dog", "a cat"]))
    assert torch.equal(result.logits, toy_pipeline(frames, ["a dog", "a cat"]).logits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "one of them"),
        ({"prompts": "a dog", "prompt_embeds": torch.zeros(1, 32, 64)}, "one of them"),
        ({"prompt_embeds": torch.zeros(1, 31, 64)}, r"\[P, 32, 64\], got \[1, 31, 64\]"),
        ({"prompt_embeds": torch.zeros(0, 32, 64)}, r"\[P, 32, 64\]"),
        ({"prompt_embeds": torch.zeros(32, 64)}, r"\[P, 32, 64\]"),
    ],
)
def test_prompts_come_as_sentences_or_as_whole_embeddings(toy_pipeline, arguments, message):
    with pytest.raises(UserError, match=message):
        toy_pipeline(np.zeros((1, 16, 16, 3), np.uint8), **arguments)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (40, 56), (37, 61)])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_packed_masks_are_resized_logits_above_the_threshold(size, threshold):
    logits = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    resized = interpolate(logits, size, mode="bilinear", align_corners=False)
    bits = pack_masks(logits, size, threshold)
    assert bits.dtype == torch.uint8
    assert bits.shape == (2, 3, -(-size[0] * size[1] // 8))
    assert np.array_equal(unpack_masks(bits.numpy(), size), (resized.sigmoid() > threshold).numpy())


def test_merged_objects_are_the_argmax_over_a_background_of_a_tenth():
    generator = np.random.default_rng(0)
    logits = generator.choice([-1.0, -0.5, 0.0, 0.5, 1.0], (3, 2, 6, 7)).astype(np.float32)  # with many equals
    labels = merge_objects(torch.from_numpy(logits), [1, 2, 5], (6, 7), 0.5)
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    probabilities[probabilities < 0.5] = 0
    with_background = np.concatenate([np.full((1, 2, 6, 7), 0.1), probabilities])
    assert np.array_equal(labels.numpy(), np.array([0, 1, 2, 5])[with_background.argmax(0)])


def test_labels_are_written_as_a_palette_in_the_colours_of_voc(tmp_path):
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    write_labels(tmp_path / "0.png", labels)
    assert np.array_equal(read_palette(tmp_path / "0.png"), labels)
    rgb = cv2.imread(str(tmp_path / "0.png"))[..., ::-1]
    colours = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128], [0, 128, 128]]
    assert rgb.reshape(-1, 3)[:7].tolist() == colours
    assert rgb.reshape(-1, 3)[8].tolist() == [64, 0, 0]


def expressions(lengths, captions=("a", "b", "a", "c")):
    return [
        Expression(video, str(number), caption, tuple(map(str, range(length))), ())
        for video, length in lengths.items()
        for number, caption in enumerate(captions)
    ]


class Fake(Split):
    """Black frames of 8 x 8."""

    def __init__(self, found):
        self.expressions, self.has_masks, self.source = found, False, "fake.json"

    def frame_file(self, expression, index):
        raise NotImplementedError

    def masks(self, expression, indices, size):
        raise NotImplementedError

    def source_size(self, expression):
        return (8, 8)

    def iter_frames(self, expression, indices, at_least=None):
        return [np.zeros((8, 8, 3), np.uint8) for _ in indices]


def test_the_longest_video_is_first_and_parts_do_not_depend_on_what_is_done():
    split = Fake(expressions({"short": 2, "long": 9, "middle": 5}))
    whole = list_workload(split, 2, lambda _: False)
    assert [work.video for work in whole] == ["long", "middle", "short"]
    assert [group.captions for group in whole[0].groups] == [(("a", "b"),), (("c",),)]
    assert [[(one.exp_id, row) for one, row in group.expressions] for group in whole[0].groups] == [
        [("0", 0), ("1", 1), ("2", 0)], [("3", 0)],
    ]  # fmt: skip
    done = {("long", "0"), ("long", "2"), ("middle", "3"), *(("short", str(number)) for number in range(4))}
    rest = list_workload(split, 2, lambda expression: expression.key in done)
    assert {work.video: work.groups for work in rest} == {"long": whole[0].groups, "middle": whole[1].groups[:1]}


def test_an_empty_sentence_is_an_error_that_names_it():
    with pytest.raises(UserError, match=r"fake.json: the caption of v/1 is empty"):
        list_workload(Fake(expressions({"v": 1}, ["a", " "])), 2, lambda _: False)


def test_parts_of_ref_davis_are_annotators_with_their_objects_in_order():
    captions = [f"{number}" for number in range(12)]
    (work,) = list_workload(Fake(expressions({"v": 1}, captions)[::-1]), 2, lambda _: False, merge=True)
    assert [group.annotator for group in work.groups] == [0, 1, 2, 3]
    assert work.groups[1].captions == (("1", "5"), ("9",))
    assert [one.exp_id for one, _ in work.groups[1].expressions] == ["1", "5", "9"]


def test_an_expression_of_ref_davis_must_be_a_number():
    fake = Fake([Expression("v", "x", "a", ("0",), ())])
    with pytest.raises(UserError, match=r"must be numbers.*'x'"):
        list_workload(fake, 2, lambda _: False, merge=True)


def test_no_more_videos_are_in_memory_than_one_and_those_ahead(monkeypatch):
    split = Fake(expressions(dict.fromkeys("abcdefgh", 3)))
    lock, alive, peak = threading.Lock(), 0, 0

    def empty(*arguments):
        nonlocal alive, peak
        array = np.ndarray(*arguments)
        with lock:
            alive += 1
            peak = max(peak, alive)
        weakref.finalize(array, gone)
        return array

    def gone():
        nonlocal alive
        with lock:
            alive -= 1

    monkeypatch.setattr(engine.inference.read_ahead.np, "empty", empty)
    work = [VideoWork(expression, ()) for expression in split.expressions if expression.exp_id == "0"]
    seen = []
    for video in load_videos(split, iter(work), lambda height, width: (height, width)):
        seen.append(video.work.video)
        del video
    assert seen == list("abcdefgh")
    assert 1 < peak <= 1 + VIDEOS_AHEAD
    assert alive == 0


@pytest.mark.parametrize("obstacle", ["a file in the way", "a full disk"])
def test_a_failure_to_write_names_the_place_and_what_is_done_stays(run, tmp_path, obstacle):
    clean, folder = ResultsFolder(tmp_path / "clean"), ResultsFolder(tmp_path / "out")
    metrics = run(clean, prompt_batch=1)
    if obstacle == "a file in the way":
        blocked = folder.annotations / "b" / "1"
        blocked.parent.mkdir(parents=True)
        blocked.write_text("")
    else:
        blocked = folder.annotations / "b" / "1" / "00001.png"
        blocked.parent.mkdir(parents=True)
        blocked.symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"--output_dir .*out: cannot be written .*finished expressions are kept"):
        run(folder, prompt_batch=1)
    done = sorted(path.relative_to(folder.path).as_posix() for path in folder.path.glob("units/*/*.json"))
    assert "units/b/0.json" in done  # it came before
    assert "units/b/1.json" not in done
    times = {path: path.stat().st_mtime_ns for path in (folder.annotations / "b" / "0").iterdir()}
    blocked.unlink()
    assert run(folder, prompt_batch=1) == metrics
    assert contents(folder) == contents(clean)
    assert times == {path: path.stat().st_mtime_ns for path in times}  # not done again


def test_a_unit_without_a_whole_record_is_done_again(run, tmp_path):
    folder = ResultsFolder(tmp_path / "out")
    metrics, masks = run(folder), contents(folder)
    (folder.path / "units" / "a" / "0.json").write_text('{"region_sim')
    (folder.path / "units" / "b" / "10.json").unlink()
    (folder.annotations / "b" / "10" / "00001.png").write_bytes(b"half")
    assert run(folder) == metrics
    assert contents(folder) == masks
    assert json.loads((folder.path / "metrics.json").read_text()) == metrics


def test_nothing_is_segmented_where_all_is_done(run, tmp_path, monkeypatch, toy_pipeline):
    folder = ResultsFolder(tmp_path / "out")
    metrics = run(folder)
    monkeypatch.setattr(type(toy_pipeline), "segment_batches", lambda *_, **__: pytest.fail("segmented again"))
    assert run(folder) == metrics


def test_a_taken_video_is_left_to_who_took_it(tmp_path):
    folder = ResultsFolder(tmp_path)
    assert folder.claim("a")
    assert folder.claim("b")
    assert not folder.claim("a")
    assert folder.claimed() == {"a", "b"}
    folder.release()
    assert folder.claim("a")


IDENTITY = {"options": {"threshold": 0.5, "seed": 0}, "weights": {"vae": "x" * 64}}


def test_a_run_goes_on_in_its_own_folder_and_another_is_refused_by_what_differs(tmp_path):
    folder = ResultsFolder(tmp_path)
    folder.begin(IDENTITY, overwrite=False)
    folder.write_unit(Expression("v", "0", "a", ("0",), ()), None)
    folder.begin(IDENTITY, overwrite=False)
    other = {"options": {"threshold": 0.6, "seed": 0}, "weights": {"vae": "x" * 64}}
    with pytest.raises(
        UserError, match=r"options.threshold was 0.5, is 0.6\); give another folder, or add --overwrite"
    ):
        folder.begin(other, overwrite=False)
    assert folder.is_done(Expression("v", "0", "a", ("0",), ()))
    folder.begin(other, overwrite=True)
    assert not folder.is_done(Expression("v", "0", "a", ("0",), ()))
    folder.begin(other, overwrite=False)


@pytest.mark.parametrize("manifest", ["", "{}", "[1]", '{"identity": 3}'])
def test_a_damaged_manifest_is_no_run_of_ours(tmp_path, manifest):
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match="holds another run"):
        ResultsFolder(tmp_path).begin(IDENTITY, overwrite=False)


@pytest.mark.parametrize("overwrite", [False, True])
def test_masks_without_a_manifest_are_refused_and_never_removed(tmp_path, overwrite):
    (tmp_path / "Annotations" / "v").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no manifest\.json of a run"):
        ResultsFolder(tmp_path).begin(IDENTITY, overwrite=overwrite)
    assert (tmp_path / "Annotations" / "v").is_dir()


def test_two_evaluations_cannot_share_a_folder_at_a_time(tmp_path):
    with ResultsFolder(tmp_path).alone(), pytest.raises(UserError, match="another run writes to this folder"):
        with ResultsFolder(tmp_path).alone():
            pass


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), ResultsFolder(tmp_path / "file" / "out").alone():
        pass


@pytest.mark.parametrize(
    ("limit", "names", "expected"),
    [(None, None, "cab"), (2, None, "ca"), (9, None, "cab"), (None, ["b", "c"], "cb"), (1, ["b", "c"], "c")],
)
def test_videos_are_chosen_in_the_order_of_the_split(limit, names, expected):
    split = Fake(expressions({"c": 1, "a": 9, "b": 2}))
    part = with_videos(split, limit, names)
    assert "".join(dict.fromkeys(expression.video for expression in part.expressions)) == expected
    assert len(part.expressions) == 4 * len(expected)
    assert len(split.expressions) == 12  # the split itself stays as it is


def test_an_unknown_video_is_an_error_that_knows_a_near_one():
    with pytest.raises(UserError, match=r"'vidio' is not a video of fake.json; did you mean 'video'"):
        with_videos(Fake(expressions({"video": 1})), names=["vidio"])
