"""What each window of a video goes through: encode, DiT, decode, with a progress bar each."""

import contextlib
from collections.abc import Iterator

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from models import mask_vae
from models.dit import predict_velocity
from models.mask_vae import resize_logits
from models.objectives import NOISE, REM, predict_mask_latents
from models.vae_stream import num_decoder_calls, num_encoder_calls
from models.video_input import as_video
from util.errors import UserError

# The decoder takes 3.8 GiB a mask at 480 x 832, twice the DiT. Masks of smaller frames gain by passing together, a
# tenth at 64 x 96; from 240 x 416 on they only take more memory.
DECODED_PIXELS = 240 * 416


class Stages(DiffusionPipeline):
    """The part of ``FlowRVS`` that runs its networks."""

    def _encode(self, pictures: Tensor, spans: list[tuple[int, int]], size: tuple[int, int]) -> list[Tensor]:
        """The latents of each window of [T, 3, H, W]."""
        device = self._execution_device
        return [self.encode_video(as_video(pictures[start:stop], size, device)) for start, stop in spans]

    def encode_video(self, video: Tensor) -> Tensor:
        """[B, 3, T, H, W] in [-1, 1], T = 4n + 1, to normalised latents [B, C, T', H', W'] float32: the mean."""
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

    def _window_logits(self, video_latents: Tensor, embeddings: Tensor, sigmas: Tensor, seed: int) -> Tensor:
        """Of one window and a batch of prompts, logits [B, T, h, w] on the device."""
        noise = self._noise(video_latents, seed)
        mask_latents = self.predict_mask_latents(video_latents, embeddings, sigmas, noise)
        parts = mask_latents.split(self._decoded_together(mask_latents, len(mask_latents)))
        logits = [mask_vae.decode_logits(self.vae, part)[:, 0] for part in parts]
        return logits[0] if len(logits) == 1 else torch.cat(logits)

    def _decoded_together(self, mask_latents: Tensor, most: int) -> int:
        """How many prompts the decoder takes at once: many small ones, one from ``DECODED_PIXELS`` on."""
        height, width = (self.vae.config.scale_factor_spatial * side for side in mask_latents.shape[-2:])
        return max(1, min(most, DECODED_PIXELS // (height * width)))

    def _decode(self, mask_latents: Tensor, num_frames: int, size: tuple[int, int], prompt_batch: int) -> Tensor:
        """[P, C, T', H', W'] to logits [P, num_frames, *size] on the CPU."""
        batches = mask_latents.split(self._decoded_together(mask_latents, prompt_batch))
        logits = torch.empty(len(mask_latents), num_frames, *size)
        done = 0
        num_calls = sum(num_decoder_calls(self.vae, batch.shape) for batch in batches)
        with self._bar("decode masks", self.vae.decoder, num_calls):
            for batch in batches:
                decoded = mask_vae.decode_logits(self.vae, batch)[:, 0, :num_frames]  # [B, T, h, w]
                check_finite(decoded)
                if decoded.shape[-2:] == torch.Size(size):
                    logits[done : done + len(batch)] = decoded
                else:
                    for index in range(num_frames):  # frame by frame: the whole video at source size may not fit
                        logits[done : done + len(batch), index] = resize_logits(decoded[:, index], size)
                done += len(batch)
        return logits

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


def check_finite(logits: Tensor) -> None:
    if not torch.isfinite(logits).all():
        raise UserError("the mask logits are not finite: the weights hold NaN or infinity; download them again")
