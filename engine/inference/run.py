"""Runs the inference on a benchmark: from the flags of ``inference_*.py`` to masks and metrics."""

import argparse
import contextlib
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import PartialState

from datasets.readers.davis import RefDAVIS17
from datasets.readers.ytvos import RefYouTubeVOS
from datasets.registry import DatasetPaths, open_split
from datasets.split import Split, with_videos
from engine.captions import embed_once
from engine.identity import model_identity
from engine.inference.results_folder import ResultsFolder
from engine.inference.segment_split import segment_split
from engine.segment_options import SegmentOptions, make_ready
from models.weights import LoadedFlowRVS, load_flowrvs
from util.device import select_device, select_dtype
from util.hashes import hash_of
from util.workers import num_cores

LONGEST_WAIT = timedelta(hours=6)  # a process waits this long for the last videos of the others
MOST_WORKERS = 4
DAVIS_REMARK = (
    "Any scores above are of single expressions (protocol C); the published protocol scores anno_0 to anno_3: "
    "python evaluate.py --dataset davis"
)


def run(options: argparse.Namespace, dataset: str) -> None:
    """Segments a split, scores it if it has ground truth, and prints where the results are.

    Args:
        options: the flags of an ``inference_*.py``.
        dataset: its name in ``datasets.registry``.

    Raises:
        UserError: if data or weights are missing or damaged, or the folder holds another run.
    """
    split = open_split(dataset, options.split, DatasetPaths.from_flags(options))
    device = select_device(options.device)
    dtype = select_dtype(options.dtype, device)
    state = PartialState(cpu=device.type == "cpu", timeout=LONGEST_WAIT)
    if options.device in ("auto", "cuda"):  # each process has a GPU of its own
        device = state.device
    split = with_videos(split, options.limit, options.videos)
    loaded = load_flowrvs(options.wan_path, options.dit_ckpt, options.vae_ckpt, options.weights, dtype, text=False)
    how = SegmentOptions.from_flags(options)
    folder = ResultsFolder(Path(options.output_dir))
    with folder.alone() if state.is_main_process else contextlib.nullcontext():
        if state.is_main_process:
            identity = run_identity(f"{dataset} {options.split}", split, loaded, options.weights, how)
            where = {"device": device.type, "dtype": str(dtype).removeprefix("torch."), "compile": options.compile}
            folder.begin(identity | where, options.overwrite)
        state.wait_for_everyone()
        captions = embed_once(
            (expression.caption for expression in split.expressions),
            loaded, Path(options.text_cache or folder.captions), device, dtype,
        )  # fmt: skip
        workers = options.num_workers or min(MOST_WORKERS, max(1, num_cores() // state.num_processes))
        pipeline = loaded.pipeline.to(device)
        make_ready(pipeline, options.compile)
        merge = isinstance(split, RefDAVIS17)
        metrics = segment_split(pipeline, split, captions, folder, how, state, num_workers=workers, merge=merge)
    if state.is_main_process:
        _report(folder, metrics)
        if isinstance(split, RefDAVIS17):
            print(DAVIS_REMARK)
        if isinstance(split, RefYouTubeVOS):
            print(f"Videos of the split: {split.selection}")


def run_identity(
    name: str, split: Split, loaded: LoadedFlowRVS, weights: str, options: SegmentOptions
) -> dict[str, Any]:
    """Returns everything that the masks of a run depend on, as JSON values.

    Args:
        name: of dataset and split.
        weights: the value of ``--weights``.
    """
    return {
        "dataset": {
            "name": name,
            "videos": len({expression.video for expression in split.expressions}),
            "expressions": len(split.expressions),
            "content": hash_of([asdict(expression) for expression in split.expressions]),
            "has_masks": split.has_masks,
        },
        "options": asdict(options),
    } | model_identity(loaded, weights)


def _report(folder: ResultsFolder, metrics: dict[str, Any] | None) -> None:
    for kind, means in {**metrics.get("kinds", {}), "all": metrics}.items() if metrics else ():
        print(f"{kind:10s} J {means['J']:.4f}  F {means['F']:.4f}  J&F {means['J&F']:.4f}")
    print(f"Wrote {folder.annotations}" + (f" and {folder.path}/metrics.json" if metrics else ""))
