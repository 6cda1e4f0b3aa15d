"""The README.md of an exported folder: what the weights are and how they came about, as their run recorded it."""

from pathlib import Path
from typing import Any

import torch
import yaml

from util.run_folder import TrainedWeights

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

| part | from |
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

{weights}. Its options, resolved; of an absolute path only the last part is shown:

```yaml
{options}```

Libraries: {libraries}.

## Licence

The header names none: whoever publishes these weights chooses it, within the terms of what they were made from. The
weights of Wan2.1 are under Apache-2.0; datasets have terms of their own, those of MeViS (CC BY-NC-SA 4.0) exclude
commercial use.
"""


def model_card(trained: TrainedWeights, name: str, sources: dict[str, Any], objective: str, dtype: torch.dtype) -> str:
    """The card's text, with a YAML header as model hubs read it.

    Args:
        name: of the exported folder.
        sources: its ``wan_path``, ``dit_ckpt`` and ``vae_ckpt``, as ``load_flowrvs`` took them.
        objective: what the DiT predicts; see ``models.objectives``.
        dtype: of the weights.
    """
    kind = "averaged (EMA)" if trained.averaged else "raw"
    weights = f"The {kind} weights after step {trained.step}"
    wan = sources["wan_path"]
    origins = {
        "transformer": sources["dit_ckpt"] or wan,
        "vae": sources["vae_ckpt"] or wan,
        "text_encoder, tokenizer": wan,
    }
    rows = {part: f"`{_without_folders(path)}`" for part, path in origins.items()}
    rows[trained.part] = f"training, see below: {kind} weights after step {trained.step}"
    options = {option: _without_folders(value) for option, value in trained.options.items()}
    return CARD.format(
        name=name,
        origins="\n".join(f"| {part} | {origin} |" for part, origin in rows.items()),
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
        f"From the run's own validation at step {trained.step}, in [0, 1], beside the other parts that the run was "
        "given. Such a validation follows the training on a part of a split: it is no benchmark result.\n\n"
        f"| score | value |\n|---|---|\n{rows}"
    )


def _without_folders(value: Any) -> Any:
    """Of an absolute path the last part: the folders of a machine mean nothing elsewhere, and may name its user."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
