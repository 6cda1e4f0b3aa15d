"""Carries the sound of a video file into a result video."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
from av.stream import Discard

logger = logging.getLogger(__name__)

STEP_BACK = Fraction(1, 10)  # seconds; where packets step back further, or jump, the clock of the sound restarted
RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # of AAC
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}  # by channels, that every encoder takes; others are mixed to stereo


@dataclass(frozen=True)
class Sound:
    """The sound of a file, beside its frames.

    Attributes:
        path: the file.
        origin: time of the first frame in seconds by the clock of the file; None if the frames have no times.
        end: seconds after the first frame at which to stop; None for the whole sound.
        longest_gap: seconds; a longer step forward is a jump of the clock, which is bridged.
        is_copied: copy packets where a container takes their codec. Sound whose kind may change on the way, as in a
            recorded broadcast, is always encoded again.
    """

    path: Path
    origin: Fraction | None = None
    end: Fraction | None = None
    longest_gap: Fraction = Fraction(3600)
    is_copied: bool = True


class SoundMuxer:
    """Writes the sound of a file into a container, up to the time that the frames have reached.

    Args:
        sound: what to write.
        output: a container to which no packet was written yet.
        copied: codecs that the container takes as they are.
        codec: encodes all others.

    Raises:
        av.FFmpegError: if the sound cannot be read.
    """

    def __init__(self, sound: Sound, output: av.container.OutputContainer, copied: tuple[str, ...], codec: str) -> None:
        self.sound, self.output = sound, output
        self._last_pts: int | None = None
        self._resampler: av.AudioResampler | None = None
        self._heard: tuple[str, str, int] | None = None  # format, layout and rate that the resampler takes
        self._num_damaged = 0
        self._is_cut = False
        self.input = av.open(str(sound.path.absolute()), metadata_errors="replace")
        try:
            self._begin(copied, codec)
        except BaseException:
            self.input.close()
            raise

    def _begin(self, copied: tuple[str, ...], codec: str) -> None:
        stream = self.input.streams.best("audio")
        if not isinstance(stream, av.AudioStream) or stream.codec_context is None:
            raise av.InvalidDataError(0, "no decoder for it")
        self.stream = stream
        for other in self.input.streams:
            if other is not stream:
                other.discard = Discard.all  # the file is read once for each result video: skip the frames
        name = stream.codec_context.name
        self.is_copied = self.sound.is_copied and name in copied
        if self.is_copied:
            self.target: av.AudioStream = self.output.add_stream_from_template(stream)
        else:
            rate = 48000 if codec == "libopus" else _rate(stream)
            self.target = cast(av.AudioStream, self.output.add_stream(codec, rate=rate))
            self.target.codec_context.layout = LAYOUTS.get(stream.codec_context.layout.nb_channels, "stereo")
        self._how = f"{name}, copied" if self.is_copied else f"{name}, encoded again as {codec.removeprefix('lib')}"
        self._packets = self._timed_packets()
        self._held = next(self._packets, None)

    @property
    def note(self) -> str:
        """What became of the sound, in words."""
        if self._last_pts is None:
            return f"{self.stream.codec_context.name}, left out: none of it can be read beside these frames"
        notes = [self._how]
        notes += [f"{self._num_damaged} damaged packets left out"] * bool(self._num_damaged)
        notes += ["ends early, the rest cannot be read"] * self._is_cut
        return "; ".join(notes)

    def advance(self, until: Fraction | None) -> None:
        """Writes packets that begin before ``until`` seconds; the rest of them if it is None.

        Sound that cannot be read further ends there, with a warning.
        """
        try:
            while self._held is not None and (until is None or self._held[0] <= until):
                start, packet = self._held
                if self.is_copied:
                    self._copy(start, packet)
                else:
                    self._encode(start, packet)
                self._held = next(self._packets, None)
            if until is None:
                self._finish()
        except av.FFmpegError as error:
            logger.warning("%s: its sound ends early in the result: it cannot be read (%s)", self.sound.path, error)
            self._held, self._is_cut = None, True

    def close(self) -> None:
        """Closes the file that was read."""
        self.input.close()

    def _timed_packets(self) -> Iterator[tuple[Fraction, "av.Packet[av.AudioStream]"]]:
        """Yields (seconds after the first frame, packet); bridges restarts and jumps of the clock."""
        origin = self.sound.origin
        shift = Fraction(0)
        expected: Fraction | None = None
        for packet in self.input.demux(self.stream):
            if not packet.size or packet.time_base is None:
                continue
            if packet.is_discard:  # before an edit begins: only the decoder needs it
                if not self.is_copied:
                    self._decode(packet)
                continue
            time = packet.pts * packet.time_base if packet.pts is not None else expected
            if time is None:
                time = Fraction(0)
            origin = time if origin is None else origin
            if expected is not None and not -STEP_BACK <= time + shift - expected <= self.sound.longest_gap:
                shift = expected - time
            time += shift
            duration = (packet.duration or 0) * packet.time_base
            expected = time + duration
            start = time - origin
            if self.sound.end is not None and start >= self.sound.end:
                return
            if start + duration > 0:
                yield start, packet

    def _copy(self, start: Fraction, packet: "av.Packet[av.AudioStream]") -> None:
        assert packet.time_base is not None, "packets without one were passed over"
        pts = round(start / packet.time_base)
        if self._last_pts is not None and pts <= self._last_pts:  # containers take no packet twice at one time
            pts = self._last_pts + 1
        self._last_pts = packet.pts = packet.dts = pts
        packet.stream = self.target
        self.output.mux(packet)

    def _encode(self, start: Fraction, packet: "av.Packet[av.AudioStream]") -> None:
        rate = self.target.codec_context.sample_rate
        pts = max(0, round(start * rate), self._last_pts or 0)
        for frame in self._decode(packet):
            for one in self._resampled(frame):
                one.time_base, one.pts = Fraction(1, rate), pts
                self._last_pts = pts = pts + one.samples
                self.output.mux(self.target.encode(one))

    def _decode(self, packet: "av.Packet[av.AudioStream]") -> list[av.AudioFrame]:
        try:
            return [frame for frame in packet.decode() if isinstance(frame, av.AudioFrame)]
        except av.FFmpegError:  # damage may look like a feature that FFmpeg lacks
            self._num_damaged += 1
            return []

    def _resampled(self, frame: av.AudioFrame | None) -> list[av.AudioFrame]:
        """Converts to what the encoder takes; the sound of a broadcast may change its channels and rate on the way."""
        context = self.target.codec_context
        kind = None if frame is None else (frame.format.name, frame.layout.name, frame.sample_rate)
        rest: list[av.AudioFrame] = []
        if kind is None or kind != self._heard:
            rest = self._resampler.resample(None) if self._resampler is not None else []
            self._resampler = av.AudioResampler(context.format, context.layout, context.sample_rate)
            self._heard = kind
        if frame is None or self._resampler is None:
            return rest
        frame.pts = None  # times are set on the converted sound
        return [*rest, *self._resampler.resample(frame)]

    def _finish(self) -> None:
        if self.is_copied or self._last_pts is None:
            return
        for one in self._resampled(None):
            one.time_base, one.pts = Fraction(1, self.target.codec_context.sample_rate), self._last_pts
            self._last_pts += one.samples
            self.output.mux(self.target.encode(one))
        self.output.mux(self.target.encode(None))


def _rate(stream: av.AudioStream) -> int:
    """Returns the sample rate that the AAC encoder takes: the stream's own, or 48000."""
    return stream.rate if stream.rate in RATES else 48000
