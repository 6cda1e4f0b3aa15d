"""How to segment: the options that the demo and the evaluation share, and a pipeline made ready for it."""

import argparse
from dataclasses import dataclass

from models import vae_layers
from models.dit_inference import prepare_for_inference
from models.flowrvs import FlowRVS
from models.windows import choose_windows


@dataclass(frozen=True)
class SegmentOptions:
    """Keyword arguments of ``FlowRVS.__call__``, described there."""

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
        """Frames that successive windows share."""
        return choose_windows(self.window, self.overlap).overlap

    @classmethod
    def from_flags(cls, flags: argparse.Namespace) -> "SegmentOptions":
        """From the flags of ``util.flags.add_segment_flags``."""
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
    """Makes a pipeline faster without another answer but for rounding, in place, once it is on its device.

    Args:
        compile_layers: the DiT's blocks and the VAE's norms, at their first use, for any length and size.
    """
    prepare_for_inference(pipeline.transformer, compile_layers)
    if compile_layers:
        vae_layers.compile_layers(pipeline.vae)
