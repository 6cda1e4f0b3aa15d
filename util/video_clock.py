"""Times of the frames of a video: repairs those that cannot be true, and samples frames at another rate."""

import itertools
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

Item = TypeVar("Item")

ROUNDING = Fraction(1, 1000)  # seconds; mkv, webm and flv store times in milliseconds
# With more bad times than these shares, and one, the times say nothing: then frames follow at the nominal rate. Steps
# back are the sign of decode times in the place of presentation times.
MOST_REPAIRED, MOST_BACK = Fraction(1, 3), Fraction(1, 20)


@dataclass(frozen=True)
class Clock:
    """When the frames of a video are shown, in seconds after the first one.

    Attributes:
        starts: one per frame, strictly increasing from 0.
        end: when the last frame ends.
        nominal_rate: frames per second that the file announces.
        fault: what was wrong with the times of the file, in words; None if nothing was.
    """

    starts: Sequence[Fraction]
    end: Fraction
    nominal_rate: Fraction
    fault: str | None = None

    @property
    def is_constant(self) -> bool:
        """Whether the frames follow at the nominal rate, but for rounding."""
        return (
            all(abs(start - index / self.nominal_rate) <= ROUNDING for index, start in enumerate(self.starts))
            and abs(self.end - len(self.starts) / self.nominal_rate) < 1 / self.nominal_rate
        )

    @property
    def rate(self) -> Fraction:
        """Frames per second: the nominal rate if it is constant, else the average."""
        return self.nominal_rate if self.is_constant else len(self.starts) / self.end

    def durations(self) -> list[Fraction]:
        """Returns the seconds for which each frame is shown."""
        return [later - earlier for earlier, later in itertools.pairwise((*self.starts, self.end))]


def make_clock(
    times: Sequence[Fraction | None], last_duration: Fraction | None, nominal_rate: Fraction, longest_gap: Fraction
) -> Clock:
    """Builds a clock from the times of a file, which may be missing, equal, step back or jump.

    A single bad time is set between its neighbours. Where the clock restarts or jumps, the frames after it follow one
    nominal step later. If the times are bad throughout, all frames follow at the nominal rate, in the given order.

    Args:
        times: presentation times in seconds, in the order in which a decoder returned the frames; at least one.
        last_duration: seconds of the last frame; None if the file does not say.
        nominal_rate: frames per second.
        longest_gap: seconds; a longer step forward is a jump of the clock.
    """
    nominal = 1 / nominal_rate
    num_back = sum(
        earlier is not None and later is not None and later < earlier for earlier, later in itertools.pairwise(times)
    )
    times, num_set = _between_neighbours(times, longest_gap)
    steps = [step_between(earlier, later, longest_gap) for earlier, later in itertools.pairwise(times)]
    good = [step for step in steps if step is not None]
    num_jumps = len(steps) - len(good)
    fault = None
    if num_back > 1 + MOST_BACK * len(steps) or num_set + num_jumps > 1 + MOST_REPAIRED * len(steps) or times == [None]:
        kind = "no times" if all(time is None for time in times) else "times that are missing, equal or step back"
        rate = f"{float(nominal_rate):.6g}"
        fault = f"its frames have {kind}; each is taken once, in the order of the decoder, at {rate} frames per second"
        steps, good, last_duration = [], [nominal] * len(steps), nominal
    elif num_set or num_jumps:
        parts = [f"{num_set} of its times are missing or out of order"] * bool(num_set)
        parts += [f"its clock restarts or jumps ({num_jumps}x)"] * bool(num_jumps)
        fault = f"{' and '.join(parts)}; these times are replaced"
    starts = list(itertools.accumulate((step or nominal for step in steps or good), initial=Fraction(0)))
    if last_duration is None or not 0 < last_duration <= longest_gap:
        last_duration = statistics.median_low(good) if good else nominal
    return Clock(starts, starts[-1] + last_duration, nominal_rate, fault)


def step_between(earlier: Fraction | None, later: Fraction | None, longest_gap: Fraction) -> Fraction | None:
    """Returns the seconds from one frame to the next; None if they cannot be true."""
    if earlier is None or later is None or not 0 < later - earlier <= longest_gap:
        return None
    return later - earlier


def _between_neighbours(times: Sequence[Fraction | None], longest_gap: Fraction) -> tuple[list[Fraction | None], int]:
    """Sets a single time that is missing or out of order to the middle of those around it; returns also how many."""
    repaired = list(times)
    num_set = 0
    for index in range(1, len(times) - 1):
        before, time, after = repaired[index - 1], repaired[index], repaired[index + 1]
        if before is None or after is None or not 0 < after - before <= 2 * longest_gap:
            continue
        if time is None or not before < time < after:
            repaired[index] = (before + after) / 2
            num_set += 1
    return repaired, num_set


def resample(timed: Iterable[tuple[Fraction, Fraction, Item]], rate: Fraction) -> Iterator[Item]:
    """Places frames on a regular grid in time: each takes the nearest slot and is held until the next frame's.

    If several frames fall into one slot, the last stays. At the file's own constant rate every frame passes once,
    however its times are rounded.

    Args:
        timed: (start, duration, frame) in seconds, in order of display.
        rate: slots per second; the first frame has the first slot.
    """
    slot = 0
    is_single = True
    held: Item | None = None
    origin = end = Fraction(0)
    for start, duration, frame in timed:
        is_single = held is None
        if is_single:
            origin = start
        target = _nearest(start - origin, rate)
        while held is not None and slot < target:
            yield held
            slot += 1
        held, end = frame, start + duration
    if held is not None:
        # A single frame is an image, whatever its duration.
        num_slots = 1 if is_single else max(1, _nearest(end - origin, rate) - slot)
        yield from itertools.repeat(held, num_slots)


def _nearest(seconds: Fraction, rate: Fraction) -> int:
    return int((seconds * rate + Fraction(1, 2)) // 1)
