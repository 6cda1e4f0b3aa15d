"""``FlowRVS``: frames and sentences in, mask logits out. The one public way to segment."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.utils import BaseOutput
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from models.checks import check_parts
from models.dit_inference import keep_rotary_float32
from models.flow import sigma_schedule
from models.mask_vae import logit_threshold, logits_to_masks
from models.objectives import FLOW, check_num_steps
from models.stages import Stages, check_finite
from models.text import clean_captions, embed_captions
from models.vae_layers import use_fast_layers
from models.video_input import Frames, as_pictures
from models.windows import Blend, Joint, Windows, choose_windows, cut, join, spans_of
from util.errors import UserError
from util.flags import HIGHEST_THRESHOLD, LOWEST_THRESHOLD
from util.images import Frame, fit_size
from util.memory import naming_what_saves_memory
from util.stopwatch import Stopwatch


@dataclass
class FlowRVSOutput(BaseOutput):
    """What a call returns, prompts in the order given.

    Attributes:
        logits: [P, T, H, W] float32 on the CPU, in [-1, 1].
        masks: [P, T, H, W] bool, where the sigmoid of the logits exceeds the threshold.
        seconds: wall-clock time of each stage: text, encode, dit, decode.
        agreement: [W - 1, P] IoU of the masks that each two successive windows make of the frames they share.
    """

    logits: Tensor
    masks: NDArray[np.bool_]
    seconds: dict[str, float]
    agreement: Tensor


@dataclass(frozen=True)
class FinishedFrames:
    """What ``segment_stream`` yields after each window.

    Attributes:
        start: the index of the first of N frames that no further window changes.
        logits: [P, N, h, w] float32 on the CPU, at the size the model saw; N may be 0.
        joint: what goes on from here, as ``after`` of another call; all of the video's end.
        agreement: [P] with the window before, see ``FlowRVSOutput``; None after the first window and at the end.
        seconds: wall-clock time of each stage of this window.
    """

    start: int
    logits: Tensor
    joint: Joint
    agreement: Tensor | None
    seconds: dict[str, float]


class FlowRVS(Stages):
    """Deforms a video into the masks of the objects that sentences describe.

    Args:
        transformer: the velocity field; 2C input channels mean direct video injection.
        vae: stock, or with a one-channel decoder tuned on masks.
        text_encoder, tokenizer: Wan's UMT5; both None where captions come embedded.
        max_sequence_length: tokens per caption; the DiT attends to all of them.
        box_height, box_width: pixels; frames are fitted into this box unless a call names another.
        objective: what the DiT learnt to predict; see ``models.objectives``.

    Raises:
        UserError: if the parts do not belong together.

    Source: "Deforming Videos to Masks" (arXiv 2510.06139).
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["text_encoder", "tokenizer"]  # noqa: RUF012, the library reads a list

    def __init__(
        self,
        transformer: WanTransformer3DModel,
        vae: AutoencoderKLWan,
        text_encoder: UMT5EncoderModel | None,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        max_sequence_length: int = 256,
        box_height: int = 480,
        box_width: int = 832,
        objective: str = FLOW,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer)
        self.register_to_config(
            max_sequence_length=max_sequence_length, box_height=box_height, box_width=box_width, objective=objective
        )
        check_parts(self)
        use_fast_layers(vae)
        keep_rotary_float32(transformer)

    @property
    def size_multiple(self) -> tuple[int, int]:
        """(height, width) in pixels that one token of the DiT covers; frame sizes are multiples of it."""
        _, patch_height, patch_width = self.transformer.config.patch_size
        stride = self.vae.config.scale_factor_spatial
        return stride * patch_height, stride * patch_width

    def fitted_size(
        self, height: int, width: int, box_height: int | None = None, box_width: int | None = None
    ) -> tuple[int, int]:
        """(height, width) in pixels at which the model sees frames of a size; the box defaults to its own.

        Raises:
            UserError: if the box is smaller than one token.
        """
        box = (box_height or self.config.box_height, box_width or self.config.box_width)
        multiple = math.lcm(*self.size_multiple)
        if min(box) < multiple:
            raise UserError(
                f"box_height and box_width (--reso_h, --reso_w) must be at least {multiple} pixels, "
                f"got {box[0]} and {box[1]}"
            )
        return fit_size(height, width, *box, multiple)

    @torch.no_grad()
    @naming_what_saves_memory()
    def __call__(
        self,
        frames: Frames,
        prompts: str | Sequence[str] | None = None,
        *,
        prompt_embeds: Tensor | None = None,
        num_steps: int = 1,
        box_height: int | None = None,
        box_width: int | None = None,
        output_size: tuple[int, int] | None = None,
        threshold: float = 0.5,
        prompt_batch: int = 4,
        seed: int = 0,
        window: int = 0,
        overlap: int | None = None,
    ) -> FlowRVSOutput:
        """Segments a video once for every prompt.

        The video is encoded once, each distinct caption is embedded and solved once.

        Args:
            frames: T pictures of one size: an array [T, H, W, 3] uint8, a tensor [T, 3, H, W] (uint8, or float
                in [-1, 1]), or a list of PIL pictures or [H, W, 3] uint8 arrays. RGB, any T >= 1: the last
                frame is repeated up to 4n + 1 and the extra predictions are dropped.
            prompts: P sentences; a single string counts as one.
            prompt_embeds: instead of them, [P, max_sequence_length, D] as ``embed_captions`` gives it.
            num_steps: Euler steps, each one evaluation of the DiT per prompt.
            box_height, box_width: pixels, defaulting to the pipeline's own; see ``fitted_size``.
            output_size: (H, W) of the result in pixels; the size of ``frames`` by default.
            threshold: foreground where the sigmoid of the logit exceeds it, within [0.27, 0.73].
            prompt_batch: prompts that run through the DiT and the decoder together; memory grows with it.
            seed: of the noise, for weights that start from it; others draw nothing.
            window: frames that the model sees at once, 4n + 1; 0 is the whole video, as the weights are evaluated.
            overlap: frames shared by successive windows, see ``models.windows``; by default a fifth of a window.

        Raises:
            UserError: for arguments that cannot be segmented.
            ValueError: if ``num_steps``, the box, ``threshold`` or ``prompt_batch`` is out of range.
        """
        if (prompts is None) == (prompt_embeds is None):
            raise UserError("prompts or prompt_embeds must be given, one of them")
        captions = clean_captions([prompts] if isinstance(prompts, str) else prompts) if prompts is not None else []
        _check_numbers(threshold, prompt_batch)
        sigmas = self._sigmas(num_steps)
        windows = self._windows(window, overlap)
        pictures = as_pictures(frames)
        source_size = (pictures.shape[-2], pictures.shape[-1])
        spans = spans_of(len(pictures), windows)
        size = self._size_for(pictures, spans, box_height, box_width)
        distinct = list(dict.fromkeys(captions))
        stopwatch = Stopwatch(self._execution_device)

        with stopwatch.stage("text"):
            embeddings = self._embed(distinct) if prompt_embeds is None else self._checked_embeddings(prompt_embeds)
        with stopwatch.stage("encode"):
            video_latents = self._encode(pictures, spans, size)
        with stopwatch.stage("dit"):
            mask_latents = [
                self._solve(latents, embeddings, sigmas, self._noise(latents, seed), prompt_batch)
                for latents in video_latents
            ]
        with stopwatch.stage("decode"):
            blend = Blend(windows, logit_threshold(threshold))
            decoded = (
                self._decode(latents, stop - start, output_size or source_size, prompt_batch)
                for latents, (start, stop) in zip(mask_latents, spans, strict=True)
            )
            logits = join(decoded, spans, blend)

        self.maybe_free_model_hooks()
        rows = [distinct.index(caption) for caption in captions] if captions else list(range(len(logits)))
        agreement = torch.stack(blend.agreements)[:, rows] if blend.agreements else torch.empty(0, len(rows))
        if len(distinct) < len(captions):
            logits = logits[rows]
        return FlowRVSOutput(logits, logits_to_masks(logits, threshold), stopwatch.seconds, agreement)

    @torch.no_grad()
    def segment_batches(
        self,
        frames: Frames,
        prompt_embeds: Iterable[Tensor],
        *,
        num_steps: int = 1,
        box_height: int | None = None,
        box_width: int | None = None,
        seed: int = 0,
        window: int = 0,
        overlap: int | None = None,
    ) -> Iterator[Tensor]:
        """Like a call, for many prompts at sizes whose logits would not fit into memory together.

        Args:
            prompt_embeds: batches of [B, max_sequence_length, D]; each runs through DiT and decoder by itself.
            frames, num_steps, box_height, box_width, seed, window, overlap: as in a call.

        Yields:
            For each batch logits [B, T, h, w] float32 on the device, at the size the model saw.

        Raises:
            UserError: for arguments that cannot be segmented.
        """
        with naming_what_saves_memory():
            sigmas = self._sigmas(num_steps)
            windows = self._windows(window, overlap)
            pictures = as_pictures(frames)
            spans = spans_of(len(pictures), windows)
            size = self._size_for(pictures, spans, box_height, box_width)
            video_latents = self._encode(pictures, spans, size)
            for batch in prompt_embeds:
                embeddings = self._checked_embeddings(batch)
                decoded = (
                    self._window_logits(latents, embeddings, sigmas, seed)[:, : stop - start]
                    for latents, (start, stop) in zip(video_latents, spans, strict=True)
                )
                logits = join(decoded, spans, Blend(windows))
                check_finite(logits)
                yield logits

    @torch.no_grad()
    def segment_stream(
        self,
        frames: Iterable[Frame],
        prompt_embeds: Tensor,
        *,
        num_steps: int = 1,
        box_height: int | None = None,
        box_width: int | None = None,
        threshold: float = 0.5,
        prompt_batch: int = 4,
        seed: int = 0,
        window: int = 0,
        overlap: int | None = None,
        after: Joint | None = None,
    ) -> Iterator[FinishedFrames]:
        """Like a call, for frames that come one by one: at most two windows of them are in memory.

        Args:
            frames: [H, W, 3] uint8 RGB each, of one size; how many, only their end tells.
            prompt_embeds: [P, max_sequence_length, D] from ``embed``.
            after: where an earlier stream was left; ``frames`` then begin at ``after.start``.
            num_steps, box_height, box_width, threshold, prompt_batch, seed, window, overlap: as in a call.

        Yields:
            After each window the frames finished by it, and at the end the rest.

        Raises:
            UserError: for arguments that cannot be segmented.
            ValueError: as in a call.
        """
        _check_numbers(threshold, prompt_batch)
        sigmas, windows = self._sigmas(num_steps), self._windows(window, overlap)
        embeddings = self._checked_embeddings(prompt_embeds)
        blend = Blend(windows, logit_threshold(threshold), after)
        for start, held in cut(frames, windows, after):
            stopwatch = Stopwatch(self._execution_device)
            with naming_what_saves_memory():
                pictures = as_pictures(held)
                size = self._size_for(pictures, [(0, len(held))], box_height, box_width)
                with stopwatch.stage("encode"):
                    (latents,) = self._encode(pictures, [(0, len(held))], size)
                with stopwatch.stage("dit"):
                    mask_latents = self._solve(latents, embeddings, sigmas, self._noise(latents, seed), prompt_batch)
                with stopwatch.stage("decode"):
                    logits = self._decode(mask_latents, len(held), size, prompt_batch)
            first = blend.joint.num_finished if blend.joint else 0
            finished = blend.add(start, logits)
            assert blend.joint is not None, "a window was added"
            agreement = blend.agreements[-1] if blend.agreements else None
            yield FinishedFrames(first, finished, blend.joint, agreement, stopwatch.seconds)
        if blend.joint is None:
            raise UserError("frames must hold at least one picture, got none")
        yield FinishedFrames(blend.joint.num_finished, blend.joint.tail, blend.joint, None, {})

    def _sigmas(self, num_steps: int) -> Tensor:
        check_num_steps(self.config.objective, num_steps)
        return sigma_schedule(num_steps).to(self._execution_device)

    def _windows(self, window: int, overlap: int | None) -> Windows:
        windows = choose_windows(window, overlap)
        if windows.length > self.max_frames:
            raise UserError(f"window (--window) must be at most {self.max_frames} frames for this DiT, got {window}")
        return windows

    def _size_for(
        self, pictures: Tensor, spans: list[tuple[int, int]], box_height: int | None, box_width: int | None
    ) -> tuple[int, int]:
        """(height, width) at which the model sees [T, 3, H, W]; refuses too many at once, or too large ones."""
        size = self.fitted_size(pictures.shape[-2], pictures.shape[-1], box_height, box_width)
        self.check_length(max(stop - start for start, stop in spans))
        self._check_size(size)
        return size

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """[P, max_sequence_length, D] of P sentences, for ``prompt_embeds``; on the device of the text encoder.

        Raises:
            UserError: if one is empty, or the pipeline has no text encoder.
        """
        with torch.no_grad(), naming_what_saves_memory():
            return self._embed(clean_captions(prompts))

    def _embed(self, captions: list[str]) -> Tensor:
        if self.text_encoder is None or self.tokenizer is None:
            raise UserError("prompts need the text encoder, and this pipeline has none; give prompt_embeds")
        length = self.config.max_sequence_length
        return embed_captions(self.text_encoder, self.tokenizer, captions, length).to(self._execution_device)

    def _checked_embeddings(self, embeddings: Tensor) -> Tensor:
        row_shape = (self.config.max_sequence_length, self.transformer.config.text_dim)
        if embeddings.ndim != 3 or len(embeddings) == 0 or embeddings.shape[1:] != row_shape:
            raise UserError(f"prompt_embeds must be [P, {row_shape[0]}, {row_shape[1]}], got {list(embeddings.shape)}")
        return embeddings.to(self._execution_device)

    @property
    def max_frames(self) -> int:
        """The longest video in frames: its latents fill the DiT's rotary tables."""
        positions = self.transformer.config.rope_max_seq_len
        return 1 + (positions - 1) * self.vae.config.scale_factor_temporal

    def check_length(self, num_frames: int) -> None:
        """Refuses a video that is too long; readers call it before they hold one in memory.

        Raises:
            UserError: if ``num_frames`` exceeds ``max_frames``.
        """
        if num_frames > self.max_frames:
            raise UserError(
                f"frames must number at most {self.max_frames} for this DiT, got {num_frames} or more; cut it into "
                f"windows (--window 81), or segment a shorter piece with --max_frames {self.max_frames}"
            )

    def _check_size(self, size: tuple[int, int]) -> None:
        """Refuses frames with more positions on an axis than the DiT's rotary tables hold."""
        if max(size) > self.transformer.config.rope_max_seq_len * max(self.size_multiple):
            raise UserError(
                f"frames of {size[0]} x {size[1]} are too large for this DiT; use a smaller box (--reso_h, --reso_w)"
            )

    def _solve(
        self, video_latents: Tensor, embeddings: Tensor, sigmas: Tensor, noise: Tensor | None, prompt_batch: int
    ) -> Tensor:
        batches = embeddings.split(prompt_batch)
        with self._bar("predict masks", self.transformer, len(batches) * (len(sigmas) - 1)):
            return torch.cat([self.predict_mask_latents(video_latents, batch, sigmas, noise) for batch in batches])


def _check_numbers(threshold: float, prompt_batch: int) -> None:
    if not LOWEST_THRESHOLD <= threshold <= HIGHEST_THRESHOLD:
        raise ValueError(
            f"threshold must lie in [{LOWEST_THRESHOLD}, {HIGHEST_THRESHOLD}], got {threshold}: logits are clamped to "
            "[-1, 1], so beyond it every pixel would be the same"
        )
    if prompt_batch < 1:
        raise ValueError(f"prompt_batch must be at least 1, got {prompt_batch}")
