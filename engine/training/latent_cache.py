"""Computes the latents of training clips once and keeps them on disk.

One safetensors file per (video, first frame): ``mean`` and ``log_variance`` of the video's posterior, so that
start-point augmentation still samples, and ``mask/<exp_id>`` for every expression.
"""

import json
import os
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

from datasets.referring import Item, ReferringClips
from datasets.sampling import Key
from models import mask_vae
from util.errors import UserError
from util.files import read_json, write_text_whole

MANIFEST = "manifest.json"
MASKS_AT_ONCE = 4  # masks that the VAE encodes in one call; bounds the memory at 480p


@dataclass(frozen=True)
class LatentBatch:
    """The input of a flow-matching step: unnormalised latents [B, C, T, H, W]."""

    mean: Tensor
    log_variance: Tensor
    mask_latents: Tensor
    captions: list[str]
    keys: list[tuple[str, str]]
    seeds: list[int]
    num_real_frames: list[int]


@dataclass(frozen=True)
class LatentClip:
    """One item of a ``LatentBatch``, without the batch axis."""

    mean: Tensor
    log_variance: Tensor
    mask_latents: Tensor
    caption: str
    key: tuple[str, str]
    seed: int
    num_real_frames: int


class CachedLatents(Dataset[LatentClip]):
    """Reads the clips of one dataset as cached latents; ``fill`` must compute missing ones first.

    Args:
        folder: the cache; it serves one VAE, dataset, clip length and size.
        clips: consecutive frames, not augmented.
        identity: what else must be equal whenever the folder is used, such as the hash of the VAE.

    Raises:
        UserError: if the folder holds other latents, or other files.
    """

    def __init__(self, folder: Path, clips: ReferringClips, identity: dict[str, str]) -> None:
        self.folder = folder
        self.clips = clips
        folder.mkdir(parents=True, exist_ok=True)
        box = clips.options.box
        size = f"{box.short_side} x {box.long_side}, multiples of {box.multiple}"
        self._check_identity({**identity, "num_frames": str(clips.options.num_frames), "size": size})

    def fill(self, vae: AutoencoderKLWan, rank: int = 0, num_ranks: int = 1) -> None:
        """Computes this process's share of the latents that are not in the folder yet."""
        groups: dict[Path, list[Item]] = defaultdict(list)
        for item in self.clips.items:
            groups[self._file(item)].append(item)
        own = dict(list(groups.items())[rank::num_ranks])
        absent = {file: items for file, items in own.items() if not file.is_file()}
        for file, items in tqdm(absent.items(), desc="cache latents", unit="clip", disable=not absent or rank > 0):
            self._encode(file, items, vae)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: Key) -> LatentClip:
        item = self.clips.items[key[1]]
        with safe_open(self._file(item), framework="pt") as file:
            return LatentClip(
                file.get_tensor("mean"),
                file.get_tensor("log_variance"),
                file.get_tensor(f"mask/{item.expression.exp_id}"),
                item.expression.caption,
                item.expression.key,
                self.clips.step_seed(key),
                len(set(self.clips.fixed_indices(item))),
            )

    @torch.no_grad()
    def _encode(self, file: Path, items: list[Item], vae: AutoencoderKLWan) -> None:
        """Writes one file. Encodes the frames once, and each set of target objects once."""
        frames = self.clips.fixed_frames(items[0])
        mean, log_variance = mask_vae.encode_posterior(vae, frames.transpose(0, 1)[None].to(vae.device))
        distinct = {item.expression.object_ids: item for item in items}
        masks = torch.stack([self.clips.fixed_masks(item) for item in distinct.values()])
        latents = [
            mask_vae.encode_masks(vae, chunk.transpose(1, 2).to(vae.device)) for chunk in masks.split(MASKS_AT_ONCE)
        ]
        by_targets = dict(zip(distinct, torch.cat(latents), strict=True))
        tensors = {"mean": mean[0], "log_variance": log_variance[0]}
        for item in items:
            tensors[f"mask/{item.expression.exp_id}"] = by_targets[item.expression.object_ids]
        partial = file.with_suffix(f".partial-{os.getpid()}")
        save_file(
            {name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()},
            partial,
        )
        partial.replace(file)

    def _file(self, item: Item) -> Path:
        return self.folder / f"{item.expression.video}-{item.anchor:05d}.safetensors"

    def _check_identity(self, identity: dict[str, str]) -> None:
        manifest = self.folder / MANIFEST
        if manifest.is_file():
            if read_json(manifest) != identity:
                raise UserError(
                    f"--latent_cache {self.folder}: holds latents of another VAE, dataset, clip length or size; "
                    "give another folder"
                )
        elif any(
            not file.name.startswith(".") for file in self.folder.iterdir()
        ):  # a hidden file: another process is writing the manifest
            raise UserError(
                f"--latent_cache {self.folder}: must be empty or a latent cache, got other files; give another folder"
            )
        else:
            write_text_whole(manifest, json.dumps(identity, indent=1))


def collate_latents(clips: list[LatentClip]) -> LatentBatch:
    """Stacks items of equal size into a batch."""
    return LatentBatch(
        torch.stack([clip.mean for clip in clips]),
        torch.stack([clip.log_variance for clip in clips]),
        torch.stack([clip.mask_latents for clip in clips]),
        [clip.caption for clip in clips],
        [clip.key for clip in clips],
        [clip.seed for clip in clips],
        [clip.num_real_frames for clip in clips],
    )
