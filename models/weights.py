"""Builds a ``FlowRVS`` from folders and weight files, strictly: a tensor that is missing or left over is an error.

A Wan2.1-T2V-*-Diffusers folder provides the networks; ``dit_ckpt`` and ``vae_ckpt`` replace the weights of DiT and
VAE. These are files of the original (``.pth``, as released or as its trainer wrote them, with a list of EMA weights),
safetensors files, runs of ``main.py``, folders that diffusers' ``save_pretrained`` wrote, or any of these in a
repository of the hub (``models/hub.py``).

``python -m models.export`` writes the weights of a run for others to use.
"""

import logging
import runpy
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, ModelMixin, WanTransformer3DModel
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5EncoderModel

from models import dit, mask_vae
from models.flowrvs import FlowRVS
from models.hub import download_wan_folder, how_to_get, local_weights
from models.lora import BASE_ENTRY, RANK_ENTRY, merge_adapter
from models.objectives import FLOW, OBJECTIVE_ENTRY
from models.text_cache import text_weight_files
from models.vae_layers import use_fast_layers
from util.errors import MissingFileError, UserError
from util.files import read_json
from util.flags import DEFAULT_WAN_PATH
from util.memory import is_out_of_memory, too_little_to_load
from util.run_folder import ema_name, latest_checkpoint
from util.run_sources import with_sources_of_run
from util.weight_files import (
    ADAPTER_NAME,
    SAFETENSORS_NAME,
    StateDict,
    files_of,
    find_saved,
    read_safetensors,
    read_saved_folder,
    read_state_dict,
    unreadable,
)

logger = logging.getLogger(__name__)

NETWORKS = ("transformer", "vae", "text_encoder", "tokenizer")
PIPELINE_ENTRIES = ("max_sequence_length", "box_height", "box_width", "objective")
VAE_PREFIX = "vae."  # the original saves its VAE inside a module of this name
MAX_LISTED_KEYS = 20  # most keys per kind in an error; weights of another model differ in hundreds

Model = TypeVar("Model", bound=ModelMixin)


@dataclass(frozen=True)
class LoadedFlowRVS:
    """A pipeline, the weight files of each network, and the folder that has the text encoder."""

    pipeline: FlowRVS
    files: dict[str, tuple[Path, ...]]
    folder: Path


def load_flowrvs(
    wan_path: str | None,
    dit_ckpt: str | None = None,
    vae_ckpt: str | None = None,
    weights: str = "auto",
    dtype: torch.dtype | Mapping[str, torch.dtype] = torch.float32,
    *,
    text: bool = True,
    is_start: bool = False,
) -> LoadedFlowRVS:
    """Builds the pipeline on the CPU.

    Args:
        wan_path: a Wan2.1-T2V-*-Diffusers folder, a saved FlowRVS folder, or the hub id of either; by default the
            folder with which the run was started that ``dit_ckpt`` or ``vae_ckpt`` is of, else
            Wan2.1-T2V-1.3B-Diffusers in the working directory.
        dit_ckpt: weights of the DiT; those of the folder are then not read. Their shape tells whether they have
            direct video injection.
        vae_ckpt: weights of the VAE; by default those with which the run was started that ``dit_ckpt`` is of, else
            those of the folder.
        weights: of a DiT checkpoint with EMA and raw weights, ``auto`` prefers EMA, ``ema`` requires them, ``model``
            takes
            the raw ones.
        dtype: of all weights, or per network by its name; modules that the library keeps in float32 stay so.
        text: load the text encoder (11 GB) too; ``load_text`` loads it alone.
        is_start: the weights start a training run, so the text-to-video base is fine and causes no warning.

    Raises:
        UserError: if anything is missing, damaged or does not fit. One message lists all keys that do not fit.
    """
    if not is_start:
        wan_path, vae_ckpt = with_sources_of_run(wan_path, dit_ckpt, vae_ckpt)
    wan_path = wan_path or DEFAULT_WAN_PATH
    folder = resolve_wan_folder(wan_path, skip_transformer=dit_ckpt is not None, skip_vae=vae_ckpt is not None)
    index = read_json(folder / "model_index.json")
    if dit_ckpt is None and not is_start and index.get("_class_name") != FlowRVS.__name__:
        logger.warning(
            "--dit_ckpt not given: the DiT of %s is the text-to-video base, which was never trained to segment; "
            "its masks are meaningless", wan_path,
        )  # fmt: skip
    if weights == "ema" and dit_ckpt is None:
        raise UserError(
            "--weights ema: chooses among the weights of --dit_ckpt; give --dit_ckpt, or leave --weights out"
        )
    dit_weights, dit_config = _component_weights(folder, "transformer", dit_ckpt, "--dit_ckpt", weights)
    objective = dit_config.pop(OBJECTIVE_ENTRY, None)
    dtypes = dict.fromkeys(NETWORKS, dtype) if isinstance(dtype, torch.dtype) else dtype
    transformer = load_dit(dit_config, dit_weights, dtypes["transformer"])
    vae_weights, vae_config = _component_weights(folder, "vae", vae_ckpt, "--vae_ckpt", "auto")
    vae = load_vae(vae_config, vae_weights, dtypes["vae"])
    text_encoder, tokenizer = load_text(folder, dtypes["text_encoder"]) if text else (None, None)
    own_entries = {name: index[name] for name in PIPELINE_ENTRIES if name in index}
    if dit_ckpt is not None:  # the checkpoint's config names the objective; without one it is flow
        own_entries["objective"] = objective or FLOW
    use_fast_layers(vae)
    pipeline = FlowRVS(transformer, vae, text_encoder, tokenizer, **own_entries)
    files = {
        "transformer": dit_weights.files,
        "vae": vae_weights.files,
        "text_encoder": text_weight_files(folder),
    }
    return LoadedFlowRVS(pipeline, files, folder)


def resolve_wan_folder(wan_path: str, skip_transformer: bool = False, skip_vae: bool = False) -> Path:
    """Returns the local folder of ``wan_path``; downloads it if it is a hub id.

    Args:
        skip_transformer, skip_vae: do not download the weights of this network.

    Raises:
        UserError: if there is no such folder and it cannot be downloaded, or a network is missing in it. The message
            names the command that downloads or makes it.
    """
    folder = Path(wan_path)
    if not folder.exists():
        skipped = [network for network, skip in (("transformer", skip_transformer), ("vae", skip_vae)) if skip]
        folder = download_wan_folder(wan_path, NETWORKS, skipped)
    if not folder.is_dir():
        raise UserError(f"--wan_path {wan_path}: must be a folder or a hub id, got a file")
    needed = (
        ["model_index.json"]
        + [f"{network}/config.json" for network in NETWORKS if network != "tokenizer"]
        + ["tokenizer"]
    )
    missing = [name for name in needed if not (folder / name).exists()]
    if missing:
        raise MissingFileError(
            f"--wan_path {wan_path}: not a Wan2.1-T2V-*-Diffusers folder, {', '.join(missing)} missing; "
            f"{how_to_get(wan_path)}"
        )
    return folder


def _component_weights(
    folder: Path, network: str, ckpt: str | None, flag: str, weights: str
) -> tuple[StateDict, dict[str, Any]]:
    """Returns the state dict and config of one network: from the checkpoint if one is given, else from the folder."""
    config = read_json(folder / network / "config.json")
    if ckpt is None:
        return read_saved_folder(folder / network, f"--wan_path {folder}"), config
    path, source = local_weights(ckpt, network, flag), f"{flag} {ckpt}"
    if not path.is_dir():
        return read_state_dict(path, source, weights), config
    saved, own_config = read_saved_network(
        _network_folder(latest_checkpoint(path) or path, network, source, weights), source
    )
    return saved, own_config or config


def read_saved_network(folder: Path, source: str) -> tuple[StateDict, dict[str, Any]]:
    """Reads the tensors and the config of a saved network; the config is empty if the folder has none.

    Inference, ``--init_from`` and exports all read trained networks here.

    Args:
        source: argument and folder, for errors.

    Raises:
        UserError: if files are missing or damaged.
    """
    file = folder / "config.json"  # latent statistics and numbers of heads cannot be read from shapes
    config = read_json(file) if file.is_file() else {}
    if (folder / ADAPTER_NAME).is_file():
        base = config.pop(BASE_ENTRY, None)
        config.pop(RANK_ENTRY, None)
        return _read_adapted(folder, base, source), config
    return read_saved_folder(folder, source), config


def _read_adapted(folder: Path, base: str | None, source: str) -> StateDict:
    """Reads low-rank adapters and merges them into the weights that they were trained on."""
    if not base or not Path(base).exists():
        raise MissingFileError(f"{source}: holds an adapter of {base}, which does not exist; restore it")
    place = Path(base)
    below = (
        read_saved_network(place, f"{source}: its base {base}")[0] if place.is_dir() else read_state_dict(place, base)
    )
    adapter = folder / ADAPTER_NAME
    tensors = merge_adapter(below.tensors, read_safetensors(adapter, source), source)
    return StateDict(tensors, (adapter, *below.files), source)


def _network_folder(path: Path, network: str, source: str, weights: str) -> Path:
    """Finds the weights of a network in a saved pipeline, a training checkpoint, or a folder of the network itself."""
    ema = path / ema_name(network)
    if ema.is_dir() and weights != "model":
        return ema
    if weights == "ema":
        raise MissingFileError(f"{source}: no {ema.name} folder in it; use --weights auto or model")
    for candidate in (path / network, path):
        if find_saved(candidate) or (candidate / ADAPTER_NAME).is_file():
            return candidate
    raise MissingFileError(
        f"{source}: neither it nor a '{network}' folder in it holds {SAFETENSORS_NAME} or its index; "
        "give a saved pipeline, a checkpoint folder or a weight file"
    )


def load_dit(config: dict[str, Any], weights: StateDict, dtype: torch.dtype) -> WanTransformer3DModel:
    """Builds a DiT of ``config`` with these weights, with direct video injection if the weights have it."""
    config = dit.config_for_weights(config, weights.tensors, weights.source)
    return _build_strictly(WanTransformer3DModel, config, weights.tensors, weights.source, dtype)


def load_vae(config: dict[str, Any], weights: StateDict, dtype: torch.dtype) -> AutoencoderKLWan:
    """Builds a VAE of ``config`` with these weights, with their number of output channels."""
    tensors = weights.tensors
    if all(name.startswith(VAE_PREFIX) for name in tensors):
        tensors = {name.removeprefix(VAE_PREFIX): value for name, value in tensors.items()}
    config = mask_vae.config_for_weights(config, tensors, weights.source)
    return _build_strictly(AutoencoderKLWan, config, tensors, weights.source, dtype)


def _build_strictly(
    model_class: type[Model], config: dict[str, Any], tensors: dict[str, Tensor], source: str, dtype: torch.dtype
) -> Model:
    """Builds a model of ``config`` that holds exactly ``tensors``."""
    try:
        with init_empty_weights(include_buffers=False):  # rotary tables are buffers, not weights: they must hold values
            model = model_class.from_config(config)
    except Exception as error:
        raise UserError(
            f"{source}: config.json does not describe a {model_class.__name__} ({error}); download it again"
        ) from None
    expected = model.state_dict()
    problems = {
        "missing": [name for name in expected if name not in tensors],
        "unexpected": [name for name in tensors if name not in expected],
        "mis-shaped": [
            f"{name} {list(tensors[name].shape)} instead of {list(expected[name].shape)}"
            for name in expected
            if name in tensors and tensors[name].shape != expected[name].shape
        ],
    }
    if any(problems.values()):
        listing = "; ".join(f"{len(keys)} {kind}: {_first(keys)}" for kind, keys in problems.items() if keys)
        raise UserError(
            f"{source}: does not fit the {model_class.__name__} of the folder. {listing}. Use weights of that model"
        )
    kept = set(model._keep_in_fp32_modules or [])
    try:
        typed = {
            # As the library does, unlike .to(bfloat16): norms, time embedding and modulation stay float32.
            name: tensor.to(torch.float32 if kept & set(name.split(".")) else dtype)
            for name, tensor in tensors.items()
        }
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise too_little_to_load(error, source) from None
    model.load_state_dict(typed, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def _first(keys: list[str]) -> str:
    more = len(keys) - MAX_LISTED_KEYS
    return ", ".join(keys[:MAX_LISTED_KEYS]) + (f" and {more} more" if more > 0 else "")


def load_text(folder: Path, dtype: torch.dtype) -> tuple[UMT5EncoderModel, PreTrainedTokenizerBase]:
    """Loads text encoder and tokenizer of a folder from ``resolve_wan_folder``, on the CPU.

    Raises:
        UserError: if they are missing or damaged.
    """
    source = f"--wan_path {folder}: text_encoder"
    if not any((folder / "tokenizer" / name).is_file() for name in ("tokenizer.json", "spiece.model")):
        raise MissingFileError(f"--wan_path {folder}: tokenizer/tokenizer.json is missing; download the folder again")
    saved = find_saved(folder / "text_encoder")
    if saved is None:
        raise MissingFileError(f"{source}: holds no model.safetensors; {how_to_get(str(folder))}")
    files_of(saved, source)
    try:
        encoder, info = UMT5EncoderModel.from_pretrained(
            folder / "text_encoder", dtype=dtype, output_loading_info=True, local_files_only=True,
            use_safetensors=saved.is_safe, variant=saved.variant or None,
        )  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except Exception as error:
        reason = f"it or the tokenizer is damaged or incomplete ({type(error).__name__}: {str(error)[:200]})"
        raise unreadable(error, source, reason, how_to_get(str(folder))) from None
    absent = sorted([*info["missing_keys"], *map(str, info["mismatched_keys"])])
    if absent:
        raise UserError(f"{source}: missing or of another shape: {_first(absent)}; download it again")
    return encoder.eval().requires_grad_(False), tokenizer


if __name__ == "__main__":
    # The command of earlier versions, ``python -m models.weights export``.
    sys.argv = [sys.argv[0], *sys.argv[2:]] if sys.argv[1:2] == ["export"] else sys.argv
    print("python -m models.weights export is now python -m models.export", file=sys.stderr)
    runpy.run_module("models.export", run_name="__main__", alter_sys=True)
