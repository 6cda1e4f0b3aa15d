"""``FlowRVS``: frames and prompts in, masks out. The one way to segment."""

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline, WanTransformer3DModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from models import mask_vae
from models.checks import check_networks, check_numbers
from models.dit import predict_velocity
from models.dit_inference import keep_rotary_float32
from models.flow import sigma_schedule
from models.mask_vae import logit_threshold
from models.objectives import FLOW, NOISE, REM, check_num_steps, predict_mask_latents
from models.output import EncodedWindow, FinishedFrames, FlowRVSOutput, pack_masks
from models.text import clean_captions, embed_captions
from models.vae_layers import use_fast_layers
from models.vae_stream import num_decoder_calls, num_encoder_calls
from models.video_input import VideoFrames, as_video, frames_to_tensor, open_path
from models.windows import Blend, Joint, Windows, choose_windows, cut, join, spans_of
from util.errors import UserError
from util.frames import FrameSource
from util.images import Frame, fit_size
from util.memory import naming_what_saves_memory
from util.stopwatch import Stopwatch

# The decoder takes 3.8 GiB per mask at 480 x 832, twice the DiT. Decoding several masks at once saves a tenth of the
# time at 64 x 96; from 240 x 416 on it only takes more memory.
DECODED_PIXELS = 240 * 416


class FitBox(NamedTuple):
    """The box into which frames are fitted.

    Attributes:
        height, width: in pixels; None is the pipeline's own.
        pixel_aspect: width of a source pixel over its height; frames are fitted in the shape in which they are shown.
    """

    height: int | None
    width: int | None
    pixel_aspect: Fraction = Fraction(1)


class FlowRVS(DiffusionPipeline):
    """Deforms a video into the masks of the objects that prompts describe.

    Args:
        transformer: the DiT, which predicts the velocity; 2C input channels mean direct video injection. Its rotary
            tables are kept in float32 from now on, whatever it is cast to.
        vae: stock, or with a one-channel decoder tuned on masks.
        text_encoder, tokenizer: Wan's UMT5; both None if captions come embedded.
        max_sequence_length: tokens per caption; the DiT attends to all of them.
        box_height, box_width: pixels; frames are fitted into this box unless a call gives another.
        objective: what the DiT was trained to predict; see ``models.objectives``.

    Raises:
        UserError: if the networks do not fit each other.

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
        check_networks(self)
        keep_rotary_float32(transformer)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> "FlowRVS":
        """Loads a saved pipeline, as the library does, and makes its VAE faster: see ``use_fast_layers``."""
        pipeline: FlowRVS = super().from_pretrained(*args, **kwargs)
        use_fast_layers(pipeline.vae)
        return pipeline

    # -- segmenting --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    @naming_what_saves_memory()
    def __call__(
        self,
        frames: VideoFrames,
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

        The video is encoded once; each distinct caption is embedded and solved once.

        Args:
            frames: T frames of one size: a path of a video, an image or a folder of images; what
                ``util.video.read_video`` returns; one PIL image; an array [T, H, W, 3] uint8; a tensor [T, 3, H, W]
                (uint8, or float in [-1, 1]); or an iterable of PIL images or [H, W, 3] uint8 arrays. RGB, any T >= 1:
                the last frame is repeated up to 4n + 1 and the extra predictions are dropped.
            prompts: P sentences; a single string counts as one.
            prompt_embeds: instead of ``prompts``, [P, max_sequence_length, D] as ``embed`` returns it.
            num_steps: Euler steps, each one evaluation of the DiT per prompt.
            box_height, box_width: pixels; by default the pipeline's own; see ``fitted_size``.
            output_size: (H, W) of the result in pixels; by default the size of ``frames``.
            threshold: foreground where the sigmoid of the logit exceeds it, within [0.27, 0.73].
            prompt_batch: prompts that run through the DiT and the decoder together; memory grows with it.
            seed: random seed of the noise, for weights trained with the objective ``noise``; unused otherwise.
            window: frames that the model sees at once, 4n + 1; 0 is the whole video, as the weights are evaluated.
            overlap: frames that successive windows share, see ``models.windows``; by default a fifth of a window.

        Raises:
            TypeError: if ``frames`` or ``prompts`` have another type.
            UserError: if an argument cannot be segmented.
            ValueError: if ``num_steps``, the box, ``threshold`` or ``prompt_batch`` is out of range.
        """
        if (prompts is None) == (prompt_embeds is None):
            raise UserError("prompts or prompt_embeds must be given, one of them")
        captions = clean_captions([prompts] if isinstance(prompts, str) else prompts) if prompts is not None else []
        check_numbers(threshold, prompt_batch)
        sigmas, windows = self._sigmas(num_steps), self._windows(window, overlap)
        frames = open_path(frames)
        video = frames_to_tensor(frames)
        spans = spans_of(len(video), windows)
        box = FitBox(box_height, box_width, frames.pixel_aspect if isinstance(frames, FrameSource) else Fraction(1))
        height, width = self._checked_size(video, spans, box)
        stopwatch = Stopwatch(self._execution_device)
        with stopwatch.stage("text"):
            distinct = list(dict.fromkeys(captions))
            embeddings = self._embed(distinct) if prompt_embeds is None else self._checked_embeddings(prompt_embeds)

        size = output_size or (video.shape[-2], video.shape[-1])
        logits = torch.empty(len(embeddings), len(video), height, width)
        packed = np.empty((len(embeddings), len(video), -(-size[0] * size[1] // 8)), np.uint8)
        blend = Blend(windows, logit_threshold(threshold))
        encoded = self._encode_windows(((start, video[start:stop]) for start, stop in spans), box, stopwatch)
        for finished in self._segment(
            encoded, embeddings, sigmas, blend, seed=seed, prompt_batch=prompt_batch, stopwatch=stopwatch
        ):
            for offset in range(finished.logits.shape[1]):
                frame = finished.logits[:, offset : offset + 1]
                logits[:, finished.start + offset] = frame[:, 0]
                with stopwatch.stage("decode"):
                    masks = pack_masks(frame.to(self._execution_device), size, threshold)
                    packed[:, finished.start + offset] = masks[:, 0].cpu().numpy()
        self.maybe_free_model_hooks()
        rows = [distinct.index(caption) for caption in captions] if captions else list(range(len(logits)))
        agreement = torch.stack(blend.agreements)[:, rows] if blend.agreements else torch.empty(0, len(rows))
        return FlowRVSOutput(packed, logits, rows, size, stopwatch.seconds, agreement)

    @torch.no_grad()
    def segment_batches(
        self,
        frames: VideoFrames,
        prompt_embeds: Iterable[Tensor],
        *,
        num_steps: int = 1,
        box_height: int | None = None,
        box_width: int | None = None,
        seed: int = 0,
        window: int = 0,
        overlap: int | None = None,
    ) -> Iterator[Tensor]:
        """Segments a video for one prompt batch after the other; only the logits of one batch are in memory.

        Args:
            prompt_embeds: batches of [B, max_sequence_length, D]; each runs through DiT and decoder together.
            frames, num_steps, box_height, box_width, seed, window, overlap: as in a call.

        Yields:
            For each batch the logits [B, T, h, w] float32 on the device, at the size that the model saw.

        Raises:
            UserError: if an argument cannot be segmented.
        """
        sigmas, windows = self._sigmas(num_steps), self._windows(window, overlap)
        video = frames_to_tensor(frames)
        spans = spans_of(len(video), windows)
        box, stopwatch, device = FitBox(box_height, box_width), Stopwatch(), self._execution_device
        self._checked_size(video, spans, box)
        encoded = list(self._encode_windows(((start, video[start:stop]) for start, stop in spans), box, stopwatch))
        for batch in prompt_embeds:
            embeddings = self._checked_embeddings(batch)
            blend = Blend(windows if len(spans) > 1 else Windows())
            finished = self._segment(
                encoded, embeddings, sigmas, blend,
                seed=seed, prompt_batch=len(embeddings), stopwatch=stopwatch, device=device,
            )  # fmt: skip
            yield join(((one.start, one.logits) for one in finished), len(video))

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
        stopwatch: Stopwatch | None = None,
    ) -> Iterator[FinishedFrames]:
        """Segments frames that come one by one; at most two windows of them are in memory.

        Args:
            frames: [H, W, 3] uint8 RGB each, of one size.
            prompt_embeds: [P, max_sequence_length, D] from ``embed``.
            after: the state to continue from; ``frames`` then begin at ``after.start``.
            stopwatch: collects the seconds of each stage: encode, dit, decode.
            num_steps, box_height, box_width, threshold, prompt_batch, seed, window, overlap: as in a call.

        Yields:
            After each window the frames that it finished, with logits on the CPU; at the end the rest.

        Raises:
            UserError: if an argument cannot be segmented.
            ValueError: as in a call.
        """
        check_numbers(threshold, prompt_batch)
        sigmas, windows = self._sigmas(num_steps), self._windows(window, overlap)
        embeddings = self._checked_embeddings(prompt_embeds)
        blend = Blend(windows, logit_threshold(threshold), after)
        stopwatch = stopwatch or Stopwatch()
        videos = ((start, frames_to_tensor(held)) for start, held in cut(frames, windows, after))
        encoded = self._encode_windows(videos, FitBox(box_height, box_width), stopwatch)
        yield from self._segment(
            encoded, embeddings, sigmas, blend, seed=seed, prompt_batch=prompt_batch, stopwatch=stopwatch
        )

    def _encode_windows(
        self, windows: Iterable[tuple[int, Tensor]], box: FitBox, stopwatch: Stopwatch
    ) -> Iterator[EncodedWindow]:
        """Encodes each window, (first frame, [T, 3, H, W]), as soon as it is asked for."""
        for start, video in windows:
            with naming_what_saves_memory(), stopwatch.stage("encode"):
                size = self._checked_size(video, [(0, len(video))], box)
                latents = self.encode_video(as_video(video, size, self._execution_device))
            yield EncodedWindow(start, len(video), latents)

    def _segment(
        self,
        windows: Iterable[EncodedWindow],
        embeddings: Tensor,
        sigmas: Tensor,
        blend: Blend,
        *,
        seed: int,
        prompt_batch: int,
        stopwatch: Stopwatch,
        device: torch.device | str = "cpu",
    ) -> Iterator[FinishedFrames]:
        """Solves and decodes each window for every prompt batch and blends it with the window before.

        All that segments goes through here: calls, streams and batches, so the demo, the benchmarks and validation.

        Args:
            embeddings: [P, L, D].
            blend: joins the windows; it may continue from an earlier run.
            device: where the logits of all prompts go.
        """
        for window in windows:
            with naming_what_saves_memory():
                noise = self._noise(window.latents, seed)
                with stopwatch.stage("dit"):
                    mask_latents = self._solve(window.latents, embeddings, sigmas, noise, prompt_batch)
                with stopwatch.stage("decode"):
                    logits = self._decode(mask_latents, window.num_frames, prompt_batch, device)
            first = blend.joint.num_finished if blend.joint else 0
            finished = blend.add(window.start, logits)
            del logits
            assert blend.joint is not None, "a window was added"
            agreement = blend.agreements[-1] if blend.agreements else None
            yield FinishedFrames(first, finished, blend.joint, agreement)
        if blend.joint is None:
            raise UserError("frames must hold at least one frame, got none")
        yield FinishedFrames(blend.joint.num_finished, blend.joint.tail, blend.joint, None)

    def encode_video(self, video: Tensor) -> Tensor:
        """Encodes [B, 3, T, H, W] in [-1, 1], T = 4n + 1, to normalised latents [B, C, T', H', W'], float32 means."""
        with self._bar("encode video", self.vae.encoder, num_encoder_calls(video.shape)):
            return mask_vae.encode_video(self.vae, video)

    def predict_mask_latents(
        self, video_latents: Tensor, caption_embeddings: Tensor, sigmas: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """Solves for B prompts of one video.

        Args:
            video_latents: [1, C, T, H, W] normalised.
            caption_embeddings: [B, L, D].
            sigmas: [num_steps + 1] from ``sigma_schedule``.
            noise: like ``video_latents``, the same for every prompt; only for the objective ``noise``.

        Returns:
            [B, C, T, H, W] raw mask latents.
        """
        num_prompts = len(caption_embeddings)
        video_latents = video_latents.expand(num_prompts, -1, -1, -1, -1)
        mask_latents = predict_mask_latents(
            self.config.objective,
            lambda latents, sigma: predict_velocity(
                self.transformer, latents, video_latents, sigma, caption_embeddings
            ),
            video_latents,
            sigmas,
            video_latents if noise is None else noise.expand(num_prompts, -1, -1, -1, -1),
        )
        return mask_vae.denormalise(self.vae, mask_latents) if self.config.objective == REM else mask_latents

    def _solve(
        self, video_latents: Tensor, embeddings: Tensor, sigmas: Tensor, noise: Tensor | None, prompt_batch: int
    ) -> Tensor:
        batches = embeddings.split(prompt_batch)
        with self._bar("predict masks", self.transformer, len(batches) * (len(sigmas) - 1)):
            return torch.cat([self.predict_mask_latents(video_latents, batch, sigmas, noise) for batch in batches])

    def _decode(self, mask_latents: Tensor, num_frames: int, prompt_batch: int, device: torch.device | str) -> Tensor:
        """[P, C, T', H', W'] to logits [P, num_frames, h, w] on ``device``."""
        stride = self.vae.config.scale_factor_spatial
        height, width = stride * mask_latents.shape[-2], stride * mask_latents.shape[-1]
        logits = torch.empty(len(mask_latents), num_frames, height, width, device=device)
        batches = mask_latents.split(max(1, min(prompt_batch, DECODED_PIXELS // (height * width))))
        done = 0
        num_calls = sum(num_decoder_calls(self.vae, batch.shape) for batch in batches)
        with self._bar("decode masks", self.vae.decoder, num_calls):
            for batch in batches:
                decoded = mask_vae.decode_logits(self.vae, batch)[:, 0, :num_frames]  # [B, T, h, w]
                if not torch.isfinite(decoded).all():
                    raise UserError(
                        "the mask logits are not finite: the weights hold NaN or infinity; download them again"
                    )
                logits[done : done + len(batch)] = decoded
                done += len(batch)
        return logits

    def _noise(self, video_latents: Tensor, seed: int) -> Tensor | None:
        if self.config.objective != NOISE:
            return None
        return torch.randn(video_latents.shape, generator=torch.Generator().manual_seed(seed)).to(video_latents)

    @contextlib.contextmanager
    def _bar(self, title: str, module: nn.Module, total: int) -> Iterator[None]:
        """Shows a progress bar that advances each time the library runs ``module``."""
        with self.progress_bar(total=total) as bar:
            bar.set_description(title)

            def advance(*_: object) -> None:  # a hook that returned anything would replace the module's output
                bar.update()

            hook = module.register_forward_hook(advance)
            try:
                yield
            finally:
                hook.remove()

    # -- captions ----------------------------------------------------------------------------------------------------

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Embeds P prompts to [P, max_sequence_length, D], for ``prompt_embeds``; on the device that runs the networks.

        Raises:
            UserError: if a prompt is empty, or the pipeline has no text encoder.
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

    # -- sizes and limits --------------------------------------------------------------------------------------------

    @property
    def size_multiple(self) -> tuple[int, int]:
        """(height, width) in pixels of one token of the DiT; frame sizes are multiples of it."""
        _, patch_height, patch_width = self.transformer.config.patch_size
        stride = self.vae.config.scale_factor_spatial
        return stride * patch_height, stride * patch_width

    def fitted_size(
        self,
        height: int,
        width: int,
        box_height: int | None = None,
        box_width: int | None = None,
        *,
        pixel_aspect: Fraction = Fraction(1),
    ) -> tuple[int, int]:
        """Returns the (height, width) in pixels at which the model sees frames of a size.

        Args:
            height, width: source size in pixels.
            box_height, box_width: pixels; by default the pipeline's own.
            pixel_aspect: width of a source pixel over its height; the shape in which frames are shown is fitted.

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
        return fit_size(height, max(1, round(width * pixel_aspect)), *box, multiple)

    @property
    def max_frames(self) -> int:
        """Most frames that the model can see at once: their latents fill the DiT's rotary tables."""
        positions = self.transformer.config.rope_max_seq_len
        return 1 + (positions - 1) * self.vae.config.scale_factor_temporal

    def check_length(self, num_frames: int) -> None:
        """Refuses a video that is too long. Readers call it before they hold one in memory.

        Raises:
            UserError: if ``num_frames`` exceeds ``max_frames``.
        """
        if num_frames > self.max_frames:
            raise UserError(
                f"frames must number at most {self.max_frames} for this DiT, got {num_frames} or more; cut the video "
                f"into windows (--window 81), or segment a shorter one with --max_frames {self.max_frames}"
            )

    def _sigmas(self, num_steps: int) -> Tensor:
        check_num_steps(self.config.objective, num_steps)
        return sigma_schedule(num_steps).to(self._execution_device)

    def _windows(self, window: int, overlap: int | None) -> Windows:
        windows = choose_windows(window, overlap)
        if windows.length > self.max_frames:
            raise UserError(f"window (--window) must be at most {self.max_frames} frames for this DiT, got {window}")
        return windows

    def _checked_size(self, video: Tensor, spans: list[tuple[int, int]], box: FitBox) -> tuple[int, int]:
        """Returns the model size of [T, 3, H, W]; refuses windows with too many frames, or frames too large."""
        height, width = video.shape[-2:]
        size = self.fitted_size(height, width, box.height, box.width, pixel_aspect=box.pixel_aspect)
        self.check_length(max(stop - start for start, stop in spans))
        if max(size) > self.transformer.config.rope_max_seq_len * max(self.size_multiple):
            raise UserError(
                f"frames of {size[0]} x {size[1]} are too large for this DiT; use a smaller box (--reso_h, --reso_w)"
            )
        return size
