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
        annotated: positions in ``frames`` that have masks; None is all.
    """

    video: str
    exp_id: str
    caption: str
    frames: tuple[str, ...]
    object_ids: tuple[str, ...] | None
    kind: str | None = None
    annotated: tuple[int, ...] | None = None

    @property
    def key(self) -> tuple[str, str]:
        """(video id, expression id): the unit of evaluation, never the text."""
        return self.video, self.exp_id

    def check_annotated(self, indices: list[int]) -> None:
        """Nothing, where every position has a mask.

        Raises:
            ValueError: if one has none.
        """
        bare = [] if self.annotated is None else sorted(set(indices) - set(self.annotated))
        if bare:
            raise ValueError(f"masks of {self.key} exist at positions {self.annotated} alone, asked for {bare}")
