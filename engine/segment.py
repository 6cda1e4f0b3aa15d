"""How to segment: the options that the demo and the evaluation share."""

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class SegmentOptions:
    """Keyword arguments of ``FlowRVS.__call__``, described there."""

    num_steps: int = 1
    box_height: int | None = None
    box_width: int | None = None
    threshold: float = 0.5
    prompt_batch: int = 4
    seed: int = 0

    @classmethod
    def from_flags(cls, flags: argparse.Namespace) -> "SegmentOptions":
        """From the flags of ``util.flags.add_segment_flags``."""
        return cls(flags.num_steps, flags.reso_h, flags.reso_w, flags.threshold, flags.prompt_batch, flags.seed)
