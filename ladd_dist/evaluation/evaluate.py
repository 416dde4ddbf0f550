"""How far the student is from its guided teacher, against the undistilled teacher at the same steps.

FD is the Frechet distance to the teacher's own guided pictures. A second set of those, drawn with other seeds,
gives the FD that even a perfect student would show at this number of pictures; *excess* is what lies above it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from ladd_dist.checkpoints.student import Weights, load_student, open_checkpoint
from ladd_dist.config import Config
from ladd_dist.data.prompts import PromptEntry, read_prompts
from ladd_dist.distributed.world import World
from ladd_dist.drawing.pipeline import Pipeline, load_backbone, teacher_schedule
from ladd_dist.engines.build import compute_dtype
from ladd_dist.evaluation.distances import frechet_distance
from ladd_dist.evaluation.folder import evaluation_place, new_evaluation
from ladd_dist.evaluation.gallery import Gallery
from ladd_dist.evaluation.judges import Judge, load_judge
from ladd_dist.evaluation.results import PICTURES, RESULTS, Results, SetResult
from ladd_dist.log import log, progress
from ladd_dist.models.backbone import Backbone
from ladd_dist.models.lora import Scaled, called
from ladd_dist.planning.networks import check_networks


@dataclass(frozen=True)
class Entrant:
    """One way of drawing that is evaluated: a network, a sampler and a number of steps."""

    name: str
    label: str
    role: Literal["teacher", "student"]
    steps: int
    guidance: float


@dataclass
class _Drawn:
    """What is kept of a drawn set, over all ranks."""

    features: Tensor
    right: dict[str, list[bool]]
    seconds: float


def entrants(config: Config) -> list[Entrant]:
    """The guided teacher, and the student in every number of its steps; the undistilled teacher in most and least."""
    s, counts = config.synthesis, config.method.step_counts
    guided = Entrant(
        "teacher_guided", f"teacher, {s.steps} steps, guidance {s.guidance:g}", "teacher", s.steps, s.guidance
    )
    teachers = [
        Entrant(f"teacher_{n}", f"teacher, {_steps(n)}", "teacher", n, 1.0)
        for n in dict.fromkeys((counts[0], counts[-1]))
    ]
    students = [Entrant(f"student_{n}", f"student, {_steps(n)}", "student", n, 1.0) for n in counts]
    return [guided, *teachers, *students]


def evaluate(
    config: Config, world: World, checkpoint: str | None, weights: Weights, loras: Sequence[Scaled] = ()
) -> Results:
    """Draw every set, judge it, and put results and pictures in the place of earlier ones.

    Args:
        loras: adapters to add to the student.

    Returns:
        The content of ``results.json``.

    Raises:
        LaddError: if networks, prompts, judge or checkpoint cannot be used, or the place is taken; what was there is
            left as it was.
    """
    check_networks(config)
    dtype = compute_dtype(config)
    entries, place = _entries(config), evaluation_place(config)
    teacher_schedule(config)
    judge = load_judge(config.evaluation.judge, world.device)
    opened = open_checkpoint(config, world, checkpoint)
    student = load_student(config, opened, weights, dtype, loras).to(world.device)
    teacher = load_backbone(config.teacher.path, dtype, world.device)
    pipeline = Pipeline(config, world.device)
    networks = {"teacher": teacher, "student": student}
    with new_evaluation(place, world) as folder:
        gallery = Gallery(folder / PICTURES, config.evaluation.pictures, entries)
        competition = entrants(config)
        bar = progress("evaluate", (len(competition) + 1) * len(entries), unit="img", world=world)
        draw = _Draw(config, world, pipeline, networks, judge, gallery, bar.update)
        other_half = draw(competition[0], entries, "evaluation, other half", keep=False)
        drawn = {entrant.name: draw(entrant, entries, "evaluation", keep=True) for entrant in competition}
        bar.close()

        reference = drawn["teacher_guided"].features
        floor = frechet_distance(other_half.features, reference)
        results = Results(
            seed=config.seed,
            samples=len(entries),
            judge=judge.name,
            checkpoint=opened.path.name,
            digest=opened.digest,
            weights=weights,
            adapters=called(loras),
            split_half_fd=floor,
            features=(len(reference), reference.shape[1]),
            sets=_scores(competition, drawn, reference, floor),
        )
        if world.is_main:
            (folder / RESULTS).write_text(results.model_dump_json(indent=2) + "\n", encoding="utf-8")
            gallery.write_index([entrant.name for entrant in competition])
    if world.is_main:
        for line in table(results):
            log(line)
    world.barrier()
    return results


def table(results: Results) -> list[str]:
    """The results as lines of text."""
    lines = [f"{'':34}{'FD':>9}{'excess':>9}{'ratio':>10}{'read':>8}"]
    for s in results.sets:
        ratio = "no ratio" if results.lacks_ratio(s) else "" if s.excess_ratio is None else f"{s.excess_ratio:.3f}"
        read = "" if s.accuracy is None else f"{100 * s.accuracy:.1f}%"
        lines.append(f"{s.label:34}{s.fd:>9.3f}{s.excess:>9.3f}{ratio:>10}{read:>8}")
    return lines + results.caveats


def _steps(count: int) -> str:
    return f"{count} step" + "s" * (count > 1)


def _entries(config: Config) -> list[PromptEntry]:
    """As many pictures as asked for: the prompts in turn, each repetition with noise of its own."""
    once = read_prompts(config.evaluation.prompts, config.synthesis.buckets)
    return [
        PromptEntry(i, once[i % len(once)].prompt, once[i % len(once)].bucket)
        for i in range(config.evaluation.samples)
    ]


def _scores(competition: list[Entrant], drawn: dict[str, _Drawn], reference: Tensor, floor: float) -> list[SetResult]:
    scores: list[SetResult] = []
    for entrant in competition:
        result = drawn[entrant.name]
        itself = entrant.name == "teacher_guided"
        fd = floor if itself else frechet_distance(result.features, reference)
        right = [value for values in result.right.values() for value in values]
        scores.append(
            SetResult(
                **asdict(entrant),
                fd=fd,
                excess=fd - floor,
                accuracy=sum(right) / len(right) if right else None,
                accuracy_by_bucket={b: sum(v) / len(v) for b, v in result.right.items()} or None,
                seconds_per_image=result.seconds,
            )
        )
    return scores


class _Draw:
    """Draws and judges one set, this rank taking every ``world.size``-th batch."""

    def __init__(
        self,
        config: Config,
        world: World,
        pipeline: Pipeline,
        networks: dict[str, Backbone],
        judge: Judge,
        gallery: Gallery,
        advance: Callable[[int], object],
    ) -> None:
        self.config, self.world, self.pipeline = config, world, pipeline
        self.networks, self.judge, self.gallery, self.advance = networks, judge, gallery, advance

    def __call__(self, entrant: Entrant, entries: list[PromptEntry], purpose: str, keep: bool) -> _Drawn:
        features: list[Tensor] = []
        right: dict[str, list[bool]] = {}
        seconds = 0.0
        for rows in _batches(entries, self.config.evaluation.batch)[self.world.rank :: self.world.size]:
            start = time.monotonic()
            images = self.pipeline.decode(self._latents(entrant, rows, purpose))
            seconds += time.monotonic() - start
            features.append(self.judge.features(images))
            read = self.judge.reads_prompt(images, [row.prompt for row in rows])
            if read is not None:
                right.setdefault(rows[0].bucket.name, []).extend(read.tolist())
            if keep:
                self.gallery.keep(entrant.name, rows, images)
            self.advance(len(rows) * self.world.size)
        return self._gathered(features, right, seconds / len(entries))

    def _latents(self, entrant: Entrant, rows: list[PromptEntry], purpose: str) -> Tensor:
        network, encoded = self.networks[entrant.role], self.pipeline.encode_entries(rows, purpose)
        if entrant.role == "student":
            return self.pipeline.student(network, encoded, entrant.steps)
        if entrant.guidance > 1:
            return self.pipeline.teacher(network, encoded, entrant.steps, entrant.guidance)
        return self.pipeline.undistilled(network, encoded, entrant.steps)

    def _gathered(self, features: list[Tensor], right: dict[str, list[bool]], seconds: float) -> _Drawn:
        parts = self.world.gather((torch.cat(features) if features else None, right, seconds))
        merged: dict[str, list[bool]] = {}
        for _, by_bucket, _ in parts:
            for bucket, values in by_bucket.items():
                merged.setdefault(bucket, []).extend(values)
        return _Drawn(torch.cat([p[0] for p in parts if p[0] is not None]), merged, sum(p[2] for p in parts))


def _batches(entries: list[PromptEntry], size: int) -> list[list[PromptEntry]]:
    """Batches of one bucket each."""
    by_bucket: dict[str, list[PromptEntry]] = {}
    for entry in entries:
        by_bucket.setdefault(entry.bucket.name, []).append(entry)
    return [rows[i : i + size] for rows in by_bucket.values() for i in range(0, len(rows), size)]
