"""Overlapping windows: which frames, closed-form weights, and a pipeline that streams what a call returns."""

import itertools
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.toy import make_video
from models.weights import load_flowrvs
from models.windows import Blend, Joint, Windows, choose_windows, cut, join, mask_iou, spans_of
from util.errors import UserError

SMALL = {"box_height": 16, "box_width": 24}
PROMPTS = ["a dog", "a cat"]


def video(num_frames, height=16, width=24):
    return np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


@st.composite
def cuts(draw):
    """(frames of a video, windows)."""
    window = 4 * draw(st.integers(0, 6)) + 1
    return draw(st.integers(1, 90)), choose_windows(window, draw(st.integers(0, window // 2)))


# Which frames


@given(cuts())
def test_windows_cover_the_video_and_overlap_as_asked(example):
    num_frames, windows = example
    spans = spans_of(num_frames, windows)
    assert spans[0][0] == 0
    assert spans[-1][1] == num_frames
    assert all(stop - start == min(windows.length, num_frames) for start, stop in spans)
    gaps = [earlier[1] - later[0] for earlier, later in itertools.pairwise(spans)]
    assert all(gap == windows.overlap for gap in gaps[:-1])
    assert all(windows.overlap <= gap < windows.length for gap in gaps[-1:])  # the last may have moved back


@given(cuts(), st.data())
def test_cutting_goes_on_from_any_window_as_if_it_had_never_stopped(example, data):
    num_frames, windows = example
    every = list(cut(range(num_frames), windows))
    index = data.draw(st.integers(0, len(every) - 1))
    start, frames = every[index]
    after = Joint(start, start + len(frames), torch.empty(0))
    assert list(cut(range(start, num_frames), windows, after)) == every[index + 1 :]


def test_a_window_of_zero_is_the_whole_video():
    assert spans_of(7, choose_windows(0)) == [(0, 7)]


def test_cutting_holds_no_more_than_two_windows():
    class Item:
        pass

    alive = weakref.WeakSet()

    def items():
        for _ in range(60):
            item = Item()
            alive.add(item)
            yield item
            del item

    most = 0
    for _, part in cut(items(), choose_windows(9, 2)):
        del part
        most = max(most, len(alive))
    assert most <= 9 + 7


@pytest.mark.parametrize(
    ("window", "overlap", "words"),
    [
        (16, None, ["--window", "4n+1", "got 16", "use 13 or 17"]),
        (-3, None, ["--window", "got -3", "use 1 or 5"]),
        (17, 9, ["--overlap", "8 of 17", "got 9"]),
        (17, 17, ["--overlap", "got 17"]),
        (17, -1, ["--overlap", "got -1"]),
        (0, 4, ["--overlap", "--window"]),
    ],
)
def test_windows_that_cannot_be_cut_are_refused(window, overlap, words):
    with pytest.raises(UserError) as caught:
        choose_windows(window, overlap)
    assert [word for word in words if word not in str(caught.value)] == []


def test_by_default_a_fifth_of_a_window_overlaps():
    assert choose_windows(81).overlap == 16
    assert choose_windows(1).overlap == 0


# How they are blended


def blended(windows, spans, blend):
    parts = []
    for (start, _), logits in zip(spans, windows, strict=True):
        first = blend.joint.num_finished if blend.joint else 0
        parts.append((first, blend.add(start, logits)))
    return join([*parts, (blend.joint.num_finished, blend.joint.tail)], spans[-1][1])


@given(cuts())
@settings(max_examples=50)
def test_weights_sum_to_one_and_follow_the_closed_form(example):
    num_frames, windows = example
    spans = spans_of(num_frames, windows)
    # Window k says 1 on channel k and 0 elsewhere: what comes out is its weight.
    told = [torch.eye(len(spans))[k][:, None, None, None].expand(-1, b - a, 1, 1) for k, (a, b) in enumerate(spans)]
    weights = blended(told, spans, Blend(windows))[:, :, 0, 0].double()
    expected = torch.zeros_like(weights)
    for frame in range(num_frames):
        # The last window to have begun fading in by then; the one before fades out.
        k = max(k for k, _ in enumerate(spans) if k == 0 or frame >= spans[k - 1][1] - windows.overlap)
        since = frame - (spans[k - 1][1] - windows.overlap) if k else windows.overlap
        share = min(1, (since + 1) / (windows.overlap + 1))
        expected[k, frame] = share
        if share < 1:
            expected[k - 1, frame] = 1 - share
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(num_frames).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-6)


def test_agreement_is_the_iou_over_the_overlap_and_one_where_both_are_empty():
    first = torch.tensor([[[[True, True, False]]], [[[False, False, False]]], [[[True, False, False]]]])
    second = torch.tensor([[[[False, True, True]]], [[[False, False, False]]], [[[False, False, False]]]])
    assert torch.allclose(mask_iou(first, second), torch.tensor([1 / 3, 1, 0]))


def test_agreement_compares_the_two_windows_before_they_are_blended():
    spans = spans_of(9, choose_windows(5, 1))
    blend = Blend(choose_windows(5, 1))
    blended([torch.ones(1, 5, 2, 2), -torch.ones(1, 5, 2, 2)], spans, blend)
    assert torch.cat(blend.agreements).tolist() == [0]


# The pipeline


@pytest.mark.parametrize("num_frames", [6, 9])
@pytest.mark.parametrize("window", [9, 13])
def test_a_window_at_least_as_long_as_the_video_is_bit_equal_to_none(toy_pipeline, num_frames, window):
    embeddings = toy_pipeline.embed(PROMPTS)
    whole = toy_pipeline(video(num_frames), PROMPTS, **SMALL).logits
    assert torch.equal(toy_pipeline(video(num_frames), PROMPTS, window=window, **SMALL).logits, whole)
    (batch,) = toy_pipeline.segment_batches(video(num_frames), [embeddings], window=window, **SMALL)
    assert torch.equal(batch, whole)
    for length in (0, window):
        stream = toy_pipeline.segment_stream(iter(video(num_frames)), embeddings, window=length, **SMALL)
        assert torch.equal(torch.cat([part.logits for part in stream], dim=1), whole)


def test_a_call_a_stream_and_batches_give_the_same_windows(toy_pipeline):
    embeddings = toy_pipeline.embed(PROMPTS)
    how = {"window": 5, "overlap": 2, **SMALL}
    result = toy_pipeline(video(12), PROMPTS, **how)
    parts = list(toy_pipeline.segment_stream(iter(video(12)), embeddings, **how))
    assert torch.equal(torch.cat([part.logits for part in parts], dim=1), result.logits)
    assert [part.start for part in parts] == [0, 3, 6, 9, 10]  # windows from 0, 3, 6 and, moved back, 7
    assert torch.equal(torch.stack([part.agreement for part in parts[1:-1]]), result.agreement)
    (batch,) = toy_pipeline.segment_batches(video(12), [embeddings], **how)
    assert torch.equal(batch, result.logits)
    alone = toy_pipeline(video(12)[3:8], PROMPTS, **SMALL).logits
    assert torch.equal(result.logits[:, 5], alone[:, 2])  # where no other window reaches


def test_a_stream_goes_on_where_it_was_left(toy_pipeline):
    embeddings = toy_pipeline.embed(PROMPTS)
    how = {"window": 5, "overlap": 1, **SMALL}
    parts = list(toy_pipeline.segment_stream(iter(video(12)), embeddings, **how))
    for index, part in enumerate(parts[:-1]):
        rest = toy_pipeline.segment_stream(iter(video(12)[part.joint.start :]), embeddings, after=part.joint, **how)
        for later, again in zip(parts[index + 1 :], rest, strict=True):
            assert torch.equal(later.logits, again.logits)


def test_windows_that_share_nothing_have_no_agreement():
    blend = Blend(Windows(5, 0))
    blend.add(0, torch.ones(1, 5, 2, 2))
    blend.add(5, -torch.ones(1, 5, 2, 2))
    assert blend.agreements == []


def test_equal_prompts_share_their_agreement(toy_pipeline):
    result = toy_pipeline(video(9), ["a dog", "a cat", "a  dog"], window=5, **SMALL)
    assert result.agreement.shape == (1, 3)
    assert result.agreement[0, 0] == result.agreement[0, 2]


def test_a_window_beyond_the_rotary_tables_is_refused(toy_pipeline):
    with pytest.raises(UserError, match="at most 4093"):
        toy_pipeline(video(1), "a dog", window=4097)


def test_a_video_beyond_the_rotary_tables_is_segmented_in_windows(toy_pipeline, monkeypatch):
    monkeypatch.setattr(type(toy_pipeline), "max_frames", 9)
    with pytest.raises(UserError, match="--window"):
        toy_pipeline(video(10), "a dog", **SMALL)
    assert toy_pipeline(video(10), "a dog", window=9, **SMALL).logits.shape[1] == 10


def test_a_stream_without_frames_is_refused(toy_pipeline):
    embeddings = toy_pipeline.embed(PROMPTS)
    with pytest.raises(UserError, match="at least one frame"):
        list(toy_pipeline.segment_stream(iter([]), embeddings))


@pytest.mark.parametrize("option", [{"threshold": 0.9}, {"prompt_batch": 0}])
def test_a_stream_refuses_what_a_call_refuses(toy_pipeline, option):
    with pytest.raises(ValueError, match=next(iter(option))):
        next(toy_pipeline.segment_stream(iter(video(1)), toy_pipeline.embed(PROMPTS), **option))


def test_tiles_are_the_decoders_alone(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    counts = {"encoder": 0, "decoder": 0}

    def count(name):
        def hook(*_):
            counts[name] += 1

        return hook

    for name in counts:
        getattr(pipeline.vae, name).register_forward_pre_hook(count(name))
    whole = pipeline(video(1, 32, 32), "a dog", box_height=32, box_width=32).logits
    assert counts == {"encoder": 1, "decoder": 1}
    pipeline.vae.enable_tiling(16, 16, 8, 8)
    tiled = pipeline(video(1, 32, 32), "a dog", box_height=32, box_width=32).logits
    assert counts == {"encoder": 2, "decoder": 1 + 16}
    assert pipeline.vae.use_tiling
    assert 0 < (tiled - whole).abs().mean() < whole.abs().mean()


# How well


def test_windows_cost_no_accuracy_on_videos_of_twice_the_training_length():
    """The shipped toy model learnt on 9 frames. Each J is the mean over sentences and frames."""
    toy = Path(__file__).parents[2] / "assets" / "toy"
    pipeline = load_flowrvs(str(toy / "flowrvs"), vae_ckpt=str(toy / "mask_vae")).pipeline
    pipeline.set_progress_bar_config(disable=True)
    rng = np.random.default_rng(7)
    scores = {0: [], 9: []}
    for made in [make_video(rng, 64, 18) for _ in range(2)]:
        sentences = made.sentences[:3]
        for window, found in scores.items():
            result = pipeline(made.frames, [one.caption for one in sentences], window=window, box_width=64)
            for sentence, masks in zip(sentences, result.masks, strict=True):
                truth = made.masks[list(sentence.targets)].any(axis=0)
                found.append(mask_iou(torch.from_numpy(masks)[:, None], torch.from_numpy(truth)[:, None]).mean())
    assert len(scores[0]) >= 6
    assert np.mean(scores[9]) >= np.mean(scores[0]) - 0.02
    assert np.mean(scores[9]) > 0.4  # far from noise
