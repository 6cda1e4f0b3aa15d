"""Which frames, which part of them, in which order: what a clip is made of."""

import itertools
from collections import Counter

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from datasets.clip import collate, empty_to_send
from datasets.referring import ClipOptions, ReferringClips
from datasets.registry import IMAGE, PSEUDO_VIDEO, VIDEO, Source
from datasets.sampling import Batches, dense_indices, sample_indices, sparse_indices
from datasets.split import Expression, Split
from datasets.transforms import (
    CROP_ASPECTS,
    Augmentation,
    Box,
    Geometry,
    Shape,
    draw_camera_path,
    draw_geometry,
    draw_shape,
    jitter,
    mirrored_caption,
    recentred,
)
from util.errors import UserError
from util.images import read_image

ALL_DRAWS = Augmentation(crop_prob=0.5, flip_prob=0.5, jitter=0.1)
REAL_BOX = Box(480, 832, 16)


class MarkedSplit(Split):
    """Videos whose objects are white on dark, so that frames and masks can be compared."""

    has_masks = True

    def __init__(self, sizes, num_frames=20, empty=()):
        self.sizes = sizes
        self.expressions = [
            Expression(
                f"v{number}", exp_id, f"the dog on the left {exp_id}", tuple(f"{f:05d}" for f in range(num_frames)),
                () if (number, exp_id) in empty else ("1",),
            )
            for number in range(len(sizes)) for exp_id in ("0", "1")
        ]  # fmt: skip

    def frame_file(self, expression, index):
        raise AssertionError("frames are made, not read")

    def source_size(self, expression):
        return self.sizes[int(expression.video[1:])]

    def masks(self, expression, indices, size):
        height, width = size
        masks = np.zeros((len(indices), height, width), bool)
        for row, index in enumerate(indices if expression.object_ids else ()):
            top, left = height // 4 + index * 2, width // 8 + index * 3
            masks[row, top : top + height // 5, left : left + width // 6] = True
        return masks

    def iter_frames(self, expression, indices, at_least=None):
        return [
            np.repeat(np.where(mask, 250, 20).astype(np.uint8)[..., None], 3, axis=2)
            for mask in self.masks(expression, indices, self.source_size(expression))
        ]


def marked_clips(sizes=((96, 160),), sources=None, **options):
    split = MarkedSplit(sizes)
    return ReferringClips(
        sources or [Source("marked", split)],
        ClipOptions(**{"num_frames": 5, "box": Box(64, 112, 8), "augmentation": ALL_DRAWS} | options),
    )


# -- which frames ------------------------------------------------------------------------------------------------


def test_dense_clips_are_consecutive_and_short_videos_repeat_their_last_frame():
    assert dense_indices(0, 5, 20) == [0, 1, 2, 3, 4]
    assert dense_indices(18, 5, 20) == [15, 16, 17, 18, 19]
    assert dense_indices(0, 5, 3) == [0, 1, 2, 2, 2]
    assert dense_indices(18, 5, 20, stride=2) == [11, 13, 15, 17, 19]


@pytest.mark.parametrize("length", [18, 19, 40, 300])
@pytest.mark.parametrize("num_frames", [1, 2, 5, 17])
def test_sparse_clips_hold_the_anchor_its_neighbours_and_no_frame_twice(length, num_frames):
    rng = np.random.default_rng(0)
    for anchor in range(0, length, 17):
        indices = sparse_indices(rng, anchor, num_frames, length)
        assert len(indices) == len(set(indices)) == num_frames
        assert indices == sorted(indices)
        assert anchor in indices
        assert 0 <= indices[0] <= indices[-1] < length
        if num_frames >= 3:
            assert any(0 < anchor - index <= 3 for index in indices) or anchor == 0
            assert any(0 < index - anchor <= 3 for index in indices) or anchor == length - 1


@pytest.mark.parametrize("sampling", ["sparse", "dense", "mixed"])
def test_short_videos_give_every_frame_and_repeat_the_last(sampling):
    assert sample_indices(np.random.default_rng(0), sampling, 2, 5, 3) == [0, 1, 2, 2, 2]
    assert sample_indices(np.random.default_rng(0), sampling, 0, 5, 1) == [0] * 5


def test_dense_clips_have_one_stride_and_mixed_ones_are_of_both_kinds():
    rng = np.random.default_rng(0)
    strides = [np.diff(sample_indices(rng, "dense", 20, 9, 100)) for _ in range(60)]
    assert {int(stride[0]) for stride in strides} == {1, 2, 3}
    assert all((stride == stride[0]).all() for stride in strides)
    mixed = [len(set(np.diff(sample_indices(rng, "mixed", 20, 9, 100)))) == 1 for _ in range(60)]
    assert 15 < sum(mixed) < 45


# -- which part --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [(720, 1280), (1080, 1920), (480, 640), (1280, 720), (300, 301), (64, 2000)])
def test_sizes_keep_short_side_480_long_side_832_and_the_multiple(source):
    rng = np.random.default_rng(0)
    sizes = {draw_shape(rng, source, REAL_BOX, crop_prob=0.7).size for _ in range(200)}
    for height, width in sizes:
        assert height % 16 == width % 16 == 0
        assert max(height, width) <= 832
        assert min(height, width) <= 480
    assert len(sizes) <= len(CROP_ASPECTS) + 1  # few enough to meet in batches


def test_without_crops_the_whole_frame_is_seen():
    shape = draw_shape(np.random.default_rng(0), (720, 1280), REAL_BOX, crop_prob=0)
    assert shape == Shape(None, (464, 832))
    geometry = draw_geometry(np.random.default_rng(0), shape, (720, 1280), is_mirrored=False)
    assert (geometry.top, geometry.left, geometry.height, geometry.width) == (0, 0, 720, 1280)


def test_crops_lie_inside_cover_the_recipes_range_and_reach_every_edge():
    rng = np.random.default_rng(0)
    source, sides, edges = (720, 1280), [], set()
    for _ in range(500):
        geometry = draw_geometry(rng, draw_shape(rng, source, REAL_BOX, 1.0), source, is_mirrored=False)
        assert 0 <= geometry.top <= geometry.top + geometry.height <= 720
        assert 0 <= geometry.left <= geometry.left + geometry.width <= 1280
        sides.append(min(geometry.height, geometry.width) / 720)
        edges |= {geometry.top == 0, 2} | ({3} if geometry.left + geometry.width == 1280 else set())
    assert 384 / 600 * 0.7 < min(sides) < 0.75  # the recipe's smallest crop, its aspect snapped
    assert max(sides) == 1
    assert {True, 3} <= edges


@pytest.mark.parametrize("crop_prob", [0.0, 1.0])
@pytest.mark.parametrize("flip_prob", [0.0, 1.0])
def test_frames_and_masks_move_together(crop_prob, flip_prob):
    clips = marked_clips(augmentation=Augmentation(crop_prob, flip_prob))
    for epoch, item in itertools.product(range(4), range(len(clips))):
        clip = clips[epoch, item]
        seen = clip.frames[:, :1] > 0.06
        disagreement = (seen != clip.masks.bool()).float().mean()
        assert disagreement < 0.02, disagreement  # the filter blurs edges
        assert clip.masks.any()


def test_a_mirrored_clip_is_the_clip_mirrored_with_its_words():
    plain, mirrored = (marked_clips(augmentation=Augmentation(1.0, flip)) for flip in (0.0, 1.0))
    for item in range(len(plain)):
        torch.testing.assert_close(plain[0, item].frames.flip(-1), mirrored[0, item].frames)
        torch.testing.assert_close(plain[0, item].masks.flip(-1), mirrored[0, item].masks)
        assert mirrored[0, item].caption == plain[0, item].caption.replace("left", "right")


@pytest.mark.parametrize("source", [(720, 1280), (1080, 1920), (1440, 2560), (1079, 1917)])
def test_a_reduced_decode_shows_the_same_place(source, tmp_path):
    rng = np.random.default_rng(1)
    picture = cv2.resize(rng.integers(0, 256, (12, 20, 3), np.uint8), source[::-1], interpolation=cv2.INTER_CUBIC)
    file = tmp_path / "x.jpg"
    cv2.imwrite(str(file), picture, [cv2.IMWRITE_JPEG_QUALITY, 98])
    reductions = set()
    for seed in range(8):
        draw = np.random.default_rng(seed)
        geometry = draw_geometry(draw, draw_shape(draw, source, Box(240, 416, 16), 0.7), source, is_mirrored=False)
        small, full = read_image(file, geometry.decoded_size(source)), read_image(file)
        reductions.add(round(source[0] / small.shape[0]))
        moved = [geometry.move_frames([frame], 1, source).float() for frame in (small, full)]
        # Of 255; an odd side is rounded up by the decoder, half a source pixel.
        assert (moved[0] - moved[1]).abs().mean() < (1.0 if source[0] % 8 == source[1] % 8 == 0 else 2.0)
    assert max(reductions) > 1


def test_the_training_resize_equals_pillows_within_a_level():
    frame = np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8)
    ours = Geometry(0, 0, 90, 160, (48, 80), is_mirrored=False).move_frames([frame], 1, (90, 160))[0].permute(1, 2, 0)
    from PIL import Image  # noqa: PLC0415

    theirs = np.asarray(Image.fromarray(frame).resize((80, 48), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(ours.numpy().astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("seed", range(20))
def test_a_crop_that_lost_the_object_is_moved_back_onto_it(seed):
    rng = np.random.default_rng(seed)
    masks = np.zeros((3, 200, 300), bool)
    masks[1, rng.integers(200), rng.integers(300)] = True
    geometry = Geometry(0, 0, 64, 96, (64, 96), is_mirrored=False)
    found = recentred(rng, geometry, masks)
    assert found.shows(masks)
    assert (found.height, found.width, found.size) == (geometry.height, geometry.width, geometry.size)
    assert 0 <= found.top <= 200 - 64
    assert 0 <= found.left <= 300 - 96


def test_lost_objects_are_counted_and_empty_clips_are_left_empty():
    class Corner(MarkedSplit):
        def masks(self, expression, indices, size):
            masks = np.zeros((len(indices), *size), bool)
            masks[:, :4, :4] = bool(expression.object_ids)
            return masks

    split = Corner([(200, 320)], empty=[(0, "1")])
    clips = ReferringClips([Source("x", split)], ClipOptions(5, Box(64, 112, 8), augmentation=Augmentation(1.0, 0.0)))
    made = [clips[epoch, item] for epoch in range(6) for item in range(len(clips))]
    for clip in made:
        assert clip.masks.any() == (clip.key[1] == "0")
        assert not (clip.was_recentred and clip.key[1] == "1")
    assert 0 < sum(clip.was_recentred for clip in made) < len(made)
    assert collate(made[:1] * 2).num_recentred == 2 * made[0].was_recentred


@pytest.mark.parametrize(
    ("caption", "mirrored"),
    [
        ("the dog on the left", "the dog on the right"),
        ("Left cat and RIGHT dog", "Right cat and LEFT dog"),
        ("leftmost bird, right-most fish", "rightmost bird, left-most fish"),
        ("the left-hand side, righthand man", "the right-hand side, lefthand man"),
        ("moving leftwards", "moving rightwards"),
        ("a bright upright man", "a bright upright man"),
        ("bottom-left corner's left/right", "bottom-right corner's right/left"),
        ("the one left of the car", "the one right of the car"),
        ("an @ sign", "an @ sign"),
        ("turning clockwise", None),
        ("the man who left", None),
        ("left behind", None),
        ("the leftover food", None),
        ("a right-angled bend", None),
        ("right behind the car", None),
    ],
)
def test_captions_are_mirrored_by_whole_words_or_not_at_all(caption, mirrored):
    assert mirrored_caption(caption) == mirrored
    if mirrored is not None:
        assert mirrored_caption(mirrored) == caption


def test_jitter_is_one_for_the_whole_clip_and_none_without_strength():
    frames = torch.randint(60, 180, (1, 3, 8, 8), dtype=torch.uint8).repeat(4, 1, 1, 1)
    changed = jitter(np.random.default_rng(0), frames, 0.3)
    assert (changed == changed[:1]).all()
    assert not torch.equal(changed, frames)
    assert torch.equal(jitter(np.random.default_rng(0), frames, 0.0), frames)


# -- images ------------------------------------------------------------------------------------------------------


def test_images_are_clips_of_one_frame_and_pseudo_videos_move_frame_and_mask_together():
    split = MarkedSplit([(96, 160)], num_frames=1)
    sources = [Source("a", split, IMAGE), Source("b", split, PSEUDO_VIDEO)]
    clips = marked_clips(sources=sources, augmentation=Augmentation(0.5, 0.5))
    assert len(clips) == 4
    assert clips[0, 0].frames.shape[0] == 1
    for epoch, item in itertools.product(range(3), (2, 3)):
        clip = clips[epoch, item]
        assert clip.frames.shape[0] == clip.num_real_frames == 5
        assert not torch.equal(clip.frames[0], clip.frames[-1])
        assert ((clip.frames[:, :1] > 0) != clip.masks.bool()).float().mean() < 0.03
    assert clips.bucket_of((0, 0)) != clips.bucket_of((0, 2))


def test_the_camera_moves_smoothly():
    path = draw_camera_path(np.random.default_rng(0), 17, (64, 96))
    steps = np.abs(np.diff(path.matrices, axis=0)).max(axis=(1, 2))
    assert steps.max() < 3  # pixels
    assert len(path.light) == 17


# -- order -------------------------------------------------------------------------------------------------------


def keys(batches, count):
    return list(itertools.islice(batches, count))


def batches_of(clips, size=2, **options):
    return Batches(clips.items_of, clips.bucket_of, size, seed=3, **options)


def test_an_epoch_visits_every_item_once_in_an_order_of_seed_and_epoch_alone():
    clips = marked_clips(augmentation=Augmentation(0, 0))  # all of one size
    per_epoch = len(clips) // 2
    stream = keys(batches_of(clips), 2 * per_epoch)
    first, second = stream[:per_epoch], stream[per_epoch:]
    assert sorted(itertools.chain(*first)) == [(0, item) for item in range(len(clips))]
    assert sorted(itertools.chain(*second)) == [(1, item) for item in range(len(clips))]
    assert [[item for _, item in batch] for batch in first] != [[item for _, item in batch] for batch in second]
    other = Batches(clips.items_of, clips.bucket_of, 2, seed=4)
    assert keys(other, per_epoch) != first


def test_ranks_joined_and_a_resumed_run_give_the_same_batches():
    clips = marked_clips(sizes=((96, 160), (160, 96), (100, 100)))
    whole = keys(batches_of(clips), 24)
    ranks = [keys(batches_of(clips, rank=rank, num_ranks=2), 12) for rank in (0, 1)]
    assert list(itertools.chain(*zip(*ranks, strict=True))) == whole
    for step in (1, 7, 13):
        assert keys(batches_of(clips, start_step=step), 24 - step) == whole[step:]
    assert keys(batches_of(clips, rank=1, num_ranks=2, start_step=5), 7) == ranks[1][5:]


def test_a_batch_is_of_one_size_and_nothing_is_left_out():
    clips = marked_clips(sizes=((96, 160), (160, 96), (100, 100), (90, 160)))
    stream = keys(batches_of(clips, size=3), 200)
    for batch in stream:
        assert len({clips.bucket_of(key) for key in batch}) == 1
    collate([clips[key] for key in stream[0]])
    visits = Counter(item for batch in stream for _, item in batch)
    assert set(visits) == set(range(len(clips)))
    assert max(visits.values()) - min(visits.values()) <= 8


@pytest.mark.parametrize("num_workers", [0, 1, 4])
def test_clips_are_the_same_whatever_the_number_of_workers(num_workers):
    clips = marked_clips(augmentation=ALL_DRAWS, sampling="mixed")
    loader = DataLoader(clips, batch_sampler=batches_of(clips), collate_fn=collate, num_workers=num_workers)
    for batch, expected in zip(itertools.islice(loader, 6), keys(batches_of(clips), 6), strict=True):
        direct = collate([clips[key] for key in expected])
        assert torch.equal(batch.frames, direct.frames)
        assert torch.equal(batch.masks, direct.masks)
        assert (batch.captions, batch.keys, batch.seeds) == (direct.captions, direct.keys, direct.seeds)


def test_draws_differ_from_epoch_to_epoch_and_item_to_item():
    clips = marked_clips()
    seeds = {clips[epoch, item].seed for epoch in range(3) for item in range(len(clips))}
    assert len(seeds) == 3 * len(clips)


def test_expressions_without_a_target_are_kept_with_their_probability():
    split = MarkedSplit([(96, 160)] * 200, num_frames=5, empty=[(number, "1") for number in range(200)])
    for probability, (low, high) in {1.0: (400, 400), 0.0: (200, 200), 0.5: (270, 330)}.items():
        clips = marked_clips(sources=[Source("x", split)], no_target_prob=probability)
        kept = clips.items_of(0)
        assert low <= len(kept) <= high
        assert (kept == clips.items_of(1)) == (probability != 0.5)


def test_weights_say_how_often_an_epoch_visits_a_source():
    split = MarkedSplit([(96, 160)] * 100, num_frames=5)
    sources = [Source("half", split, VIDEO, 0.5), Source("thrice", split, VIDEO, 3.0)]
    clips = marked_clips(sources=sources)
    visits = Counter(clips.items[item].source for item in clips.items_of(0))
    assert 70 < visits[0] < 130
    assert visits[1] == 600


def test_full_shared_memory_names_what_to_do(monkeypatch):
    monkeypatch.setattr("datasets.clip.get_worker_info", lambda: "a worker")
    with pytest.raises(UserError, match=r"--num_workers.*--shm-size"):
        empty_to_send(1 << 20, 1 << 20)
