"""Every engine, placement and order of the step against one process: the same losses and the same networks.

Twenty iterations of the whole trainer each, on a small SD3 with both kinds of attention block and random weights.
"""

import math
from collections.abc import Callable, Iterable
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import ALONE, tiny_config
from corners import smoothed
from ranks import ENGINES, ranks
from torch import Tensor

from ladd_dist.checkpoints.reader import Checkpoint, open_newest
from ladd_dist.config import Config
from ladd_dist.distributed.world import World
from ladd_dist.models.weights import FolderWeights
from ladd_dist.training.redraw import REDRAWN
from ladd_dist.training.tracking import read_metrics
from ladd_dist.training.trainer import Trainer

ITERATIONS, BATCH = 20, 8
# Adam divides each gradient by its own size: where a true gradient is zero, rounding alone would decide the
# sign of a full step. A larger epsilon makes parameters comparable to rounding; gradients are near 1e-3.
EXACT = ["student_optimizer.eps=1e-4", "head_optimizer.eps=1e-4"]
FP32 = 1e-5
# Two runs in bf16 round at different places (a rank's share of the batch is multiplied in another order), so they
# part from one another about as far as each parts from fp32. Five ways to run were within 6.1e-5 (student), 6.8e-4
# (heads), 2.6e-4 (d_loss), 9.0e-3 (g_loss, the mean of logits that nearly cancel) and 3.1e-3 (norms) of the local
# engine, which was 9.7e-5, 5.9e-4, 2.2e-4, 5.2e-3 and 3.4e-3 from its own fp32 run; none of the engines stood out.
# The bounds are about three times that. Masters rounded to bf16 would be 1.7e-3 off, by autocast a student 3.7e-4.
# The norm of the heads' gradient has more: it was once 1.3e-2 off, in the second of twenty iterations, and within
# 3e-3 in all others. A distance is the largest of any iteration.
BF16 = {
    "student": 3e-4,
    "ema": 3e-4,
    "heads": 2e-3,
    "d_loss": 1e-3,
    "g_loss": 3e-2,
    "student_grad_norm": 1e-2,
    "head_grad_norm": 3e-2,
}


class Case(NamedTuple):
    """A way to run the same training."""

    engine: str
    order: str
    ranks: int
    teacher: str
    student_blocks: str
    teacher_blocks: str

    @property
    def overrides(self) -> list[str]:
        """The configuration's own words for it."""
        micro_batches = 2 if self.order == "accumulated" else 1
        return [
            *ENGINES[self.engine],
            f"method.fake_pass={'shared' if self.order == 'shared' else 'two_pass'}",
            f"train.micro_batch={BATCH // self.ranks // micro_batches}",
            f"teacher.placement={self.teacher}",
            f"student.activation_checkpointing={RECOMPUTED[self.student_blocks]}",
            f"teacher.activation_checkpointing={RECOMPUTED[self.teacher_blocks]}",
        ]


RECOMPUTED = {"keep": "false", "selective": "selective", "recompute": "true"}
AXES: dict[str, list[Any]] = {
    "engine": [name for name in ENGINES if name != "local"],
    "order": ["shared", "two_pass", "accumulated"],
    "ranks": [2, 4],
    "teacher": ["replicate", "shard"],
    "student_blocks": list(RECOMPUTED),
    "teacher_blocks": list(RECOMPUTED),
}
ORACLE = Case("local", "shared", 1, "replicate", "keep", "keep")
LOCAL = [
    Case("local", "two_pass", 1, "replicate", "recompute", "keep"),
    Case("local", "accumulated", 1, "replicate", "selective", "recompute"),
]
SHARDED = [
    Case("fsdp2", "shared", 2, "replicate", "recompute", "keep"),
    Case("fsdp2", "two_pass", 2, "shard", "selective", "selective"),
    Case("fsdp2", "accumulated", 4, "replicate", "keep", "recompute"),
    Case("hsdp", "shared", 4, "shard", "selective", "keep"),
    Case("hsdp", "two_pass", 2, "replicate", "keep", "selective"),
    Case("hsdp", "accumulated", 2, "replicate", "recompute", "recompute"),
    Case("zero3", "shared", 4, "replicate", "keep", "selective"),
    Case("zero3", "two_pass", 2, "replicate", "selective", "keep"),
    Case("zero3", "accumulated", 2, "shard", "recompute", "recompute"),
    Case("zero3 offload=optimizer", "shared", 2, "replicate", "keep", "keep"),
    Case("zero3 offload=optimizer", "two_pass", 2, "shard", "recompute", "recompute"),
    Case("zero3 offload=optimizer", "accumulated", 4, "replicate", "selective", "selective"),
    Case("zero3 offload=all", "shared", 2, "replicate", "selective", "recompute"),
    Case("zero3 offload=all", "two_pass", 4, "replicate", "recompute", "selective"),
    Case("zero3 offload=all", "accumulated", 2, "shard", "keep", "keep"),
]
IN_BF16 = [case for case in SHARDED if case[:3] in {
    ("fsdp2", "two_pass", 2),
    ("hsdp", "shared", 4),
    ("zero3", "accumulated", 2),
    ("zero3 offload=optimizer", "shared", 2),
    ("zero3 offload=all", "shared", 2),
}]  # fmt: skip
REDRAWN_FAR = 0.05
"""Of what every engine's student draws again of the data before it is trained, in bf16 too."""
NETWORKS = ("student", "ema", "heads")
NUMBERS = ("d_loss", "g_loss", "student_grad_norm", "head_grad_norm")

Run = tuple[Checkpoint, list[dict[str, Any]]]
Train = Callable[..., Run]


def test_every_two_settings_meet_in_some_case() -> None:
    for (one, first), (other, second) in combinations(AXES.items(), 2):
        met = {(getattr(case, one), getattr(case, other)) for case in SHARDED}
        assert met == {(a, b) for a in first for b in second}, (one, other)


def test_every_setting_occurs_in_bf16() -> None:
    for axis, values in AXES.items():
        assert {getattr(case, axis) for case in IN_BF16} == set(values), axis


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory, random_teacher: Path, random_dataset: Path) -> Train:
    """Run a case; its last checkpoint and its record."""
    teacher = f"teacher.path={random_teacher}"

    def run(case: Case, *overrides: str) -> Run:
        run_dir = tmp_path_factory.mktemp("run")
        length = [f"train.iterations={ITERATIONS}", f"train.checkpoint_every={ITERATIONS}"]
        config = tiny_config(run_dir, random_dataset, teacher, *length, *EXACT, *case.overrides, *overrides)
        ranks(case.ranks)(_train, config)
        checkpoint, rows = open_newest(run_dir, ALONE), read_metrics(run_dir)
        assert checkpoint is not None
        assert not config.student.starts_as_teacher or rows[0][REDRAWN] < REDRAWN_FAR
        return checkpoint, rows

    return run


def _train(world: World, config: Config) -> None:
    with smoothed():
        Trainer(config, world).run()


def loss_distances(run: Run, reference: Run) -> dict[str, float]:
    """The largest distance of any iteration, of the number's root mean square over the run.

    Not of the iteration's own value: the generator's loss is a mean of logits of either sign that may come near
    zero, where rounding has no reason to shrink with it.
    """
    result = {}
    for key in NUMBERS:
        ours, theirs = column(run, key), column(reference, key)
        result[key] = float((ours - theirs).abs().max() / theirs.square().mean().sqrt())
    return result


def column(run: Run, key: str) -> Tensor:
    values = [row[key] for row in run[1]]
    assert len(values) == ITERATIONS
    return torch.tensor(values, dtype=torch.double)


def relative(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> float:
    """Distance of two lists of tensors, of the second's norm."""
    pairs = [(a.double(), b.double()) for a, b in zip(ours, theirs, strict=True)]
    difference = sum(float((a - b).square().sum()) for a, b in pairs)
    return math.sqrt(difference / sum(float(b.square().sum()) for _, b in pairs))


def network_distances(run: Run, reference: Run) -> dict[str, float]:
    """Distance of each whole network."""
    pairs = {name: (run[0].network(name), reference[0].network(name)) for name in NETWORKS}
    return {name: relative(ours.values(), theirs.values()) for name, (ours, theirs) in pairs.items()}


def tensor_distances(run: Run, reference: Run) -> dict[str, float]:
    """Distance of each single tensor of each network."""
    pairs = {name: (run[0].network(name), reference[0].network(name)) for name in NETWORKS}
    return {
        f"{network}/{name}": relative([ours[name]], [theirs[name]])
        for network, (ours, theirs) in pairs.items()
        for name in theirs
    }


def beyond(measured: dict[str, float], bounds: dict[str, float] | float) -> dict[str, float]:
    """What is not within its bound; a NaN is not."""
    bound = dict.fromkeys(measured, bounds) if isinstance(bounds, float) else bounds
    return {key: value for key, value in measured.items() if not value < bound[key]}


@pytest.fixture(scope="module")
def oracle(train: Train) -> Run:
    return train(ORACLE)


@pytest.fixture(scope="module")
def bf16_oracle(train: Train) -> Run:
    return train(ORACLE, "train.precision=bf16")


def name_of(case: Case) -> str:
    return " ".join(map(str, case))


@pytest.mark.parametrize("case", LOCAL + SHARDED, ids=name_of)
def test_every_way_to_run_makes_the_same_numbers(train: Train, oracle: Run, case: Case) -> None:
    run = train(case)
    assert beyond(loss_distances(run, oracle) | tensor_distances(run, oracle), FP32) == {}


def test_gathering_blocks_ahead_changes_no_numbers(train: Train, oracle: Run) -> None:
    run = train(SHARDED[1], "fsdp2.forward_prefetch=1", "fsdp2.backward_prefetch=2")
    assert beyond(loss_distances(run, oracle) | tensor_distances(run, oracle), FP32) == {}


def test_mismatched_prompts_are_the_same_for_any_ranks_and_micro_batches(train: Train) -> None:
    setting = "method.mismatched_weight=0.5"
    run, reference = train(SHARDED[2], setting), train(ORACLE, setting)
    assert all("mismatched_logit" in row for row in run[1])
    assert beyond(loss_distances(run, reference) | tensor_distances(run, reference), FP32) == {}


def test_pairs_are_the_same_for_any_ranks_and_micro_batches(train: Train) -> None:
    """Whose fake latents are judged in two-pass order before the real ones, by passes without a graph.

    A pair's difference leaves out the bias of logits, whose gradient is rounding but for the small weight on real
    logits: it is held together with the weights that it is added to.
    """
    settings = ("method.loss=relativistic", "discriminator.student_time=true")
    reference = train(ORACLE, *settings)
    for case in (SHARDED[2], SHARDED[8]):
        run = train(case, *settings)
        found = loss_distances(run, reference) | tensor_distances(run, reference)
        (logit, bias), expected = (
            [r[0].network("heads")[n] for n in ("logit", "logit_bias")] for r in (run, reference)
        )
        found["heads/logit_bias"] = relative([logit, bias], expected)
        assert beyond(found, FP32) == {}, case


def test_a_smaller_student_trains_the_same_on_sharding_ranks(train: Train) -> None:
    """Made of one of two blocks, which becomes the last one, and of one of two heads."""
    smaller = ("student.layers=[0]", "student.heads=1")
    reference = train(ORACLE, *smaller)
    for case in (SHARDED[0], SHARDED[7]):
        run = train(case, *smaller)
        assert beyond(loss_distances(run, reference) | tensor_distances(run, reference), FP32) == {}, case


@pytest.mark.parametrize("case", IN_BF16, ids=name_of)
def test_in_bf16_the_numbers_are_as_near_as_bf16_itself(train: Train, bf16_oracle: Run, case: Case) -> None:
    run = train(case, "train.precision=bf16")
    assert beyond(loss_distances(run, bf16_oracle) | network_distances(run, bf16_oracle), BF16) == {}


def test_the_local_engine_in_bf16_stays_as_near_to_fp32(oracle: Run, bf16_oracle: Run) -> None:
    assert beyond(loss_distances(bf16_oracle, oracle) | network_distances(bf16_oracle, oracle), BF16) == {}


def test_twenty_iterations_move_every_tensor_far_beyond_the_tolerance(oracle: Run, random_teacher: Path) -> None:
    """But for the last block's query of the text, which no velocity depends on."""
    start, end = FolderWeights(random_teacher), oracle[0].network("student")
    before = {name: start.read(name, 0, weight.numel()).view(weight.shape) for name, weight in end.items()}
    still = {name for name in end if relative([end[name]], [before[name]]) < 50 * FP32}
    query = "net.transformer_blocks.1.attn."
    assert still == {query + name for name in ("add_q_proj.weight", "add_q_proj.bias", "norm_added_q.weight")}
