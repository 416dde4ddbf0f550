"""What looks at drawn pictures, and the numbers that it finds in each."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ladd_dist.config import Config
from ladd_dist.data.prompts import PromptEntry
from ladd_dist.distributed.world import World
from ladd_dist.drawing.scorers import Scorer, score, scorer_of
from ladd_dist.errors import MissingWeights
from ladd_dist.evaluation.detail import crops, high_frequency_share
from ladd_dist.evaluation.drawn import Collected
from ladd_dist.evaluation.judges import TEACHER, Judge, load_judge
from ladd_dist.log import warn

JUDGE, PATCHES = "judge", "patches"
DETAIL, READ, BROKEN, SCORE = "high frequencies", "read", "broken", "score "
"""Rows of a set by these names; a scorer's follows the last. The teacher's own features are `TEACHER`."""


@dataclass(frozen=True)
class Instruments:
    """Judge and scorers.

    Attributes:
        judge: None for the teacher's own features alone.
        missing: what could not be loaded, a sentence each.
    """

    judge: Judge | None
    scorers: Mapping[str, Scorer]
    missing: list[str]

    @staticmethod
    def load(config: Config, world: World) -> "Instruments":
        """Those that the configuration names, but for those whose weights are missing on any rank: a warning each.

        Raises:
            LaddError: for one that is unknown.
        """
        settings = config.evaluation
        judge, scorers, missing = None, {}, dict[str, str]()
        try:
            judge = load_judge(settings.judge, world.device)
        except MissingWeights as error:
            missing[JUDGE] = f"without the judge, in the teacher's own features: {error}"
        for name in settings.scorers:
            try:
                scorers[name] = scorer_of(name)
            except MissingWeights as error:
                missing[name] = f"without the scorer {name}: {error}"
        if judge is None and settings.reference is not None:
            missing["reference"] = "without the reference set, to which only a judge measures distances"
        anywhere = {name: why for part in world.gather(missing) for name, why in part.items()}
        for why in anywhere.values() if world.is_main else ():
            warn(why)
        return Instruments(
            None if JUDGE in anywhere else judge,
            {name: scorer for name, scorer in scorers.items() if name not in anywhere},
            list(anywhere.values()),
        )

    @property
    def name(self) -> str:
        """What its distances are called."""
        return TEACHER if self.judge is None else self.judge.name

    def look(self, found: Collected, rows: list[PromptEntry], images: Tensor) -> None:
        """At pictures ``(B, 3, H, W)`` of one bucket."""
        numbers, prompts = [row.id for row in rows], [row.prompt for row in rows]
        found.add(DETAIL, numbers, high_frequency_share(images))
        for name, scorer in self.scorers.items():
            found.add(f"{SCORE}{name}", numbers, score(name, scorer, prompts, images))
        if self.judge is None:
            return
        found.add(JUDGE, numbers, self.judge.features(images))
        if (side := self.judge.crop) and min(images.shape[2:]) > side:
            found.add(PATCHES, numbers, self.judge.features(crops(images, side, numbers)))
        if (read := self.judge.reads_prompt(images, prompts)) is not None:
            found.add(READ, numbers, read.double())
