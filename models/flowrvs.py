"""``FlowRVS``: frames and sentences in, mask logits out. The one public way to segment."""

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline, WanTransformer3DModel
from diffusers.utils import BaseOutput
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from models import mask_vae
from models.dit import has_injection, predict_velocity
from models.dit_speed import keep_rotary_float32
from models.flow import sigma_schedule
from models.mask_vae import logits_to_masks, resize_logits
from models.objectives import FLOW, NOISE, REM, check_num_steps, check_objective, predict_mask_latents
from models.pictures import Frames, as_pictures, as_video
from models.text import clean_captions, embed_captions
from models.vae_layers import use_fast_layers
from models.vae_stream import num_decoder_calls, num_encoder_calls
from util.errors import UserError
from util.frames import fit_size
from util.masks import HIGHEST_THRESHOLD, LOWEST_THRESHOLD
from util.stopwatch import Stopwatch


@dataclass
class FlowRVSOutput(BaseOutput):
    """What a call returns, prompts in the order given.

    Attributes:
        logits: [P, T, H, W] float32 on the CPU, in [-1, 1].
        masks: [P, T, H, W] bool, where the sigmoid of the logits exceeds the threshold.
        seconds: wall-clock time of each stage: text, encode, dit, decode.
    """

    logits: Tensor
    masks: NDArray[np.bool_]
    seconds: dict[str, float]


@contextlib.contextmanager
def _naming_what_saves_memory() -> Iterator[None]:
    """Out of memory becomes an error that says what to lower."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"out of memory ({str(error)[:100]}); lower prompt_batch (--prompt_batch), the box (--reso_h, "
            "--reso_w) or the number of frames (--max_frames)"
        ) from error


class FlowRVS(DiffusionPipeline):
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
        self._check_parts()
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
    @_naming_what_saves_memory()
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

        Raises:
            UserError: for arguments that cannot be segmented.
            ValueError: if ``num_steps``, the box, ``threshold`` or ``prompt_batch`` is out of range.
        """
        if (prompts is None) == (prompt_embeds is None):
            raise UserError("prompts or prompt_embeds must be given, one of them")
        captions = clean_captions([prompts] if isinstance(prompts, str) else prompts) if prompts is not None else []
        if not LOWEST_THRESHOLD <= threshold <= HIGHEST_THRESHOLD:
            raise ValueError(
                f"threshold must lie in [{LOWEST_THRESHOLD}, {HIGHEST_THRESHOLD}], got {threshold}: logits are clamped "
                "to [-1, 1], so beyond it every pixel would be the same"
            )
        if prompt_batch < 1:
            raise ValueError(f"prompt_batch must be at least 1, got {prompt_batch}")
        sigmas = self._sigmas(num_steps)
        pictures = as_pictures(frames)
        source_size = (pictures.shape[-2], pictures.shape[-1])
        size = self._size_for(pictures, box_height, box_width)
        distinct = list(dict.fromkeys(captions))
        stopwatch = Stopwatch(self._execution_device)

        with stopwatch.stage("text"):
            embeddings = self._embed(distinct) if prompt_embeds is None else self._checked_embeddings(prompt_embeds)
        with stopwatch.stage("encode"):
            video_latents = self.encode_video(as_video(pictures, size, self._execution_device))
        with stopwatch.stage("dit"):
            noise = self._noise(video_latents, seed)
            mask_latents = self._solve(video_latents, embeddings, sigmas, noise, prompt_batch)
        with stopwatch.stage("decode"):
            logits = self._decode(mask_latents, len(pictures), output_size or source_size, prompt_batch)

        self.maybe_free_model_hooks()
        _check_finite(logits)
        if len(distinct) < len(captions):
            logits = logits[[distinct.index(caption) for caption in captions]]
        return FlowRVSOutput(logits, logits_to_masks(logits, threshold), stopwatch.seconds)

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
    ) -> Iterator[Tensor]:
        """Like a call, for many prompts at sizes whose logits would not fit into memory together.

        Args:
            prompt_embeds: batches of [B, max_sequence_length, D]; each runs through DiT and decoder by itself.
            frames, num_steps, box_height, box_width, seed: as in a call.

        Yields:
            For each batch logits [B, T, h, w] float32 on the device, at the size the model saw.

        Raises:
            UserError: for arguments that cannot be segmented.
        """
        with _naming_what_saves_memory():
            sigmas = self._sigmas(num_steps)
            pictures = as_pictures(frames)
            size = self._size_for(pictures, box_height, box_width)
            video_latents = self.encode_video(as_video(pictures, size, self._execution_device))
            noise = self._noise(video_latents, seed)
            for embeddings in prompt_embeds:
                mask_latents = self.predict_mask_latents(
                    video_latents, self._checked_embeddings(embeddings), sigmas, noise
                )
                logits = mask_vae.decode_logits(self.vae, mask_latents)[:, 0, : len(pictures)]
                _check_finite(logits)
                yield logits

    def _sigmas(self, num_steps: int) -> Tensor:
        check_num_steps(self.config.objective, num_steps)
        return sigma_schedule(num_steps).to(self._execution_device)

    def _size_for(self, pictures: Tensor, box_height: int | None, box_width: int | None) -> tuple[int, int]:
        """(height, width) at which the model sees [T, 3, H, W]; refuses too many or too large ones."""
        size = self.fitted_size(pictures.shape[-2], pictures.shape[-1], box_height, box_width)
        self.check_length(len(pictures))
        self._check_size(size)
        return size

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

    def encode_video(self, video: Tensor) -> Tensor:
        """[B, 3, T, H, W] in [-1, 1], T = 4n + 1, to normalised latents [B, C, T', H', W'] float32: the mean."""
        with self._bar("encode video", self.vae.encoder, num_encoder_calls(self.vae, video.shape)):
            return mask_vae.encode_video(self.vae, video)

    def predict_mask_latents(
        self, video_latents: Tensor, caption_embeddings: Tensor, sigmas: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """Solves for B prompts of one video.

        Args:
            video_latents: [1, C, T, H, W] normalised.
            caption_embeddings: [B, L, D].
            sigmas: [num_steps + 1] from ``sigma_schedule``.
            noise: like ``video_latents``, the same for every prompt; needed where the objective is ``noise``.

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

    def _noise(self, video_latents: Tensor, seed: int) -> Tensor | None:
        if self.config.objective != NOISE:
            return None
        return torch.randn(video_latents.shape, generator=torch.Generator().manual_seed(seed)).to(video_latents)

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
                f"frames must number at most {self.max_frames} for this DiT, got {num_frames} or more; segment a "
                f"shorter piece with --max_frames {self.max_frames}, or sample it at a lower --fps"
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

    def _decode(self, mask_latents: Tensor, num_frames: int, size: tuple[int, int], prompt_batch: int) -> Tensor:
        """[P, C, T', H', W'] to logits [P, num_frames, *size] on the CPU."""
        batches = mask_latents.split(prompt_batch)
        logits = torch.empty(len(mask_latents), num_frames, *size)
        done = 0
        num_calls = sum(num_decoder_calls(self.vae, batch.shape) for batch in batches)
        with self._bar("decode masks", self.vae.decoder, num_calls):
            for batch in batches:
                decoded = mask_vae.decode_logits(self.vae, batch)[:, 0, :num_frames]  # [B, T, h, w]
                for index in range(num_frames):  # frame by frame: the whole video at source size may not fit
                    logits[done : done + len(batch), index] = resize_logits(decoded[:, index], size)
                done += len(batch)
        return logits

    def _check_parts(self) -> None:
        dit, vae = self.transformer.config, self.vae.config
        check_objective(self.config.objective, has_injection(self.transformer))
        mask_vae.check_strides(self.vae)
        if dit.image_dim is not None or dit.added_kv_proj_dim is not None:
            raise UserError("transformer: an image-to-video DiT has image inputs that FlowRVS does not feed; use T2V")
        if vae.z_dim != dit.out_channels or dit.in_channels not in (vae.z_dim, 2 * vae.z_dim):
            raise UserError(
                f"transformer and vae must agree on latent channels: the DiT maps {dit.in_channels} to "
                f"{dit.out_channels}, the VAE has {vae.z_dim}; take both from one model"
            )
        if self.text_encoder is not None and self.text_encoder.config.d_model != dit.text_dim:
            raise UserError(
                f"text_encoder and transformer must agree on the embedding width, got "
                f"{self.text_encoder.config.d_model} and {dit.text_dim}; take both from one model"
            )
        if dit.patch_size[0] != 1:
            raise UserError(f"transformer: patch_size must be 1 in time, got {dit.patch_size[0]}")
        if not len(vae.latents_mean) == len(vae.latents_std) == vae.z_dim or min(vae.latents_std) <= 0:
            raise UserError(
                f"vae: latents_mean and latents_std must hold {vae.z_dim} numbers each, the latter positive, got "
                f"{vae.latents_mean} and {vae.latents_std}; correct vae/config.json"
            )
        for name in ("max_sequence_length", "box_height", "box_width"):
            if not isinstance(self.config[name], int) or self.config[name] < 1:
                raise UserError(
                    f"{name} must be a whole number from 1, got {self.config[name]!r}; correct model_index.json"
                )

    @contextlib.contextmanager
    def _bar(self, title: str, module: nn.Module, total: int) -> Iterator[None]:
        """A progress bar that advances each time the library runs ``module``."""
        with self.progress_bar(total=total) as bar:
            bar.set_description(title)

            def advance(*_: object) -> None:  # a hook that returned anything would replace the module's output
                bar.update()

            hook = module.register_forward_hook(advance)
            try:
                yield
            finally:
                hook.remove()


def _check_finite(logits: Tensor) -> None:
    if not torch.isfinite(logits).all():
        raise UserError("the mask logits are not finite: the weights hold NaN or infinity; download them again")
