"""Check a dataset on disk before a run meets its faults.

python -m datasets.check --dataset_file mevis --mevis_path DIR --split train --output report.json
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from datasets.annotations import DuplicateKeyError
from datasets.check.report import ERRORS, Finding, SplitReport, summary
from datasets.check.videos import check_content
from datasets.registry import (
    CHECKED,
    DATASETS,
    DatasetPaths,
    Faults,
    add_dataset_flags,
    open_split,
    present_splits,
    split_name,
)
from util.errors import MissingFileError, UserError, exit_on_user_error
from util.files import write_text_whole
from util.options import OptionParser

PROGRAM = "python -m datasets.check"


def build_parser() -> OptionParser:
    parser = OptionParser(
        prog=PROGRAM,
        description="Check a dataset: annotation files, sentences, every frame and every mask. All that is wrong is "
        "listed. What was damaged within a JPEG and still decodes is not found.",
        epilog="Exit code 0: no errors, perhaps warnings; 1: errors; 2: a wrong command line.",
    )
    parser.add_argument("--dataset_file", required=True, choices=CHECKED, help="which dataset")
    parser.add_argument("--split", metavar="SPLIT", help="which split; by default all that are there")
    parser.add_argument("--output", metavar="FILE", help="gets every finding as JSON; by default none is written")
    add_dataset_flags(parser, CHECKED)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = build_parser()
    options = parser.parse_args(arguments)
    name = options.dataset_file
    try:
        split = split_name(name, options.split) if options.split else None
    except UserError as error:
        parser.error(str(error))
    output = Path(options.output) if options.output else None
    with exit_on_user_error(PROGRAM):
        if output is not None and (output.is_dir() or not output.parent.is_dir()):  # checked before hours of work
            raise UserError(f"--output {output}: must be a file in a folder that exists; give another")
        paths = DatasetPaths.from_flags(options)
        reports = {split: check_split(name, split, paths) for split in present_splits(name, split, paths)}
        print(summary(name, reports))
        if output is not None:
            splits = {split: report.as_json() for split, report in reports.items()}
            content = {"dataset": name, "splits": splits}
            write_text_whole(output, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
            print(f"Wrote {output}")
    if any(report.graded(ERRORS) for report in reports.values()):
        sys.exit(1)


def check_split(name: str, split: str, paths: DatasetPaths) -> SplitReport:
    """Finds everything that is wrong with a split; annotations that its reader refuses as a whole are one finding."""
    report = SplitReport()
    faults: Faults = []
    try:
        reader = open_split(name, split, paths, faults)
    except UserError as error:
        reader = None
        faults.append(error)
    flag = DATASETS[name].path_flag
    refusals = [_refusal(fault, f"--{flag}_path {paths.folders[flag]}") for fault in faults]
    report.findings += dict.fromkeys(refusals)  # the samples of one clip report the same fault
    if reader is not None:
        check_content(reader, split, report)
    return report


def _refusal(error: UserError, origin: str) -> Finding:
    """Converts an error of a reader to a finding; the error begins with the place."""
    if isinstance(error, MissingFileError):
        file, verb, advice = str(error).removeprefix(f"{origin}: ").partition(" is missing")
        return Finding("missing file", file, (verb + advice).lstrip())
    place, _, message = str(error).partition(": ")
    kind = "duplicate key" if isinstance(error, DuplicateKeyError) else "malformed"
    return Finding(kind, place, message) if message else Finding(kind, origin, place)


if __name__ == "__main__":
    main()
