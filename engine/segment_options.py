"""Options for segmenting that demo and inference share, and a pipeline prepared for it."""

import argparse
from dataclasses import dataclass

from models import vae_layers
from models.dit_inference import prepare_for_inference
from models.flowrvs import FlowRVS
from models.windows import choose_windows


@dataclass(frozen=True)
class SegmentOptions:
    """Keyword arguments of ``FlowRVS.__call__``; see there."""

    num_steps: int = 1
    box_height: int | None = None
    box_width: int | None = None
    threshold: float = 0.5
    prompt_batch: int = 4
    seed: int = 0
    window: int = 0
    overlap: int | None = None

    @property
    def num_shared(self) -> int:
        """Number of frames that successive windows share."""
        return choose_windows(self.window, self.overlap).overlap

    @classmethod
    def from_flags(cls, flags: argparse.Namespace) -> "SegmentOptions":
        """Reads the flags of ``util.flags.add_segment_flags``."""
        return cls(
            num_steps=flags.num_steps,
            box_height=flags.reso_h,
            box_width=flags.reso_w,
            threshold=flags.threshold,
            prompt_batch=flags.prompt_batch,
            seed=flags.seed,
            window=flags.window,
            overlap=flags.overlap,
        )


def make_ready(pipeline: FlowRVS, compile_layers: bool = False) -> None:
    """Makes a pipeline faster in place, with equal results up to rounding. Call it after moving it to its device.

    Args:
        compile_layers: compile the DiT's blocks and the VAE's norms at their first use, for any length and size.
    """
    prepare_for_inference(pipeline.transformer, compile_layers)
    if compile_layers:
        vae_layers.compile_layers(pipeline.vae)
