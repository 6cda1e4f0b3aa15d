"""Finds what is wrong with a dataset on disk before a run trips over it.

python -m datasets.check --dataset_file mevis --mevis_path DIR --split train --output report.json
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from datasets.annotations import DuplicateKeyError
from datasets.check.report import ERRORS, Finding, SplitReport, summary
from datasets.check.videos import check_content
from datasets.check_layouts import LAYOUTS, Faults, Layout
from datasets.registry import DatasetPaths
from util.errors import MissingFileError, UserError, exit_on_user_error
from util.files import write_text_whole
from util.flags import add_dataset_flags
from util.options import OptionParser

PROGRAM = "python -m datasets.check"


def build_parser() -> OptionParser:
    parser = OptionParser(
        prog=PROGRAM,
        description="Check a dataset: annotation files, sentences, every frame and every mask. All that is wrong is "
        "listed. What was damaged within a JPEG and still decodes is not found.",
        epilog="Exit code 0: no errors, perhaps warnings; 1: errors; 2: a wrong command line.",
    )
    parser.add_argument("--dataset_file", required=True, choices=LAYOUTS, help="which dataset")
    parser.add_argument("--split", metavar="SPLIT", help="which split; by default all that are there")
    parser.add_argument("--output", metavar="FILE", help="gets every finding as JSON; by default none is written")
    add_dataset_flags(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = build_parser()
    options = parser.parse_args(arguments)
    layout = LAYOUTS[options.dataset_file]
    if options.split is not None and options.split not in layout.splits:
        parser.error(f"--split {options.split}: {options.dataset_file} has {', '.join(layout.splits)}")
    output = Path(options.output) if options.output else None
    with exit_on_user_error(PROGRAM):
        if output is not None and (output.is_dir() or not output.parent.is_dir()):  # before hours of work
            raise UserError(f"--output {output}: must be a file in a folder that exists; give another")
        paths = DatasetPaths.from_flags(options)
        reports = {split: check_split(layout, paths, split) for split in layout.present_splits(paths, options.split)}
        print(summary(options.dataset_file, reports))
        if output is not None:
            splits = {split: report.as_json() for split, report in reports.items()}
            content = {"dataset": options.dataset_file, "splits": splits}
            write_text_whole(output, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
            print(f"Wrote {output}")
    if any(report.graded(ERRORS) for report in reports.values()):
        sys.exit(1)


def check_split(layout: Layout, paths: DatasetPaths, split: str) -> SplitReport:
    """Everything that is wrong with a split; annotations that its reader refuses as a whole are one finding."""
    report = SplitReport()
    faults: Faults = []
    try:
        reader = layout.read(paths, split, faults)
    except UserError as error:
        reader = None
        faults.append(error)
    root = getattr(paths, layout.folder)
    refusals = [_refusal(fault, f"--{layout.folder}_path {root}") for fault in faults]
    report.findings += dict.fromkeys(refusals)  # a clip is asked for by each of its samples
    if reader is not None:
        check_content(reader, split, report)
    return report


def _refusal(error: UserError, origin: str) -> Finding:
    """What a reader refused; its messages begin with the place."""
    if isinstance(error, MissingFileError):
        file, verb, advice = str(error).removeprefix(f"{origin}: ").partition(" is missing")
        return Finding("missing file", file, (verb + advice).lstrip())
    place, _, message = str(error).partition(": ")
    kind = "duplicate key" if isinstance(error, DuplicateKeyError) else "malformed"
    return Finding(kind, place, message) if message else Finding(kind, origin, place)


if __name__ == "__main__":
    main()
