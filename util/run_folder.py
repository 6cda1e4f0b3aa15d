"""Names in a run folder, and how to find weights in it.

options.json                 resolved options, command, library versions, and what the weight flags named
step_<n>/<network>           raw weights of a step as the library saves them; <network> is transformer or vae
step_<n>/<network>_ema       their EMA weights
latest                       the name of the newest step
best/<network>               the EMA weights with the best validation; best/metrics.json has their step
validation.jsonl             one line of scores per validation, always of EMA weights
"""

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from util.errors import MissingFileError, UserError, did_you_mean
from util.files import read_json, read_text

logger = logging.getLogger(__name__)

LATEST, BEST = "latest", "best"
OPTIONS_FILE = "options.json"
BEST_FILE = "metrics.json"
VALIDATION_FILE = "validation.jsonl"
TRAINABLE_NETWORKS = ("transformer", "vae")


@dataclass(frozen=True)
class TrainedWeights:
    """Weights that a run saved, and what it recorded about them.

    Attributes:
        folder: where the library saved the network.
        network: which network: ``transformer`` or ``vae``.
        checkpoint: ``best`` or ``step_<n>``.
        step: number of training steps.
        is_ema: EMA weights, or raw weights.
        scores: of the validation of these weights, in [0, 1]; empty if there was none.
        options: resolved options of ``main.py``.
        libraries: versions by name.
    """

    folder: Path
    network: str
    checkpoint: str
    step: int
    is_ema: bool
    scores: dict[str, float]
    options: dict[str, Any]
    libraries: dict[str, str]


def checkpoint_name(step: int) -> str:
    """Returns the folder name of a step."""
    return f"step_{step:07d}"


def ema_name(network: str) -> str:
    """Returns the folder name of a network's EMA weights."""
    return f"{network}_ema"


def checkpoints(run_dir: Path) -> list[Path]:
    """Returns the folders of all steps, oldest first."""
    return sorted((place for place in run_dir.glob("step_*") if _is_checkpoint(place)), key=_step_of)


def latest_checkpoint(run_dir: Path) -> Path | None:
    """Returns the checkpoint that ``latest`` names; None if the run has saved none.

    Raises:
        UserError: if ``latest`` names a folder that does not exist.
    """
    file = run_dir / LATEST
    if not file.is_file():
        return None
    name = read_text(file, errors="replace").strip()
    place = run_dir / name
    if not _is_checkpoint(place):
        raise MissingFileError(f"{file}: names {name!r}, which does not exist; name a checkpoint of the run instead")
    return place


def find_trained(run_dir: Path, checkpoint: str = LATEST, is_ema: bool = True) -> TrainedWeights:
    """Finds the weights that ``--run``, ``--checkpoint`` and ``--weights`` name.

    Args:
        checkpoint: ``latest``, ``best`` or ``step_<n>``.
        is_ema: EMA weights, or raw weights.

    Raises:
        UserError: if the folder is not a run, or lacks the checkpoint or these weights.
    """
    if not (run_dir / OPTIONS_FILE).is_file():
        raise MissingFileError(f"--run {run_dir}: no {OPTIONS_FILE} in it; give the --output_dir of a run of main.py")
    origin = read_json(run_dir / OPTIONS_FILE)
    options, libraries = origin.get("options"), origin.get("libraries")
    if not (isinstance(options, dict) and isinstance(libraries, dict)):
        raise UserError(
            f"--run {run_dir}: {OPTIONS_FILE} was not written by main.py; give the --output_dir of a run of it"
        )
    place = _find_place(run_dir, checkpoint)
    network, folder = _weights_in(place, is_ema)
    step = _best_step(place) if place.name == BEST else _step_of(place)
    scores = _scores_of(run_dir / VALIDATION_FILE, step) if is_ema else {}
    return TrainedWeights(folder, network, place.name, step, is_ema, scores, options, libraries)


def _is_checkpoint(place: Path) -> bool:
    return re.fullmatch(r"step_\d+", place.name) is not None and place.is_dir()


def _step_of(place: Path) -> int:
    return int(place.name.removeprefix("step_"))


def _find_place(run_dir: Path, checkpoint: str) -> Path:
    if checkpoint == LATEST:
        latest = latest_checkpoint(run_dir)
        if latest is None:
            raise MissingFileError(f"--run {run_dir}: holds no checkpoint yet; train on, or give another run")
        return latest
    known = [LATEST, *(place.name for place in (*checkpoints(run_dir), run_dir / BEST) if place.is_dir())]
    if checkpoint not in known:
        raise UserError(f"--checkpoint {checkpoint}: the run has {', '.join(known)}{did_you_mean(checkpoint, known)}")
    return run_dir / checkpoint


def _weights_in(place: Path, is_ema: bool) -> tuple[str, Path]:
    """Returns the network that a checkpoint holds, and the folder of the weights."""
    if place.name == BEST and not is_ema:
        raise UserError(f"--weights model: {BEST} has only EMA weights; use --weights ema, or name a step")
    for network in TRAINABLE_NETWORKS:
        folder = place / (ema_name(network) if is_ema and place.name != BEST else network)
        if folder.is_dir():
            return network, folder
    raise MissingFileError(f"{place}: holds no {'EMA' if is_ema else 'raw'} weights; name another checkpoint")


def _best_step(place: Path) -> int:
    step = read_json(place / BEST_FILE).get("step")
    if not isinstance(step, int):
        raise UserError(f"{place / BEST_FILE}: holds no step; name a step with --checkpoint")
    return step


def _scores_of(file: Path, step: int) -> dict[str, float]:
    """Returns the last scores of a step; skips lines that a killed run left incomplete."""
    scores: dict[str, float] = {}
    for text in read_text(file).splitlines() if file.is_file() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            logger.warning("%s: skipped a damaged line: %.40s", file, text)
            continue
        if line.pop("step") == step:
            scores = line
    return scores
