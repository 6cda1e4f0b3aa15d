"""What a training run leaves in its folder: the names it is written by, and how to find weights in it again.

options.json                 resolved options, command, library versions
step_<n>/<part>              weights of a step as the library saves them; <part> is transformer or vae
step_<n>/<part>_ema          their running average
latest                       the name of the newest step
best/<part>                  the averaged weights that validated best; best/metrics.json has their step
validation.jsonl             one line of scores per validation, always of averaged weights
"""

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from util.errors import MissingFileError, UserError, did_you_mean
from util.files import read_json

logger = logging.getLogger(__name__)

LATEST, BEST = "latest", "best"
OPTIONS_FILE = "options.json"
BEST_FILE = "metrics.json"
VALIDATION_FILE = "validation.jsonl"
TRAINABLE_PARTS = ("transformer", "vae")


@dataclass(frozen=True)
class TrainedWeights:
    """Weights that a run saved, and what it recorded about them.

    Attributes:
        folder: where the library saved the network.
        part: which network: ``transformer`` or ``vae``.
        checkpoint: ``best`` or ``step_<n>``.
        step: training steps done.
        averaged: the running average, or the raw weights.
        scores: of the run's own validation of these weights, in [0, 1]; empty where there was none.
        options: of ``main.py``, resolved.
        libraries: versions by name.
    """

    folder: Path
    part: str
    checkpoint: str
    step: int
    averaged: bool
    scores: dict[str, float]
    options: dict[str, Any]
    libraries: dict[str, str]


def checkpoint_name(step: int) -> str:
    """The folder of a step."""
    return f"step_{step:07d}"


def averaged_name(part: str) -> str:
    """The folder of a network's running average."""
    return f"{part}_ema"


def checkpoints(run_dir: Path) -> list[Path]:
    """The folders of all steps, the oldest first."""
    return sorted((place for place in run_dir.glob("step_*") if _is_checkpoint(place)), key=_step_of)


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The newest step, by the run's own word; None where no run has saved one.

    Raises:
        UserError: if ``latest`` names a folder that is not there.
    """
    file = run_dir / LATEST
    if not file.is_file():
        return None
    name = file.read_text(encoding="utf-8", errors="replace").strip()
    place = run_dir / name
    if not _is_checkpoint(place):
        raise MissingFileError(f"{file}: names {name!r}, which is not there; name a checkpoint of the run instead")
    return place


def find_trained(run_dir: Path, checkpoint: str = LATEST, averaged: bool = True) -> TrainedWeights:
    """The weights that ``--run``, ``--checkpoint`` and ``--weights`` mean.

    Args:
        checkpoint: ``latest``, ``best`` or ``step_<n>``.
        averaged: the running average, or the raw weights.

    Raises:
        UserError: if the folder is no run, or has no such checkpoint, or not these weights of it.
    """
    if not (run_dir / OPTIONS_FILE).is_file():
        raise MissingFileError(f"--run {run_dir}: no {OPTIONS_FILE} in it; give the --output_dir of a run of main.py")
    origin = read_json(run_dir / OPTIONS_FILE)
    options, libraries = origin.get("options"), origin.get("libraries")
    if not (isinstance(options, dict) and isinstance(libraries, dict)):
        raise UserError(f"--run {run_dir}: {OPTIONS_FILE} is none of main.py's; give the --output_dir of a run of it")
    place = _find_place(run_dir, checkpoint)
    part, folder = _weights_in(place, averaged)
    step = _best_step(place) if place.name == BEST else _step_of(place)
    scores = _scores_of(run_dir / VALIDATION_FILE, step) if averaged else {}
    return TrainedWeights(folder, part, place.name, step, averaged, scores, options, libraries)


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


def _weights_in(place: Path, averaged: bool) -> tuple[str, Path]:
    """Which network a checkpoint holds, and the folder of the weights asked for."""
    if place.name == BEST and not averaged:
        raise UserError(f"--weights model: {BEST} has averaged weights alone; use --weights ema, or name a step")
    for part in TRAINABLE_PARTS:
        folder = place / (averaged_name(part) if averaged and place.name != BEST else part)
        if folder.is_dir():
            return part, folder
    raise MissingFileError(f"{place}: holds no {'averaged' if averaged else 'raw'} weights; name another checkpoint")


def _best_step(place: Path) -> int:
    step = read_json(place / BEST_FILE).get("step")
    if not isinstance(step, int):
        raise UserError(f"{place / BEST_FILE}: names no step; export a step by its name")
    return step


def _scores_of(file: Path, step: int) -> dict[str, float]:
    """The last scores of a step; lines that a killed run left half written are passed over."""
    scores: dict[str, float] = {}
    for text in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            logger.warning("%s: passed over a damaged line: %.40s", file, text)
            continue
        if line.pop("step") == step:
            scores = line
    return scores
