"""Evaluating a student while it trains, against sets of the teacher's that a run draws once."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from ladd_dist.config import Config
from ladd_dist.distributed.world import World
from ladd_dist.drawing.pipeline import Pipeline, load_backbone, teacher_schedule
from ladd_dist.drawing.sampling import VelocityNetwork
from ladd_dist.engines.build import compute_dtype
from ladd_dist.errors import LaddError
from ladd_dist.evaluation.baselines import FILE, Baselines, keep, kept, made_from
from ladd_dist.evaluation.draw import DRAWN, OTHER_HALF, Draw, EncodedOnce, pictures
from ladd_dist.evaluation.drawn import Drawn
from ladd_dist.evaluation.entrants import REFERENCE, students, teachers
from ladd_dist.evaluation.instruments import Instruments
from ladd_dist.evaluation.measure import measure
from ladd_dist.evaluation.reference import Listed, list_reference, look_at_reference
from ladd_dist.evaluation.results import Evaluated
from ladd_dist.evaluation.teacher_features import FeatureNetwork, TeacherFeatures, middle_block
from ladd_dist.log import progress


class InTraining:
    """Draws ``evaluation.samples_in_training`` pictures of a live student and measures them.

    Prompts are encoded once, and no text encoder stays in memory. The teacher's sets are drawn before the run's
    networks are loaded, by a teacher that is gone by then; a later start finds them in ``run_dir``.

    Args:
        blocks: how many of the teacher's blocks will be at hand in training, for its features.

    Raises:
        LaddError: if prompts or reference set cannot be used or a judge or scorer is unknown, before anything is
            loaded.
    """

    def __init__(self, config: Config, world: World, blocks: int) -> None:
        self._config, self._world = config, world
        self._entries = pictures(config, config.evaluation.samples_in_training)
        teacher_schedule(config)
        listed = list_reference(config)
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
        self._baselines = self._kept_or_drawn(listed)
        self._pipeline.release_text()

    def draw(self, student: VelocityNetwork, teacher: FeatureNetwork | None, iteration: int) -> dict[str, Drawn]:
        """The student's sets, in every number of its steps; every rank runs both networks as often.

        Args:
            teacher: frozen, for its features.
            iteration: that is done.
        """
        draw = self._draw(teacher, lambda _: self._world.position.enter(iteration, "evaluation"))
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

    def _draw(self, teacher: FeatureNetwork | None, advance: Callable[[int], object]) -> Draw:
        features = TeacherFeatures(self._config, teacher) if teacher and self._with_features else None
        return Draw(self._config, self._world, self._pipeline, self._instruments, features, self._encode, advance)

    def _kept_or_drawn(self, listed: Listed) -> Baselines | None:
        """On rank 0, which alone needs them; drawn by all ranks if it has none."""
        world, file = self._world, Path(self._config.run_dir) / FILE
        looks = [self._instruments.name, *self._instruments.scorers, *(["teacher"] if self._with_features else [])]
        source = made_from(self._config, self._entries, listed, looks)
        found = kept(file, source) if world.is_main else None
        (there, *_) = world.gather(found is not None)
        if there:
            return found
        drawn = self._drawn(listed)
        if world.is_main:
            keep(file, drawn, source)
        return drawn

    def _drawn(self, listed: Listed) -> Baselines:
        config, world = self._config, self._world
        reference = look_at_reference(listed, self._instruments.judge, config.evaluation.batch, world)
        teacher = load_backbone(config.teacher.path, compute_dtype(config), world.device)
        competition = teachers(config)
        bar = progress("draw baselines", (len(competition) + 1) * len(self._entries), unit="img", world=world)

        def advance(count: int) -> None:
            world.position.enter(0, "baselines")
            bar.update(count)

        draw = self._draw(teacher, advance)
        ways = {entrant.name: partial(entrant.draw, self._pipeline, teacher) for entrant in competition}
        half = draw(ways[REFERENCE], self._entries, OTHER_HALF)
        sets = {name: draw(way, self._entries, DRAWN) for name, way in ways.items()}
        bar.close()
        return Baselines(sets, half, reference)
