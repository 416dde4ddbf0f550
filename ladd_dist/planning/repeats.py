"""Like blocks of a network, counted once: what a pass costs grows evenly with their number."""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any
from unittest.mock import patch

from torch import Tensor, nn

from ladd_dist.models.backbone import Backbone
from ladd_dist.planning.counting import Counter, Work


def stands_for(kinds: Sequence[Hashable]) -> list[int | None]:
    """For each block how many others it stands for, or None if another stands for it.

    Of a row of like blocks the first, the second and the last one are run: what surrounds those on the ends differs.
    """
    found: list[int | None] = []
    for _, row in groupby(kinds):
        others = len(list(row)) - 3
        found += [0, others, *[None] * others, 0] if others > 0 else [0] * (others + 3)
    return found


@dataclass(frozen=True)
class _Section:
    """From one block's beginning to the next one's: bytes alive at its start, the most within it, and its work."""

    times: int
    start: int
    peak: int
    work: Work


class Course:
    """What a counter sees of a pass, section by section, some of which stand for others.

    Args:
        grown: bytes that are alive beside what the counter knows of, for a pass of which another was cut short.
    """

    def __init__(self, counter: Counter, grown: int = 0) -> None:
        self._counter, self._grown = counter, grown
        self._sections: list[_Section] = []
        self._times, self._start, self._work = 1, counter.alive, counter.work
        counter.section()

    def section(self, others: int) -> None:
        """End one and begin another, which stands for so many others."""
        counter = self._counter
        work = counter.work + self._work * -1
        self._sections.append(_Section(self._times, self._start, counter.peak, work))
        self._times, self._start, self._work = 1 + others, counter.alive, counter.work
        counter.section()

    def end(self) -> tuple[Work, int, int]:
        """Work of all sections and of those that they stand for, bytes alive after them, and the most within them."""
        self.section(0)
        work, grown, peak = Work(), self._grown, 0
        ends = [section.start for section in self._sections[1:]] + [self._start]
        for section, end in zip(self._sections, ends, strict=True):
            work += section.work * section.times
            # The most of so many sections, each as much above the one before, is in the first or the last.
            more = (section.times - 1) * (end - section.start)
            peak = max(peak, section.peak + grown + max(more, 0))
            grown += more
        return work, self._start + grown, peak


class Repeats:
    """Runs a network's blocks while it is active, but for those that others stand for.

    Each block that runs begins a section of ``course``, and again when its gradient arrives.

    Attributes:
        course: of the pass under way.
        taps: those of the given ones whose blocks are run.

    Args:
        taps: blocks whose features are wanted; the pass ends after the last of them.
    """

    course: Course

    def __init__(self, net: Backbone, taps: tuple[int, ...] | None) -> None:
        blocks = net.wrap_points()[: None if taps is None else taps[-1] + 1]
        tapped = taps or ()
        self._net = net
        self._others = stands_for([(_kind(block), index in tapped) for index, block in enumerate(blocks)])
        self.taps = None if taps is None else tuple(i for i in taps if self._others[i] is not None)

    def outputs(self) -> list[int]:
        """For each output of the pass how many others it stands for."""
        return [0] if self.taps is None else [self._others[i] or 0 for i in self.taps]

    @contextmanager
    def active(self) -> Iterator[None]:
        """For one forward pass and the backward pass of its graph, which may come later."""
        run, waiting, made = self._net.run_block, iter(self._others), None

        def run_block(block: nn.Module, *inputs: Tensor) -> Any:
            nonlocal made
            if (others := next(waiting)) is not None:
                self.course.section(others)
                made = run(block, *inputs)
                self._follow(made, others)
            return made

        with patch.object(self._net, "run_block", run_block):
            yield

    def _follow(self, made: Any, others: int) -> None:
        outputs = made if isinstance(made, tuple) else (made,)
        if learned := [out for out in outputs if out is not None and out.requires_grad]:
            learned[-1].register_hook(lambda _: self.course.section(others))


def _kind(block: nn.Module) -> Hashable:
    return repr(block), tuple((name, p.shape, p.dtype, p.requires_grad) for name, p in block.named_parameters())
