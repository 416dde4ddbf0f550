"""How far the student is from its guided teacher, against the undistilled teacher at the same steps.

FD is the Frechet distance to pictures of the guided teacher that share no noise with the others. That of a second set
of those, with the noise of all others, is what even a perfect student would show at this number of pictures; *excess*
is what lies above it.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ladd_dist.checkpoints.student import Weights, load_student, open_checkpoint
from ladd_dist.config import Config
from ladd_dist.data.prompts import PromptEntry
from ladd_dist.distributed.world import World
from ladd_dist.drawing.pipeline import Pipeline, load_backbone, teacher_schedule, tell_cut
from ladd_dist.engines.build import compute_dtype
from ladd_dist.evaluation.baselines import draw_baselines
from ladd_dist.evaluation.draw import DRAWN, OTHER_HALF, Draw, in_batches, pictures
from ladd_dist.evaluation.drawn import Drawn
from ladd_dist.evaluation.entrants import Entrant, students, teachers
from ladd_dist.evaluation.folder import evaluation_place, new_evaluation
from ladd_dist.evaluation.gallery import Gallery
from ladd_dist.evaluation.identity import of_baselines, of_evaluation
from ladd_dist.evaluation.instruments import Instruments
from ladd_dist.evaluation.measure import Measured, measure
from ladd_dist.evaluation.on_disk import SetSoFar, SetsOnDisk, count_there
from ladd_dist.evaluation.places import PICTURES, RESULTS, baselines_folder
from ladd_dist.evaluation.reference import list_reference, look_at_reference
from ladd_dist.evaluation.results import Results, SetResult
from ladd_dist.evaluation.table import table
from ladd_dist.evaluation.teacher_features import TeacherFeatures
from ladd_dist.evaluation.unfinished import unfinished
from ladd_dist.files.run_lock import RunLock
from ladd_dist.log import log, progress
from ladd_dist.models.lora import Scaled, called
from ladd_dist.planning.networks import check_networks
from ladd_dist.supervision.requests import SharedStop
from ladd_dist.supervision.signals import Signals

if TYPE_CHECKING:
    from tqdm import tqdm

_BEING_WRITTEN = shutil.ignore_patterns(".*")


def evaluate(
    config: Config,
    world: World,
    checkpoint: str | None,
    weights: Weights,
    loras: Sequence[Scaled] = (),
    lock: RunLock | None = None,
    signals: Signals | None = None,
) -> Results:
    """Draw every set, judge it, and put results and pictures in the place of earlier ones.

    The teacher's sets are drawn once for all students that are held against them, see `evaluation.baselines`; and
    what a call before this one had drawn of the same student when it was ended is not drawn again, see
    `evaluation.unfinished`. Goes on without scores whose weights are missing, and says so.

    Args:
        loras: adapters to add to the student.
        lock: not yet held, for what is drawn; None is one of its own.
        signals: tell whether all ranks are to stop after their batch; None never does.

    Returns:
        The content of ``results.json``.

    Raises:
        LaddError: if networks, prompts, reference set or checkpoint cannot be used, judge or scorers are unknown,
            another job draws the same evaluation, or the place is taken; what was there is left as it was.
        Requeue: on all ranks, if a signal asked one of them to stop; what is drawn is kept.
    """
    check_networks(config)
    entries, place = pictures(config, config.evaluation.samples), evaluation_place(config)
    teacher_schedule(config)
    tell_cut(config, (entry.prompt for entry in entries), world)
    listed = list_reference(config)
    instruments = Instruments.load(config, world)
    opened = open_checkpoint(config, world, checkpoint)
    against = of_baselines(config, world, entries, listed, instruments, features=True)
    source = of_evaluation(config, world, against, opened, weights, loras)
    stop, competition = SharedStop(world, signals or Signals()), [*teachers(config), *students(config)]
    kept = SetsOnDisk(baselines_folder(place.parent, against), world, stop)
    with unfinished(place.parent, source, world, lock or RunLock(), stop) as so_far:
        gallery, dtype = Gallery(config.evaluation.pictures, entries), compute_dtype(config)
        student = load_student(config, opened, weights, dtype, loras).to(world.device)
        teacher = load_backbone(config.teacher.path, dtype, world.device)
        pipeline = Pipeline(config, world.device)
        there = {name: kept.of_set(name) for name in [OTHER_HALF, *(of.name for of in teachers(config))]}
        there |= {of.name: so_far.of_set(of.name, gallery) for of in students(config)}
        bar = _progress(config, world, entries, there)
        features = TeacherFeatures(config, teacher)
        draw = Draw(config, world, pipeline, instruments, features, pipeline.encode_entries, bar.update)
        ways = {of.name: partial(of.draw, pipeline, teacher) for of in teachers(config)}
        look = partial(look_at_reference, listed, instruments.judge, config.evaluation.batch, world)
        baselines = draw_baselines(draw, ways, entries, kept, gallery, look)
        drawn = dict(baselines.sets) | {
            of.name: draw(partial(of.draw, pipeline, student), entries, DRAWN, there[of.name])
            for of in students(config)
        }
        bar.close()

        measured = measure(config, drawn, baselines.other_half, entries, baselines.reference)
        results = Results(
            seed=config.seed,
            samples=len(entries),
            judge=instruments.name,
            checkpoint=opened.path.name,
            digest=opened.digest,
            weights=weights,
            adapters=called(loras),
            features=measured.features,
            reference=config.evaluation.reference,
            missing=instruments.missing,
            sets=[_scored(entrant, drawn[entrant.name], measured) for entrant in competition],
        )
        shown = kept.pictures, so_far.pictures
        world.together(lambda: _write(place, results, gallery, shown) if world.is_main else None)
    if world.is_main:
        for line in table(results):
            log(line)
    world.barrier()
    return results


def _progress(config: Config, world: World, entries: list[PromptEntry], there: Mapping[str, SetSoFar]) -> "tqdm[Any]":
    done = count_there(there.values(), in_batches(entries, config.evaluation.batch))
    if done and world.is_main:
        log(f"{done} of {len(there) * len(entries)} pictures are there from an evaluation before")
    return progress("evaluate", len(there) * len(entries), unit="img", world=world, done=done)


def _write(place: Path, results: Results, gallery: Gallery, shown: Sequence[Path]) -> None:
    """Pictures that are shown are copied: until the evaluation is whole, a kill may call for them again."""
    with new_evaluation(place) as folder:
        (folder / RESULTS).write_text(results.model_dump_json(indent=2) + "\n", encoding="utf-8")
        for pictures_of in shown:
            shutil.copytree(pictures_of, folder / PICTURES, ignore=_BEING_WRITTEN, dirs_exist_ok=True)
        gallery.write_index(folder / PICTURES, [scored.name for scored in results.sets])


def _scored(entrant: Entrant, drawn: Drawn, measured: Measured) -> SetResult:
    return SetResult(
        **asdict(entrant),
        seconds_per_image=drawn.seconds,
        measures=measured.overall[entrant.name],
        measures_by_bucket={bucket: of_sets[entrant.name] for bucket, of_sets in measured.by_bucket.items()},
    )
