"""Latents of training clips, computed once and kept on disk.

One safetensors file per (video, first frame): ``mean`` and ``log_variance`` of the video's posterior, so that
start-point augmentation still samples, and ``mask/<exp_id>`` for every expression.
"""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from datasets.referring import ReferringClips
from datasets.sampling import dense_indices
from models import mask_vae
from util.checkpoint import read_json
from util.errors import UserError
from util.files import write_text_whole

MANIFEST = "manifest.json"
MASKS_AT_ONCE = 4  # through the encoder; bounds the memory at 480p


@dataclass(frozen=True)
class LatentBatch:
    """What a step of flow matching needs: posterior mean, log-variance and mask latents, [B, C, T, H, W] raw."""

    mean: Tensor
    log_variance: Tensor
    mask_latents: Tensor
    captions: list[str]
    keys: list[tuple[str, str]]


Item = tuple[Tensor, Tensor, Tensor, str, tuple[str, str]]


class CachedLatents(Dataset[Item]):
    """The items of ``clips`` as latents; computes those that are not in ``folder`` yet.

    Args:
        folder: the cache; belongs to one VAE, clip length and size.
        identity: what must not change between uses of a folder, say the hash of the VAE.

    Raises:
        UserError: if the folder was made for something else.
    """

    def __init__(self, folder: Path, clips: ReferringClips, vae: AutoencoderKLWan, identity: dict[str, str]) -> None:
        self.folder = folder
        self.clips = clips
        folder.mkdir(parents=True, exist_ok=True)
        self._check_identity({**identity, "num_frames": str(clips.num_frames)})
        groups: dict[tuple[str, int], list[int]] = defaultdict(list)
        for index, (expression, start) in enumerate(clips.items):
            groups[expression.video, start].append(index)
        absent = {place: items for place, items in groups.items() if not self._file(*place).is_file()}
        for place, items in tqdm(absent.items(), desc="cache latents", unit="clip", disable=not absent):
            self._encode(self._file(*place), items, vae)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, item: int) -> Item:
        expression, start = self.clips.items[item]
        with safe_open(self._file(expression.video, start), framework="pt") as file:
            mean, log_variance = file.get_tensor("mean"), file.get_tensor("log_variance")
            return mean, log_variance, file.get_tensor(f"mask/{expression.exp_id}"), expression.caption, expression.key

    @torch.no_grad()
    def _encode(self, file: Path, items: list[int], vae: AutoencoderKLWan) -> None:
        """Writes one file: the frames are read and encoded once, each set of targets once."""
        expressions = [self.clips.items[item][0] for item in items]
        start = self.clips.items[items[0]][1]
        indices = dense_indices(start, self.clips.num_frames, len(expressions[0].frames))
        frames, size = self.clips.read_frames(expressions[0], indices)
        mean, log_variance = mask_vae.encode_posterior(vae, frames.transpose(0, 1)[None].to(vae.device))
        distinct = {expression.object_ids: expression for expression in expressions}
        masks = torch.stack([self.clips.read_masks(expression, indices, size) for expression in distinct.values()])
        latents = [
            mask_vae.encode_masks(vae, chunk.transpose(1, 2).to(vae.device)) for chunk in masks.split(MASKS_AT_ONCE)
        ]
        by_targets = dict(zip(distinct, torch.cat(latents), strict=True))
        tensors = {"mean": mean[0], "log_variance": log_variance[0]}
        for expression in expressions:
            tensors[f"mask/{expression.exp_id}"] = by_targets[expression.object_ids]
        partial = file.with_suffix(".partial")
        save_file(
            {name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()},
            partial,
        )
        partial.replace(file)

    def _file(self, video: str, start: int) -> Path:
        return self.folder / f"{video}-{start:05d}.safetensors"

    def _check_identity(self, identity: dict[str, str]) -> None:
        manifest = self.folder / MANIFEST
        if manifest.is_file():
            if read_json(manifest) != identity:
                raise UserError(
                    f"--latent_cache {self.folder}: made with another VAE, data or clip length; give another folder"
                )
        elif any(self.folder.iterdir()):
            raise UserError(f"--latent_cache {self.folder}: not empty and no latent cache; give another folder")
        else:
            write_text_whole(manifest, json.dumps(identity, indent=1))


def collate_latents(items: list[Item]) -> LatentBatch:
    """Stacks items of one size.

    Raises:
        UserError: if they differ in size.
    """
    means, log_variances, masks, captions, keys = zip(*items, strict=True)
    if len({mean.shape for mean in means}) > 1:
        raise UserError(f"--batch_size {len(items)}: clips of different sizes do not stack; use 1")
    return LatentBatch(torch.stack(means), torch.stack(log_variances), torch.stack(masks), list(captions), list(keys))
