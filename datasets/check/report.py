"""The findings of the dataset checker, as text and as JSON."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

ERRORS, WARNINGS, NOTES = "errors", "warnings", "notes"

# Every kind of finding and its severity, in the order of the summary.
KINDS = {
    "missing file": ERRORS,  # an annotation file, or a clip of A2D
    "malformed": ERRORS,  # invalid JSON, or an entry that the reader refuses
    "duplicate key": ERRORS,
    "empty expression": ERRORS,
    "missing frame": ERRORS,
    "broken frame": ERRORS,
    "frame size": ERRORS,
    "missing mask": ERRORS,
    "broken mask": ERRORS,
    "number of masks": ERRORS,
    "mask size": ERRORS,
    "frame order": WARNINGS,
    "unseen object": WARNINGS,
    "no target": NOTES,
    "repeated sentence": NOTES,
    "masks not checked": NOTES,
}
SHOWN = 5  # most findings of a kind in the summary


@dataclass(frozen=True)
class Finding:
    """One fault, or one fact worth knowing.

    Attributes:
        kind: one of ``KINDS``.
        place: a file, or an entry of one.
        message: what is wrong there and what to do.
    """

    kind: str
    place: str
    message: str


@dataclass
class SplitReport:
    """The findings in a split.

    Attributes:
        videos: number of videos with expressions; images for RefCOCO, clips for A2D.
        expressions: number of expressions that could be read.
        frames: number of frames of these videos.
        findings: in the order of the annotation file.
    """

    videos: int = 0
    expressions: int = 0
    frames: int = 0
    findings: list[Finding] = field(default_factory=list)

    def graded(self, grade: str) -> list[Finding]:
        """Returns the findings that are ``ERRORS``, ``WARNINGS`` or ``NOTES``."""
        return [finding for finding in self.findings if KINDS[finding.kind] == grade]

    def as_json(self) -> dict[str, Any]:
        """Returns counts and every finding."""
        counts = {"videos": self.videos, "expressions": self.expressions, "frames": self.frames}
        return counts | {grade: [asdict(one) for one in self.graded(grade)] for grade in (ERRORS, WARNINGS, NOTES)}


def summary(dataset: str, reports: dict[str, SplitReport]) -> str:
    """Returns a few lines per split: counts of every kind and the first findings, "fine" if there are none."""
    lines = []
    for split, report in reports.items():
        counts = (
            f"{_count(report.videos, 'video')}, {_count(report.expressions, 'expression')}, "
            f"{_count(report.frames, 'frame')}"
        )
        is_fine = not report.graded(ERRORS) and not report.graded(WARNINGS)
        lines.append(f"{dataset} {split}: {counts}" + (": fine" if is_fine else ""))
        for kind, grade in KINDS.items():
            lines += _kind_lines(f"{grade.removesuffix('s')}, {kind}", [f for f in report.findings if f.kind == kind])
    lines.append(", ".join(_total(reports.values(), grade) for grade in (ERRORS, WARNINGS, NOTES)))
    return "\n".join(lines)


def _kind_lines(title: str, findings: list[Finding]) -> list[str]:
    if not findings:
        return []
    shown = [f"    {one.place}: {one.message}" for one in findings[:SHOWN]]
    rest = [f"    and {len(findings) - SHOWN} more; --output FILE lists all"] if len(findings) > SHOWN else []
    return [f"  {title}: {len(findings)}", *shown, *rest]


def _total(reports: Iterable[SplitReport], grade: str) -> str:
    return _count(sum(len(report.graded(grade)) for report in reports), grade.removesuffix("s"))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
