"""Times of frames: what cannot be true is repaired, and frames are sampled on a grid in time."""

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from util.video_clock import Clock, make_clock, resample

# Repair

RATE, GAP = Fraction(10), Fraction(10)


def clock_of(milliseconds, last=None, rate=RATE):
    times = [None if time is None else Fraction(time, 1000) for time in milliseconds]
    return make_clock(times, last, rate, GAP)


def starts_of(clock):
    return [round(1000 * start) for start in clock.starts]


@pytest.mark.parametrize(
    "times", [[0], [0, 100, 200], [0, 14, 54, 94], [7000, 7100, 7200], [-40, 0, 40], [0, 1, 9000, 9001]]
)
def test_times_that_increase_stay_as_they_are(times):
    clock = clock_of(times)
    assert starts_of(clock) == [time - times[0] for time in times]
    assert clock.fault is None


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([0, 100, None, 300, 400], [0, 100, 200, 300, 400]),
        ([0, 100, 200, 50, 400, 500], [0, 100, 200, 300, 400, 500]),
        ([0, 100, 9000000, 300, 400], [0, 100, 200, 300, 400]),
        ([0, 100, 200, 0, 100, 200], [0, 100, 200, 300, 400, 500]),
        ([0, 100, 200, 90000, 90100], [0, 100, 200, 300, 400]),
    ],
    ids=["missing", "steps back", "far ahead", "restart", "jump"],
)
def test_a_single_fault_is_repaired_and_told(times, expected):
    clock = clock_of(times)
    assert starts_of(clock) == expected
    assert clock.fault


@pytest.mark.parametrize(
    "times",
    [
        5 * [None],
        [None],
        6 * [300],
        [500, 400, 300, 200, 100, 0],
        [0, 200, 100, 400, 300, 600, 500, 800, 700],
        [None, 0],
    ],
    ids=["no times", "one frame without", "all equal", "backwards", "decode times", "first missing"],
)
def test_times_that_say_nothing_are_replaced_by_the_nominal_rate(times):
    clock = clock_of(times)
    assert starts_of(clock) == [100 * index for index in range(len(times))]
    assert clock.fault


@given(st.lists(st.one_of(st.none(), st.integers(-(10**7), 10**7)), min_size=1, max_size=60), st.integers(-5, 10**6))
def test_whatever_the_times_each_frame_has_one_and_they_increase_from_0(times, last):
    clock = clock_of(times, Fraction(last, 1000))
    assert len(clock.starts) == len(times)
    assert clock.starts[0] == 0
    assert all(later > earlier for earlier, later in pairwise((*clock.starts, clock.end)))
    assert all(0 < duration <= GAP or clock.rate > 0 for duration in clock.durations())


def test_the_last_frame_lasts_as_the_file_says_or_as_long_as_the_others():
    assert clock_of([0, 100, 200], Fraction(1, 2)).end == Fraction(7, 10)
    assert clock_of([0, 40, 80]).end == Fraction(12, 100)
    assert clock_of([0]).end == Fraction(1, 10)
    assert clock_of([0, 100], Fraction(10**6)).end == Fraction(2, 10)


def test_a_constant_rate_is_seen_through_rounding_and_a_variable_one_is_not():
    rate = Fraction(30000, 1001)
    rounded = [round(1000 * index / rate) for index in range(200)]
    assert clock_of(rounded, 1 / rate, rate).is_constant
    assert clock_of(rounded, 1 / rate, rate).rate == rate
    jitter = clock_of([0, 30, 70, 95], Fraction(1, 30), Fraction(30))
    assert not jitter.is_constant
    assert jitter.rate == 4 / jitter.end


def test_a_clock_of_images_is_regular():
    clock = Clock([Fraction(index, 24) for index in range(5)], Fraction(5, 24), Fraction(24))
    assert clock.is_constant
    assert clock.durations() == 5 * [Fraction(1, 24)]


# Sampling on a grid in time


class Still:
    """Stands for a decoded frame."""

    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return f"Still({self.name})"


def sampled_names(times, fps, end=None):
    """Names (places) of the frames that ``resample`` gives for start times in seconds."""
    ends = [*times[1:], end if end is not None else times[-1] + 1 / Fraction(fps)]
    timed = [(Fraction(a), Fraction(b - a), Still(place)) for place, (a, b) in enumerate(zip(times, ends, strict=True))]
    return [still.name for still in resample(timed, Fraction(fps))]


RATES = st.sampled_from([Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(24000, 1001), Fraction(60)])


@given(RATES, st.integers(1, 200), st.integers(0, 10**7))
def test_at_its_own_rate_each_frame_passes_once_whatever_the_rounding_to_milliseconds(fps, num_frames, first):
    stamps = [Fraction(round(1000 * (place / fps) + first), 1000) for place in range(num_frames + 1)]
    assert sampled_names(stamps[:-1], fps, end=stamps[-1]) == list(range(num_frames))


@given(RATES, st.lists(st.floats(-0.2, 0.2), min_size=1, max_size=60))
def test_at_its_own_rate_each_frame_passes_once_under_jitter_of_a_fifth(fps, jitter):
    times = [(place + Fraction(shift)) / fps for place, shift in enumerate(jitter)]
    end = len(jitter) / fps
    assert sampled_names(times, fps, end=end) == list(range(len(jitter)))


@pytest.mark.parametrize("num_frames", [1, 2, 5, 8])
def test_half_the_rate_keeps_every_second_frame(num_frames):
    times = [Fraction(place, 10) for place in range(num_frames)]
    sampled = sampled_names(times, 5, end=Fraction(num_frames, 10))
    # The last frame may be nearest to the slot behind the end, and is not lost.
    assert len(sampled) - (num_frames + 1) // 2 in (0, 1)
    assert sampled[-1] == num_frames - 1
    assert all(later - earlier == 2 for earlier, later in pairwise(sampled[:-1]))
    assert sampled == sorted(set(sampled))


@pytest.mark.parametrize("num_frames", [2, 7])
def test_double_the_rate_gives_every_frame_twice(num_frames):
    times = [Fraction(place, 10) for place in range(num_frames)]
    expected = [place for place in range(num_frames) for _ in range(2)]
    assert sampled_names(times, 20, end=Fraction(num_frames, 10)) == expected


@pytest.mark.parametrize("fps", [1, 20, 1000])
def test_a_single_frame_is_a_picture_however_long_it_lasts(fps):
    assert sampled_names([Fraction(0)], fps, end=Fraction(10)) == [0]


def test_a_frame_is_held_until_the_next_one_starts():
    times = [Fraction(0), Fraction(1, 10), Fraction(5, 10), Fraction(6, 10)]
    assert sampled_names(times, 10) == [0, 1, 1, 1, 1, 2, 3]


def test_the_last_frame_is_held_for_its_duration():
    assert sampled_names([Fraction(0), Fraction(1, 10)], 10, end=Fraction(5, 10)) == [0, 1, 1, 1, 1]


def test_of_several_frames_in_one_slot_the_last_stays():
    times = [Fraction(place, 100) for place in (0, 1, 2, 11, 12, 20)]
    assert sampled_names(times, 10) == [2, 4, 5]


def test_the_grid_begins_at_the_first_frame():
    times = [Fraction(place, 10) + 7 for place in range(5)]
    assert sampled_names(times, 10) == list(range(5))


@given(st.lists(st.integers(1, 200), min_size=2, max_size=40), RATES)
def test_sampling_never_goes_back_and_lasts_as_long_as_the_frames(gaps, fps):
    times = [Fraction(sum(gaps[:place]), 1000) for place in range(len(gaps))]
    end = Fraction(sum(gaps), 1000)
    sampled = sampled_names(times, fps, end=end)
    assert sampled == sorted(sampled)
    assert sampled[-1] == len(times) - 1
    # One slot of rounding, and one more where the last frame starts late in the last slot.
    assert abs(len(sampled) - end * fps) <= Fraction(3, 2)


def test_nothing_gives_nothing():
    assert list(resample([], Fraction(10))) == []


def test_some_equal_times_do_not_discard_the_others():
    """As screen recorders write them: every tenth frame has the time of the one before."""
    times = [30 * (index - (index % 10 == 9)) for index in range(60)]
    clock = clock_of(times)  # the file announces 10 frames per second, which is wrong
    assert max(abs(start - 30 * index) for index, start in enumerate(starts_of(clock))) <= 30
    assert clock.fault
