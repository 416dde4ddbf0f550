"""Evaluating a student while it trains, against sets of the teacher's that are drawn before."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from ladd_dist.config import Config
from ladd_dist.distributed.world import World
from ladd_dist.drawing.pipeline import Pipeline, load_backbone, teacher_schedule, tell_cut
from ladd_dist.drawing.sampling import VelocityNetwork
from ladd_dist.engines.build import compute_dtype
from ladd_dist.errors import LaddError
from ladd_dist.evaluation.baselines import Baselines, draw_baselines
from ladd_dist.evaluation.draw import DRAWN, OTHER_HALF, Draw, Encode, EncodedOnce, in_batches, pictures
from ladd_dist.evaluation.drawn import Drawn
from ladd_dist.evaluation.entrants import students, teachers
from ladd_dist.evaluation.gallery import Gallery
from ladd_dist.evaluation.identity import of_baselines
from ladd_dist.evaluation.instruments import Instruments
from ladd_dist.evaluation.measure import measure
from ladd_dist.evaluation.on_disk import SetsOnDisk, count_there
from ladd_dist.evaluation.places import baselines_folder
from ladd_dist.evaluation.reference import Listed, list_reference, look_at_reference
from ladd_dist.evaluation.results import Evaluated
from ladd_dist.evaluation.teacher_features import FeatureNetwork, TeacherFeatures, middle_block
from ladd_dist.log import progress
from ladd_dist.supervision.requests import SharedStop
from ladd_dist.supervision.signals import Signals


class InTraining:
    """Draws ``evaluation.samples_in_training`` pictures of a live student and measures them.

    The student's prompts are encoded once, and no text encoder stays in memory. The teacher's sets are drawn before
    the run's networks are loaded, by a teacher that is gone by then; a later start finds them, see
    `evaluation.baselines`.

    Args:
        signals: tell whether all ranks are to stop after their batch of the teacher's.
        blocks: how many of the teacher's blocks will be at hand in training, for its features.

    Raises:
        LaddError: if prompts or reference set cannot be used or a judge or scorer is unknown, before anything is
            loaded; or if the teacher's sets cannot be written.
        Requeue: on all ranks, if a signal asked one of them to stop; what is drawn is kept.
    """

    def __init__(self, config: Config, world: World, signals: Signals, blocks: int) -> None:
        self._config, self._world = config, world
        self._entries = pictures(config, config.evaluation.samples_in_training)
        teacher_schedule(config)
        listed = list_reference(config)
        tell_cut(config, (entry.prompt for entry in self._entries), world)
        self._with_features = middle_block(config) < blocks
        self._instruments = Instruments.load(config, world)
        if self._instruments.judge is None and not self._with_features:
            raise LaddError(
                f"train.evaluate_every={config.train.evaluate_every} has nothing to measure distances by: there is "
                f"no judge, and method.name={config.method.name} runs too little of the teacher for its features: "
                "set evaluation.judge, or train.evaluate_every=0"
            )
        self._pipeline = Pipeline(config, world.device)
        self._encode = EncodedOnce(config, world, self._pipeline, self._entries)
        baselines = self._draw_baselines(listed, SharedStop(world, signals))
        self._baselines = baselines if world.is_main else None
        self._pipeline.release_text()

    def draw(self, student: VelocityNetwork, teacher: FeatureNetwork | None, iteration: int) -> dict[str, Drawn]:
        """The student's sets, in every number of its steps; every rank runs both networks as often.

        Args:
            teacher: frozen, for its features.
            iteration: that is done.
        """
        draw = self._draw(teacher, self._encode, lambda _: self._world.position.enter(iteration, "evaluation"))
        ways = {entrant.name: partial(entrant.draw, self._pipeline, student) for entrant in students(self._config)}
        return {name: draw(way, self._entries, DRAWN) for name, way in ways.items()}

    def measure(self, drawn: Mapping[str, Drawn], iteration: int) -> Evaluated:
        """What they are like, computed on rank 0, the same on every rank."""
        found = None
        if self._baselines is not None and self._world.is_main:
            sets, half, reference = self._baselines
            measured = measure(self._config, {**sets, **drawn}, half, self._entries, reference)
            ours = {bucket: {name: of_sets[name] for name in drawn} for bucket, of_sets in measured.by_bucket.items()}
            found = Evaluated(
                iteration=iteration, judge=self._instruments.name, overall=measured.overall, by_bucket=ours
            )
        evaluated: list[Evaluated] = self._world.gather(found)
        return evaluated[0]

    def _draw(self, teacher: FeatureNetwork | None, encode: Encode, advance: Callable[[int], object]) -> Draw:
        features = TeacherFeatures(self._config, teacher) if teacher and self._with_features else None
        return Draw(self._config, self._world, self._pipeline, self._instruments, features, encode, advance)

    def _draw_baselines(self, listed: Listed, stop: SharedStop) -> Baselines:
        """What is there; for what is missing, the teacher is loaded by its first pass."""
        config, world = self._config, self._world
        source = of_baselines(config, world, self._entries, listed, self._instruments, self._with_features)
        kept = SetsOnDisk(baselines_folder(Path(config.run_dir), source), world, stop)
        loaded = cache(lambda: load_backbone(config.teacher.path, compute_dtype(config), world.device))

        def teacher(*args: Any, **kwargs: Any) -> Any:
            return loaded()(*args, **kwargs)

        competition = teachers(config)
        of_sets = [kept.of_set(name) for name in (OTHER_HALF, *(entrant.name for entrant in competition))]
        done = count_there(of_sets, in_batches(self._entries, config.evaluation.batch))
        bar = progress("draw baselines", len(of_sets) * len(self._entries), unit="img", world=world, done=done)

        def advance(count: int) -> None:
            world.position.enter(0, "baselines")
            bar.update(count)

        ways = {entrant.name: partial(entrant.draw, self._pipeline, teacher) for entrant in competition}
        gallery = Gallery(config.evaluation.pictures, self._entries)
        look = partial(look_at_reference, listed, self._instruments.judge, config.evaluation.batch, world)
        # Of what is missing any batch may fall to a rank, not those alone whose prompts it holds.
        draw = self._draw(teacher, self._pipeline.encode_entries, advance)
        found = draw_baselines(draw, ways, self._entries, kept, gallery, look)
        bar.close()
        return found
