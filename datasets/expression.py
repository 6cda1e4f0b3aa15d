"""The dataset record that holds a sentence. Free of torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Expression:
    """A sentence about a video, and the objects it means.

    Attributes:
        video: video id.
        exp_id: expression id; unique within the video, the sentence need not be.
        caption: the sentence as the dataset has it.
        frames: frame names, sorted.
        object_ids: annotation ids of the targets, several or none; None where the split hides them.
        kind: the sort of sentence, where the dataset labels it.
    """

    video: str
    exp_id: str
    caption: str
    frames: tuple[str, ...]
    object_ids: tuple[str, ...] | None
    kind: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        """(video id, expression id): the unit of evaluation, never the text."""
        return self.video, self.exp_id
