"""The rebuilt loop of public trainers computes what our step does: only then their times may be compared."""

import json

import pytest
import torch
from conftest import ALONE, TINY
from diffusers.models.attention import JointTransformerBlock

from ladd_dist.config import load
from ladd_dist.errors import LaddError
from ladd_dist.measuring import against_peers
from ladd_dist.measuring.against_peers import Comparison, Sides, compare_with_peers

# AdamW's own epsilon would make whole steps of the rounding of gradients that are zero.
EXACT = ["student_optimizer.eps=1e-3", "head_optimizer.eps=1e-3"]
SMALL = ["train.global_batch=4", "engine=local", "device=cpu"]


def config(run_dir, *overrides):
    return load(TINY, [f"run_dir={run_dir}", *EXACT, *SMALL, *overrides])


def test_both_loops_make_the_same_losses_and_weights_of_the_same_noise(tmp_path):
    sides = Sides(config(tmp_path, "synthesis.buckets=[32x64]"), ALONE)
    for net in (sides.peers.teacher, sides.peers.student):
        assert {type(block) for block in net.transformer_blocks} == {JointTransformerBlock}, "diffusers' own"
    before = [p.detach().clone() for p in sides.method.student.module.parameters()]
    losses = sides.first()
    assert losses.keys() == {"d_loss", "g_loss", "r1"}
    assert all(ours == pytest.approx(theirs, rel=1e-3) and theirs != 0 for ours, theirs in losses.values())
    ours, theirs = sides.method.student.module.parameters(), sides.peers.student.parameters()
    moved = [torch.cat([(a - b).flatten() for a, b in zip(net, before, strict=True)]) for net in (ours, theirs)]
    assert torch.linalg.vector_norm(moved[0] - moved[1]) < 1e-2 * torch.linalg.vector_norm(moved[1])


def test_a_comparison_tells_the_median_of_its_rounds_and_is_recorded_whole(tmp_path):
    found = compare_with_peers(config(tmp_path, "train.precision=bf16"), ALONE, rounds=2)
    record = json.loads(json.dumps(found.record(config(tmp_path))))
    assert record["compiled"] == []
    assert len(record["ours_ms"]) == len(record["peers_ms"]) == 2 and record["losses"].keys() == found.losses.keys()
    ratios = Comparison({}, [], 0.0, [1.0, 2.0, 1.0], [1.5, 2.0, 1.4])
    assert ratios.quartiles[1] == 1.4 and "1.400x" in str(ratios)


def test_one_round_has_no_quartiles_and_is_refused_before_anything_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr(against_peers, "Sides", None)
    with pytest.raises(LaddError, match="--rounds 2"):
        compare_with_peers(config(tmp_path), ALONE, rounds=1)


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        ("engine=fsdp2", "engine=local"),
        ("method.loss=softplus", "method.loss=hinge"),
        ("method.mismatched_weight=1", "method.mismatched_weight=0"),
        ("discriminator.convolve=line", "discriminator.convolve=grid"),
        ("discriminator.student_time=true", "discriminator.student_time=false"),
        ("train.micro_batch=2", "leave train.micro_batch out"),
    ],
)
def test_what_peers_do_not_have_is_refused(tmp_path, wrong, remedy):
    with pytest.raises(LaddError, match=remedy):
        Sides(config(tmp_path, wrong), ALONE)
