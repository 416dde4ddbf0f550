"""How far the student is from its guided teacher, against the undistilled teacher at the same steps.

FD is the Frechet distance to the teacher's own guided pictures. A second set of those, drawn with other seeds,
gives the FD that even a perfect student would show at this number of pictures; *excess* is what lies above it.
"""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

from ladd_dist.checkpoints.student import Weights, load_student, open_checkpoint
from ladd_dist.config import Config
from ladd_dist.distributed.world import World
from ladd_dist.drawing.pipeline import Pipeline, load_backbone, teacher_schedule
from ladd_dist.engines.build import compute_dtype
from ladd_dist.evaluation.draw import DRAWN, OTHER_HALF, Draw, pictures
from ladd_dist.evaluation.drawn import Drawn
from ladd_dist.evaluation.entrants import REFERENCE, Entrant, students, teachers
from ladd_dist.evaluation.folder import evaluation_place, new_evaluation
from ladd_dist.evaluation.gallery import Gallery
from ladd_dist.evaluation.instruments import Instruments
from ladd_dist.evaluation.measure import Measured, main_distances, measure
from ladd_dist.evaluation.reference import list_reference, look_at_reference
from ladd_dist.evaluation.results import PICTURES, RESULTS, Estimate, Results, SetResult
from ladd_dist.evaluation.table import table
from ladd_dist.evaluation.teacher_features import TeacherFeatures
from ladd_dist.log import log, progress
from ladd_dist.models.lora import Scaled, called
from ladd_dist.planning.networks import check_networks


def evaluate(
    config: Config, world: World, checkpoint: str | None, weights: Weights, loras: Sequence[Scaled] = ()
) -> Results:
    """Draw every set, judge it, and put results and pictures in the place of earlier ones.

    Goes on without scores whose weights are missing, and says so.

    Args:
        loras: adapters to add to the student.

    Returns:
        The content of ``results.json``.

    Raises:
        LaddError: if networks, prompts, reference set or checkpoint cannot be used, judge or scorers are unknown, or
            the place is taken; what was there is left as it was.
    """
    check_networks(config)
    dtype = compute_dtype(config)
    entries, place = pictures(config, config.evaluation.samples), evaluation_place(config)
    teacher_schedule(config)
    listed = list_reference(config)
    instruments = Instruments.load(config, world)
    opened = open_checkpoint(config, world, checkpoint)
    reference = look_at_reference(listed, instruments.judge, config.evaluation.batch, world)
    student = load_student(config, opened, weights, dtype, loras).to(world.device)
    teacher = load_backbone(config.teacher.path, dtype, world.device)
    pipeline = Pipeline(config, world.device)
    networks = {"teacher": teacher, "student": student}
    with new_evaluation(place, world) as folder:
        gallery = Gallery(folder / PICTURES, config.evaluation.pictures, entries)
        competition = [*teachers(config), *students(config)]
        bar = progress("evaluate", (len(competition) + 1) * len(entries), unit="img", world=world)
        features = TeacherFeatures(config, teacher)
        draw = Draw(config, world, pipeline, instruments, features, pipeline.encode_entries, bar.update)
        by = {entrant.name: partial(entrant.draw, pipeline, networks[entrant.role]) for entrant in competition}
        other_half = draw(by[REFERENCE], entries, OTHER_HALF)
        drawn = {name: draw(way, entries, DRAWN, partial(gallery.keep, name)) for name, way in by.items()}
        bar.close()

        measured = measure(config, drawn, other_half, entries, reference)
        distances, size = main_distances(drawn, other_half)
        results = Results(
            seed=config.seed,
            samples=len(entries),
            judge=instruments.name,
            checkpoint=opened.path.name,
            digest=opened.digest,
            weights=weights,
            adapters=called(loras),
            split_half_fd=distances[REFERENCE],
            features=size,
            reference=config.evaluation.reference,
            missing=instruments.missing,
            sets=[_scored(entrant, drawn[entrant.name], distances, measured) for entrant in competition],
        )
        if world.is_main:
            (folder / RESULTS).write_text(results.model_dump_json(indent=2) + "\n", encoding="utf-8")
            gallery.write_index(list(by))
    if world.is_main:
        for line in table(results):
            log(line)
    world.barrier()
    return results


def _scored(entrant: Entrant, drawn: Drawn, distances: dict[str, float], measured: Measured) -> SetResult:
    name, fd = entrant.name, distances[entrant.name]
    buckets = {bucket: of_sets[name] for bucket, of_sets in measured.by_bucket.items()}
    return SetResult(
        **asdict(entrant),
        fd=fd,
        excess=fd - distances[REFERENCE],
        accuracy=_value(measured.overall[name].read),
        accuracy_by_bucket={b: m.read.value for b, m in buckets.items() if m.read} or None,
        seconds_per_image=drawn.seconds,
        measures=measured.overall[name],
        measures_by_bucket=buckets,
    )


def _value(found: Estimate | None) -> float | None:
    return None if found is None else found.value
