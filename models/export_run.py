"""Exports of a training run: a pipeline folder with a model card, or the original's weight file."""

from pathlib import Path
from typing import Any

import torch
import yaml

from models.objectives import FLOW, OBJECTIVE_ENTRY
from models.weights import VAE_PREFIX, load_dit, load_flowrvs, load_vae, read_saved_network
from util.errors import MissingFileError, UserError
from util.files import new_folders
from util.flags import DEFAULT_WAN_PATH
from util.run_folder import TrainedWeights
from util.run_sources import recorded_source

REFERENCE_SUFFIX = ".pth"

CARD = """---
library_name: flowrvs
tags:
- flowrvs
- referring-video-object-segmentation
- video-segmentation
---

# {name}

A FlowRVS pipeline: frames of a video and sentences in, one mask per frame and sentence out. A Wan2.1 video diffusion
transformer deforms the latents of the video into those of the mask
([arXiv 2510.06139](https://arxiv.org/abs/2510.06139)).

| network | from |
|---|---|
{origins}

Stored as {dtype}, except what the library keeps in float32. The transformer's objective is `{objective}`.

## How to use it

In the folder of FlowRVS's code:

```python
import numpy as np
from models.flowrvs import FlowRVS
pipeline = FlowRVS.from_pretrained("{name}")
frames = np.zeros((17, 480, 832, 3), np.uint8)  # [T, H, W, 3] RGB
masks = pipeline(frames, ["the dog on the left"]).masks  # [1, T, H, W] bool
```

or `python inference_demo.py --wan_path {name} --input_path video.mp4 --text_prompts "the dog on the left"`.

## Scores

{scores}

## Training

{weights}. Its resolved options; absolute paths are shortened to their last component:

```yaml
{options}```

Libraries: {libraries}.

## Licence

The header names none: whoever publishes these weights chooses it, within the terms of what they were made from. The
weights of Wan2.1 are under Apache-2.0; datasets have terms of their own, those of MeViS (CC BY-NC-SA 4.0) exclude
commercial use.
"""


def export_pipeline(
    trained: TrainedWeights,
    out: Path,
    wan_path: str | None = None,
    vae_ckpt: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes the folder ``out`` with all networks of a ``FlowRVS`` and a model card; whole or not at all.

    Args:
        wan_path, vae_ckpt: where the networks come from that the run did not train; by default from where the run had
            them.
        dtype: number format of the weights; modules that the library keeps in float32 stay so.

    Raises:
        UserError: if ``out`` exists or cannot be written, or networks are missing, damaged or do not fit each other.
    """
    if out.suffix == REFERENCE_SUFFIX:
        raise UserError(
            f"--out {out}: --format pipeline writes a folder; use another name, or --format reference for a file"
        )
    if trained.network == "vae" and vae_ckpt is not None:
        raise UserError("--vae_ckpt: the run trained the VAE, which is exported; leave the flag out")
    sources = _sources(trained, wan_path, vae_ckpt)
    with new_folders(out.parent, [out.name]) as staging:
        pipeline = load_flowrvs(**sources, dtype=dtype).pipeline
        if pipeline.config.objective != FLOW:  # so that the folder also works as --dit_ckpt
            pipeline.transformer.register_to_config(**{OBJECTIVE_ENTRY: pipeline.config.objective})
        folder = staging / out.name
        pipeline.save_pretrained(folder)
        card = model_card(trained, out.name, sources, pipeline.config.objective, dtype)
        (folder / "README.md").write_text(card, encoding="utf-8")


def _sources(trained: TrainedWeights, wan_path: str | None, vae_ckpt: str | None) -> dict[str, Any]:
    """Returns the arguments for ``load_flowrvs``: those of the run, replaced by those given and by what it trained."""
    run = trained.folder.parents[1]
    wan_path = wan_path or recorded_source(run, "wan_path") or DEFAULT_WAN_PATH
    if trained.network == "vae":  # --weights of the run chose among those of its --dit_ckpt
        return {
            "wan_path": wan_path, "dit_ckpt": recorded_source(run, "dit_ckpt"), "vae_ckpt": str(trained.folder),
            "weights": trained.options.get("weights", "auto"),
        }  # fmt: skip
    vae_ckpt = vae_ckpt or recorded_source(run, "vae_ckpt")
    return {"wan_path": wan_path, "dit_ckpt": str(trained.folder), "vae_ckpt": vae_ckpt}


def export_reference(trained: TrainedWeights, out: Path, dtype: torch.dtype = torch.float32) -> None:
    """Writes a file in the original's format: ``{"model": state dict}`` of the DiT, or of the VAE with ``vae.`` names.

    Args:
        dtype: see ``export_pipeline``.

    Raises:
        UserError: if ``out`` exists or cannot be written, the weights are damaged or incomplete, or the DiT was
            trained
            with another objective than flow, which the format cannot express.
    """
    if out.suffix != REFERENCE_SUFFIX:
        raise UserError(f"--out {out}: --format reference writes one file; its name must end in {REFERENCE_SUFFIX}")
    weights, config = read_saved_network(trained.folder, f"--run {trained.folder}")
    if not config:
        raise MissingFileError(f"--run {trained.folder}: config.json is missing; name another checkpoint")
    objective = config.get(OBJECTIVE_ENTRY, FLOW)
    if objective != FLOW:
        raise UserError(
            f"--format reference: cannot express objective {objective}; the file would be read as {FLOW}; "
            "use --format pipeline"
        )
    load, prefix = (load_vae, VAE_PREFIX) if trained.network == "vae" else (load_dit, "")
    with new_folders(out.parent, [out.name]) as staging:
        network = load(config, weights, dtype)
        model = {prefix + name: tensor for name, tensor in network.state_dict().items()}
        torch.save({"model": model}, staging / out.name)


def model_card(trained: TrainedWeights, name: str, sources: dict[str, Any], objective: str, dtype: torch.dtype) -> str:
    """Returns the text of the model card, with a YAML header as model hubs read it.

    Args:
        name: name of the exported folder.
        sources: the arguments that ``load_flowrvs`` got.
        objective: what the DiT predicts; see ``models.objectives``.
        dtype: number format of the weights.
    """
    kind = "EMA" if trained.is_ema else "raw"
    weights = f"The {kind} weights after step {trained.step}"
    wan = sources["wan_path"]
    origins = {
        "transformer": sources["dit_ckpt"] or wan,
        "vae": sources["vae_ckpt"] or wan,
        "text_encoder, tokenizer": wan,
    }
    rows = {network: f"`{_without_folders(path)}`" for network, path in origins.items()}
    rows[trained.network] = f"training, see below: {kind} weights after step {trained.step}"
    options = {option: _without_folders(value) for option, value in trained.options.items()}
    return CARD.format(
        name=name,
        origins="\n".join(f"| {network} | {origin} |" for network, origin in rows.items()),
        dtype=str(dtype).removeprefix("torch."),
        objective=objective,
        scores=_scores(trained),
        weights=weights,
        options=yaml.safe_dump(options, sort_keys=False, allow_unicode=True),
        libraries=", ".join(f"{library} {version}" for library, version in trained.libraries.items()),
    )


def _scores(trained: TrainedWeights) -> str:
    if not trained.scores:
        return "None: the run validated no such weights."
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in trained.scores.items())
    return (
        f"From the run's own validation at step {trained.step}, in [0, 1], with the other networks that the run was "
        "given. The validation uses some videos of a split to watch the training: it is not a benchmark result.\n\n"
        f"| score | value |\n|---|---|\n{rows}"
    )


def _without_folders(value: Any) -> Any:
    """Returns the last part of an absolute path: folders of this machine may name its user."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
