"""What students are held against: the teacher's sets, drawn once for all evaluations that depend on nothing else.

    RUN_DIR/baselines/SOURCE/   as in `evaluation.on_disk`

An evaluation while a run trains and one afterwards, of this checkpoint and of that, find them there; runs share them
whose folders ``baselines`` are links to one. They belong to no job: batches are written whole, and two that draw the
same one write the same.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from ladd_dist.data.prompts import PromptEntry
from ladd_dist.evaluation.draw import DRAWN, OTHER_HALF, Draw, LatentsOf
from ladd_dist.evaluation.drawn import Drawn, Rows
from ladd_dist.evaluation.entrants import REFERENCE
from ladd_dist.evaluation.gallery import Gallery
from ladd_dist.evaluation.on_disk import SetsOnDisk


class Baselines(NamedTuple):
    """The teacher's sets, once more the guided one's, and the judge's features of a reference set's buckets."""

    sets: Mapping[str, Drawn]
    other_half: Drawn
    reference: Mapping[str, Rows]


def draw_baselines(
    draw: Draw,
    ways: Mapping[str, LatentsOf],
    entries: list[PromptEntry],
    kept: SetsOnDisk,
    gallery: Gallery,
    look: Callable[[], dict[str, Rows]],
) -> Baselines:
    """Draw and look at what is missing, on all ranks.

    Args:
        ways: the teachers', by name.
        look: at the reference set.

    Raises:
        LaddError: if something cannot be written.
        Requeue: on all ranks, if a signal asked one of them to stop; what is drawn is kept.
    """
    reference = kept.reference(look)
    other_half = draw(ways[REFERENCE], entries, OTHER_HALF, kept.of_set(OTHER_HALF))
    sets = {name: draw(way, entries, DRAWN, kept.of_set(name, gallery)) for name, way in ways.items()}
    return Baselines(sets, other_half, reference)
