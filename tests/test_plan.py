"""The planner: cards, links, needs, time, advice, and its launcher."""

import json
import runpy
import sys
from contextlib import suppress
from dataclasses import replace
from math import prod
from unittest.mock import patch

import pytest
from conftest import ROOT, TINY

from ladd_dist.checkpoints.room import checkpoint_bytes, missing_room
from ladd_dist.config import load
from ladd_dist.data.buckets import LatentSpace
from ladd_dist.engines.entry import Residency
from ladd_dist.engines.registry import engine_entry
from ladd_dist.errors import LaddError
from ladd_dist.methods.registry import method_of
from ladd_dist.planning.activations import checkpointed
from ladd_dist.planning.advice import Advice, _plans, advise, recomputations, with_overrides
from ladd_dist.planning.cards import CARDS, HOST_AVERAGE, REACHED, UNKNOWN, Card, card_of, read_card
from ladd_dist.planning.cluster import Cluster, Group, collective, sharding_groups
from ladd_dist.planning.costs import Costs
from ladd_dist.planning.measured import MeasuredRun, MeasuredStep, fastest, read_steps
from ladd_dist.planning.memory import on
from ladd_dist.planning.onlookers import resident
from ladd_dist.planning.plan import flops_by_part, largest_bucket, plan, synthesis
from ladd_dist.planning.scale import Row, draw_scale, markdown, scale

BF16, FSDP2, BATCH = "train.precision=bf16", "engine=fsdp2", "train.global_batch=64"
STEPS = str(ROOT / "docs/benchmarks/step.json")
PAIR = Cluster(CARDS["H100"], 2)
EIGHT = Cluster(CARDS["H100"], 4, 2)


def tiny(*overrides):
    return load(TINY, [BF16, BATCH, *overrides])


@pytest.fixture(scope="module")
def costs():
    config = tiny()
    return Costs(config, largest_bucket(config), CARDS["H100"].device)


def test_an_unknown_card_is_refused_with_the_known_ones_and_a_way_out():
    with pytest.raises(LaddError, match="--gpu H1000 is not known: take A100-40GB, .*MI300X.*NAME:memory_GB"):
        card_of("H1000")
    for text in ("X:1,2,3", "X:80,900,3000,none", "X:80,900,3000,-1", "X:80,900,3000,nan"):
        with pytest.raises(LaddError, match=f"--gpu {text}: "):
            read_card(text)
    mine = read_card("Mine:96,500,4000,450")
    assert (mine.memory, mine.bf16, mine.bandwidth, mine.link) == (96e9, 500e12, 4000e9, 450e9)
    assert read_card("h200") is CARDS["H200"]


def test_every_card_names_its_source_and_its_peaks_are_dense():
    for card in CARDS.values():
        assert card.source and card.capability
        assert 10e9 < card.memory < 1e12 and 10e9 < card.link < card.bandwidth < 1e13
        assert 100e12 < card.bf16 < 3000e12


def test_a_collective_goes_at_the_pace_of_its_slowest_link():
    card = CARDS["H100"]
    cluster = Cluster(card, 8, 4, nic=50e9)
    inside = collective(cluster, Group(8, 1), 8e9, 1)
    assert inside.between == 0 and inside.inside == pytest.approx(7e9)
    assert inside.seconds == pytest.approx(7e9 / (card.link * 0.8), rel=0.01)
    # 32 GPUs: a node's eight ports carry one ring each, an eighth of the bytes.
    across = collective(cluster, Group(8, 4), 32e9, 1)
    assert across.between == pytest.approx(31e9 / 8) and across.inside == pytest.approx(31e9 * 7 / 8)
    assert across.seconds == pytest.approx(31e9 / (400e9 * 0.8), rel=0.01)
    # One rank of each node: its own port alone.
    assert collective(cluster, Group(1, 4), 4e9, 1).seconds == pytest.approx(3e9 / (50e9 * 0.8), rel=0.01)
    twice = collective(cluster, Group(1, 4), 4e9, 1, rounds=2)
    assert twice.between == pytest.approx(2 * 3e9)
    assert collective(cluster, Group(1, 1), 1e9, 1).seconds == 0
    # Small messages wait for every step of the ring.
    assert collective(cluster, Group(8, 4), 1, 10).seconds == pytest.approx(10 * (8.4 + 28 * 3.4 + 3 * 9.6) * 1e-6)


@pytest.mark.parametrize(
    ("replicas", "shard", "alike"),
    [(1, (4, 2), (1, 1)), (2, (4, 1), (1, 2)), (4, (2, 1), (2, 2)), (8, (1, 1), (4, 2))],
)
def test_replicas_share_nodes_from_the_inside(replicas, shard, alike):
    assert sharding_groups(EIGHT, replicas) == (Group(*shard), Group(*alike))


@pytest.mark.parametrize("replicas", [2, 8])
def test_replicas_of_parts_of_nodes_have_no_known_time(replicas):
    with pytest.raises(
        LaddError, match=f"fsdp2.replicas={replicas} shards over {24 // replicas} ranks, which neither"
    ):
        sharding_groups(Cluster(CARDS["H100"], 8, 3), replicas)


def test_memory_is_the_state_and_what_comes_on_top(costs):
    config = tiny(FSDP2, "teacher.placement=shard", "train.ema_device=cpu")
    made = plan(config, PAIR, costs)
    state = resident(config, 2)
    extra = {"activations", "workspace", "gathered"}
    device = made.needs.device
    held = sum(size for kind, size in device.items() if kind not in extra)
    # At the worst moment of an only micro-batch there are no gradients yet; a second one finds those of the first.
    assert not made.needs.worst.reached and held == on(state, "device") - state["device", "gradients"]
    assert all(device[kind] > 0 for kind in extra)
    again = tiny(FSDP2, "teacher.placement=shard", "train.micro_batch=16", "method.fake_pass=two_pass")
    assert plan(again, PAIR, costs).needs.device["gradients"] == state["device", "gradients"]
    # Of the student half of masters, moments and average, of the heads all but gradients and an average.
    heads = sum(p.numel() for p in costs.networks.trained["heads"].parameters())
    copied = sum(size for (_, kind), size in state.items() if kind in ("masters", "moments", "ema")) + 2 * 4 * heads
    assert copied == pytest.approx(checkpoint_bytes(config) / 2 + 4 * heads, rel=0.01)
    kept = {kind: state["host", kind] for kind in ("ema", "watched")}
    assert made.needs.host == {**kept, "checkpoint copy": copied}


def test_time_follows_what_is_scarce(costs):
    config = tiny(FSDP2)
    fast = plan(config, PAIR, costs).time
    half = replace(PAIR, card=replace(PAIR.card, bf16=PAIR.card.bf16 / 2))
    assert plan(config, half, costs).time.arithmetic == pytest.approx(2 * fast.arithmetic)
    starved = replace(EIGHT, nic=1e3)
    assert plan(config, starved, costs).time.bound == "network"
    slow = replace(PAIR, storage=1e3)
    assert plan(config, slow, costs).time.bound == "data"
    twice = plan(tiny(FSDP2, "method.mismatched_weight=0.5"), slow, costs).time
    assert twice.data == 2 * plan(config, slow, costs).time.data, "another sample is read with each"
    assert plan(config, replace(PAIR, card=replace(PAIR.card, bandwidth=1e9)), costs).time.bound == "memory"
    assert plan(config, replace(PAIR, card=replace(PAIR.card, bf16=1e6)), costs).time.bound == "compute"


def test_zero3_waits_for_weights_of_passes_that_deepspeed_does_not_expect(costs):
    def time(*overrides):
        return plan(tiny("engine=zero3", *overrides), PAIR, costs).time

    one, two = time(), time("method.fake_pass=two_pass")
    sharded = time("teacher.placement=shard")
    fsdp2 = plan(tiny(FSDP2, "teacher.placement=shard"), PAIR, costs).time
    assert two.alone > 1.5 * one.alone and sharded.alone > 1.5 * one.alone
    assert sharded.alone > fsdp2.alone and sharded.sent.inside == pytest.approx(fsdp2.sent.inside)
    assert sharded.network + sharded.alone == pytest.approx(fsdp2.network + fsdp2.alone)


def test_recomputing_takes_time_and_adds_nothing_to_the_models_arithmetic(costs):
    kept, selective, recomputed = (
        plan(tiny(FSDP2, f"student.activation_checkpointing={what}"), PAIR, costs)
        for what in ("false", "selective", "true")
    )
    assert recomputed.time.arithmetic > selective.time.arithmetic > kept.time.arithmetic
    assert recomputed.time.launches > selective.time.launches > kept.time.launches
    assert recomputed.time.memory >= selective.time.memory > kept.time.memory
    assert recomputed.time.model_flops == selective.time.model_flops == kept.time.model_flops
    assert recomputed.needs.worst.bytes < selective.needs.worst.bytes < kept.needs.worst.bytes


def by_engine(costs, cluster, *overrides):
    """Launches, and bytes as of casts, that an engine adds to passes, in four micro-batches of the two-pass order."""
    config = tiny(*overrides, "method.fake_pass=two_pass", f"train.micro_batch={16 // cluster.gpus}")
    bare = replace(engine_entry(config.engine), residency=lambda config: Residency())
    times = [plan(config, replace(cluster, host=0), costs).time]
    with patch("ladd_dist.planning.timing.engine_entry", lambda name: bare):
        times.append(plan(config, replace(cluster, host=0), costs).time)
    ours, without = times
    assert ours.arithmetic == without.arithmetic
    seconds = ours.memory - without.memory
    return ours.launches - without.launches, seconds * cluster.card.bandwidth * REACHED.casts


def size_of(net):
    """Blocks and what is outside of them, tensors, and elements."""
    sizes = [p.numel() for p in net.parameters()]
    return net.depth + 1, len(sizes), sum(sizes)


@pytest.mark.parametrize(("how", "passes"), [("false", 4), ("true", 5)])
def test_one_process_casts_its_weights_and_their_gradients(costs, how, passes):
    """In a pass without a graph, one with, and of gradients; recomputed, again."""
    units, _, size = size_of(costs.networks.trained["student"])
    alone, recompute = Cluster(CARDS["H100"], 1), f"student.activation_checkpointing={how}"
    launches, moved = by_engine(costs, alone, "engine=local", recompute)
    # Of four micro-batches three add their gradients to what is there.
    assert launches == pytest.approx(units * (4 * (passes - 1) + 3))
    assert moved == pytest.approx(size * (6 * 4 * (passes - 1) + 12 * 3))


def test_fsdp2_copies_weights_out_of_what_it_gathers(costs):
    """The student's in two passes forward and one backward, a sharded teacher's in three and one."""
    units, tensors, size = size_of(costs.networks.trained["student"])
    launches, moved = by_engine(costs, PAIR, FSDP2)
    gathered, reduced, added = size * (6 + 4) / 2 + 4 * size, 6 * size, 12 * size / 2
    assert launches == pytest.approx(4 * (3 * 4 + 2) * units + 3 * tensors)
    assert moved == pytest.approx(4 * (3 * gathered + reduced) + 3 * added)
    sharded, more = by_engine(costs, PAIR, FSDP2, "teacher.placement=shard")
    units, _, size = size_of(costs.networks.frozen["teacher"])
    assert sharded - launches == pytest.approx(4 * 4 * 3 * units)
    assert more - moved == pytest.approx(4 * 4 * (4 * size / 2 + 4 * size))
    replicas, _ = by_engine(costs, PAIR, FSDP2, "fsdp2.replicas=2")
    units, tensors, _ = size_of(costs.networks.trained["student"])
    assert replicas - launches == pytest.approx(3 * units + units - 3 * tensors), "sums by blocks; averaged once"


def test_zero3_launches_for_each_tensor(costs):
    _, tensors, size = size_of(costs.networks.trained["student"])
    launches, moved = by_engine(costs, PAIR, "engine=zero3")
    gathered, reduced, added = 4 * size * (1 + 1 / 2), 6 * size, 12 * size / 2
    assert launches == pytest.approx(4 * (3 + 2) * tensors)
    assert moved == pytest.approx(4 * (3 * gathered + reduced + added))


def test_a_slow_host_is_waited_for_and_launches_less_in_larger_micro_batches(costs):
    def time(host, *overrides):
        return plan(tiny(FSDP2, "method.fake_pass=two_pass", *overrides), replace(PAIR, host=host), costs).time

    fast, slow = time(0, "train.micro_batch=2"), time(1, "train.micro_batch=2")
    assert fast.waiting == fast.host == 0 and slow.host == slow.launches
    assert slow.computing == pytest.approx(slow.host), "the GPU is idle in every pass"
    assert slow.bound == "host" and slow.seconds == slow.computing + slow.alone
    assert time(1, "train.micro_batch=4").launches == pytest.approx(slow.launches / 2, rel=0.01)
    compiled = time(1, "train.micro_batch=2", "student.compile=true", "teacher.compile=true")
    assert 0 < compiled.launches < slow.launches / 3, "heads are not compiled"


def test_replicas_send_less_between_nodes_only_where_they_shard_within(costs):
    one, two = (plan(tiny(FSDP2, f"fsdp2.replicas={count}"), EIGHT, costs).time.sent for count in (1, 2))
    assert two.between < one.between


def test_a_dataset_costs_two_passes_a_step_with_guidance(costs):
    config = tiny()
    with_guidance = synthesis(config, PAIR, costs, 10)
    without = synthesis(tiny("synthesis.guidance=1"), PAIR, costs, 10)
    assert with_guidance.flops == 2 * without.flops
    forward = costs.of(
        next(p for p in method_of(config).passes(config) if p.network == "teacher"), False
    ).forward.flops
    # Data is drawn to the velocity, which is a layer behind the last features.
    assert forward < without.flops / (10 * config.synthesis.steps) < 1.02 * forward


@pytest.mark.parametrize("changed", [["discriminator.blocks=[0]"], ["teacher.float8=true"]])
def test_a_dataset_costs_the_whole_teacher_whatever_the_discriminator_makes_of_it(costs, changed):
    config = tiny(*changed)
    own = Costs(config, largest_bucket(config), CARDS["H100"].device)
    assert synthesis(config, PAIR, own, 10) == synthesis(tiny(), PAIR, costs, 10)


def test_pairs_hold_two_latents():
    pairs = load(ROOT / "configs/tiny_dpo.yaml", [BF16])
    latents = [
        Costs(config, largest_bucket(config), CARDS["H100"].device).sample_bytes
        for config in (pairs, load(ROOT / "configs/tiny_dpo.yaml", [BF16, "method={name: flow_matching}"]))
    ]
    space = LatentSpace.of(pairs.teacher.path)
    assert latents[0] - latents[1] == 2 * prod(space.shape(largest_bucket(pairs)))


def test_advice_is_the_fastest_that_fits(costs):
    found = advise(tiny(), PAIR, costs, 0)
    assert found.plan.fits and not found.remedy
    assert found.plan.config.engine in ("fsdp2", "zero3")
    given = plan(tiny(FSDP2), PAIR, costs, 0)
    assert found.plan.time.seconds <= given.time.seconds * 1.01
    # Where activations do not fit, they are recomputed, or fewer samples are taken at once.
    room = round(given.needs.total * 0.5)
    less = advise(tiny(), replace(PAIR, card=replace(PAIR.card, memory=room)), costs, 0)
    assert less.plan.needs.total <= room and less.overrides


@pytest.mark.parametrize("batch", [6, 10, 12, 48])
@pytest.mark.parametrize("engine", [["engine=fsdp2"], ["engine=fsdp2", "fsdp2.replicas=2"]])
def test_advice_is_never_slower_than_what_is_configured_and_fits(costs, batch, engine):
    for micro_batch, fake_pass in ((batch // 2, "shared"), (batch // 2, "two_pass"), (1, "two_pass")):
        given = [f"train.global_batch={batch}", f"train.micro_batch={micro_batch}", f"method.fake_pass={fake_pass}"]
        config = tiny(*engine, *given, "teacher.activation_checkpointing=true")
        configured, found = plan(config, PAIR, costs, 0), advise(config, PAIR, costs, 0)
        assert configured.fits and found.plan.time.seconds <= configured.time.seconds


def test_only_what_is_sharded_waits_for_gathers(costs):
    """Of a teacher that is whole on every rank nothing is sent, and no call is waited for."""
    method = method_of(tiny())
    runs, depth = method.forward_backward(tiny()), costs.networks.trained["student"].depth
    calls = []
    for placement in ("replicate", "shard"):
        config = tiny(FSDP2, f"teacher.placement={placement}")
        free = Card("free", "free", 80e9, 1e15, 1e12, 1e30, UNKNOWN, "")
        seconds = plan(config, Cluster(free, 2), costs).time.network
        calls.append(seconds / (8.4e-6 + 3.4e-6))
    reduced = depth + 1
    assert calls[0] == pytest.approx(runs["student"] * (depth + 1) + reduced)
    assert calls[1] - calls[0] == pytest.approx(runs["teacher"] * (costs.networks.frozen["teacher"].depth + 1))


@pytest.mark.parametrize(
    ("card", "override", "words"),
    [
        ("A100-80GB", "teacher.float8=true", "needs compute capability 8.9, and A100-80GB has 8.0"),
        ("MI300X", "student.float8=true", "needs compute capability 8.9, and MI300X has gfx942"),
        ("MI300X", "kernels.attention=triton", r"there are no kernels for MI300X \(gfx942\): set auto"),
        ("MI300X", "kernels.heads=triton", r"there are no kernels for MI300X \(gfx942\): set auto"),
    ],
)
def test_what_a_card_cannot_do_is_not_planned(costs, card, override, words):
    with pytest.raises(LaddError, match=words):
        plan(tiny(FSDP2, override), replace(PAIR, card=CARDS[card]), costs)
    plan(tiny(FSDP2, override), PAIR, costs)
    plan(tiny(FSDP2, override), replace(PAIR, card=read_card("X:80,900,3000,400")), costs)


def test_memory_is_the_same_whatever_was_planned_before():
    config, alone = tiny("engine=local"), Cluster(CARDS["H100"], 1)
    again = tiny("engine=local", "train.micro_batch=1", "method.fake_pass=two_pass")

    def needed(*configs):
        costs = Costs(config, largest_bucket(config), CARDS["H100"].device)
        return {each.train.micro_batch: plan(each, alone, costs).needs.device for each in configs}

    assert needed(config, again) == needed(again, config)


def test_advice_recomputes_as_little_as_fits(costs):
    """Of all that might be recomputed instead, whether it was tried or not, nothing that fits is faster."""
    most = plan(tiny(FSDP2), PAIR, costs, 0).needs.total
    recommended = []
    for share in (0.4, 0.5, 0.6, 0.7):
        cluster = replace(PAIR, card=replace(PAIR.card, memory=round(most * share)))
        best = advise(tiny(), cluster, costs, 0).plan
        ways = [with_overrides(best.config, overrides) for overrides in recomputations(best.config)]
        plans = [plan(way, cluster, costs, 0) for way in ways if way]
        assert len(plans) == 9
        assert best.time.seconds <= 1.01 * min(made.time.seconds for made in plans if made.fits)
        recommended += [checkpointed(best.config, network) for network in ("student", "teacher")]
    assert set(recommended) == {False, "selective", True}, recommended


def test_advice_names_the_least_that_would_fit(costs):
    least = [FSDP2, "teacher.placement=shard", "method.fake_pass=two_pass", "train.micro_batch=1"]
    least += [f"{network}.activation_checkpointing=true" for network in ("student", "teacher")]
    smallest = plan(tiny(*least, "train.ema_device=cpu"), PAIR, costs, 0).needs.total
    tight = replace(PAIR, card=replace(PAIR.card, memory=smallest * 1.001))
    assert advise(tiny(), tight, costs, 0).remedy.startswith("8-bit moments")
    hopeless = replace(PAIR, card=replace(PAIR.card, memory=1e3))
    with pytest.raises(LaddError, match="nothing fits on a H100: .* GB are needed at the least"):
        advise(tiny(), hopeless, costs, 0)


def test_of_the_remedies_the_fastest_is_advised(costs):
    """More memory than the least leaves more activations where they are, and may take less time."""
    eight, average = {"student_optimizer.state": "8bit"}, {"train.ema_device": "cpu"}
    remedied = [with_overrides(tiny(), changes) for changes in (eight, average, eight | average)]
    hopeless = replace(PAIR, card=replace(PAIR.card, memory=1e3))  # or ways that take less are not looked at
    least = min(made.needs.total for _, made in _plans(tiny(), hopeless, costs, 0))
    later = 0
    for share in (0.9, 0.95, 0.999):
        cluster = replace(PAIR, card=replace(PAIR.card, memory=round(least * share)))
        found = advise(tiny(), cluster, costs, 0)
        alone = []
        for config in remedied:
            with suppress(LaddError):
                alone.append(advise(config, cluster, costs, 0))
        fitting = [each.plan.time.seconds for each in alone if not each.remedy]
        assert found.remedy and found.plan.time.seconds <= 1.01 * min(fitting)
        later += found.plan.time.seconds * 1.01 < fitting[0]
    assert later, "where the first that fits is the fastest, nothing is shown"


def test_an_average_in_host_memory_moves_beside_the_passes(costs):
    config, alone = tiny("engine=local"), Cluster(CARDS["H100"], 1)
    there, here = (plan(c, alone, costs).time for c in (tiny("engine=local", "train.ema_device=cpu"), config))
    moved = 4 * sum(p.numel() for p in costs.networks.trained["student"].parameters())
    saved = 3 * moved / (CARDS["H100"].bandwidth * REACHED.memory)
    assert here.memory - there.memory == pytest.approx(saved) and here.average == 0
    assert there.average == pytest.approx(moved / HOST_AVERAGE)
    slow = replace(there, average=2 * there.computing)
    assert slow.seconds == pytest.approx(slow.average + slow.alone) and slow.bound == "host"


def test_times_are_known_in_bf16_alone(costs):
    with pytest.raises(LaddError, match=r"train\.precision=fp32: .* set bf16"):
        plan(load(TINY, []), Cluster(CARDS["H100"], 1), costs)


def test_scale_has_a_row_for_every_size(costs, monkeypatch):
    monkeypatch.setattr("ladd_dist.planning.scale.SIZES", (1, 8))
    rows = list(scale(tiny(), Cluster(CARDS["H200"], 8), costs, 0))
    assert [row.gpus for row in rows] == [1, 8] and all(row.cost for row in rows)
    assert len(markdown(rows)) == 4
    rows = list(scale(tiny(), Cluster(CARDS["H200"], 3), costs, 0))  # in whole nodes, each GPU with as many samples
    assert [row.gpus for row in rows] == [1, 6] and all(row.cost for row in rows)


def measured(setting, seconds, *overrides, device="NVIDIA H200"):
    phases = {"teacher forward": seconds, "student backward": 3 * seconds, "optimizer": 0.5, "average": 1.5}
    return {
        "config": TINY,
        "setting": setting,
        "overrides": [BF16, *overrides],
        "device": device,
        "samples": 4,
        "seconds": sum(phases.values()),
        "phases": phases,
        "peak": 3e9,
    }


def test_the_fastest_measured_step_of_the_same_networks_is_found(costs, tmp_path):
    rows = [
        measured("slow", 3.0),
        measured("right", 2.0, "train.micro_batch=1", "method.fake_pass=two_pass"),
        measured("of adapters", 1.0, "student.lora={rank: 4}"),
        measured("of narrower heads", 1.0, "discriminator.width=16"),
        measured("of smaller pictures", 1.0, "synthesis.buckets=[32x32]"),
        measured("of another card", 1.0, device="NVIDIA B200"),
        {"config": TINY, "setting": "failed", "overrides": [], "error": "out of memory"},
    ]
    file = tmp_path / "step.json"
    file.write_text(json.dumps(rows))
    steps = read_steps(file)
    assert len(steps) == 6
    run = fastest(steps, tiny(), CARDS["H200"], costs)
    assert run and run.step.setting == "right"
    # Four samples: 2 s forward and 6 backward; 64 of them, and one update of 2 s.
    assert (run.step.passes, run.batch, run.seconds) == (2.0, 64, 130.0)
    assert run.mfu == pytest.approx(64 * run.flops / 130 / CARDS["H200"].bf16)
    two_pass, shared = (
        sum(flops_by_part(tiny(f"method.fake_pass={order}"), costs).values()) for order in ("two_pass", "shared")
    )
    assert run.flops == two_pass > shared
    assert fastest(steps, tiny(), CARDS["H100"], costs) is None


def test_what_was_measured_stands_in_table_and_picture(costs, tmp_path):
    rows = {"H200": [Row(1, Advice({}, plan(tiny(), Cluster(CARDS["H200"], 1), costs, 0)))]}
    run = MeasuredRun(MeasuredStep.of(measured("by hand", 2.0)), CARDS["H200"], 64, 1e15)
    head, _, there, _ = markdown(rows["H200"], run)
    assert there.count("|") == head.count("|")
    assert "**measured**: tiny_cpu.yaml, by hand | 3 | 130 | " in there
    # A million samples by 64 in 130 s.
    assert there.endswith(f" | 0.4923 | {1e6 / 64 * 130 / 3600:.0f} |")
    drawn = {}
    for name, marked in (("predicted", {}), ("measured", {"H200": run})):
        draw_scale(rows, marked, tmp_path / f"{name}.png")
        drawn[name] = (tmp_path / f"{name}.png").read_bytes()
    assert drawn["predicted"] != drawn["measured"]


@pytest.mark.parametrize("content", [None, "not JSON", '[{"setting": "no more"}]', "[1]"])
def test_a_file_without_measured_steps_is_named(content, tmp_path):
    file = tmp_path / "step.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(LaddError, match=rf"{file} has no rows of launchers/step.py \(.*: take docs/benchmarks/"):
        read_steps(file)


@pytest.mark.parametrize(
    ("student", "teacher", "words"),
    [
        ("false", "false", "nothing recomputed"),
        ("true", "true", "student and teacher recomputed"),
        ("selective", "false", "student recomputed selectively"),
        ("selective", "true", "student recomputed selectively and teacher recomputed"),
    ],
)
def test_rows_say_what_is_recomputed(costs, student, teacher, words):
    config = tiny(f"student.activation_checkpointing={student}", f"teacher.activation_checkpointing={teacher}", FSDP2)
    *_, row = markdown([Row(2, Advice({}, plan(config, PAIR, costs, 0)))])
    assert f", {words}, teacher " in row


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["launchers/plan.py", "--config", TINY, *args])
    runpy.run_path("launchers/plan.py", run_name="__main__")


def test_the_launcher_prints_writes_and_draws(monkeypatch, capsys, tmp_path):
    json_file, png = tmp_path / "plan.json", tmp_path / "plan.png"
    overrides = [BF16, f"run_dir={tmp_path}", "guard.on_collapse=go_back"]
    run(
        monkeypatch,
        "--gpu",
        "H200",
        "--gpus-per-node",
        "1",
        "--images",
        "1000",
        "--storage",
        "1",
        "--json",
        str(json_file),
        "--picture",
        str(png),
        *overrides,
    )
    out = capsys.readouterr().out
    assert out.startswith("Predicted from shapes and ceilings: nothing below was measured on these GPUs.")
    for part in (
        "waiting for the host",
        "activations",
        "student backward",
        "teacher input gradient",
        "bound by",
        "beside them network 0 ms, data ",
        "GPU-hours",
        "recommended:",
        f"{missing_room(load(TINY, overrides)) / 1e9:.4g} GB at the most",  # of a run that has none yet
    ):
        assert part in out
    written = json.loads(json_file.read_text())
    assert written["configured"]["predicted"] is True and written["synthesis"]["images"] == 1000
    assert png.read_bytes().startswith(b"\x89PNG")


def test_the_launcher_prints_memory_against_time(monkeypatch, capsys):
    run(monkeypatch, "--gpu", "H200", "--gpus-per-node", "1", "--recomputation", BF16)
    _, title, _, head, _, *rows = capsys.readouterr().out.splitlines()
    assert title == "H200 x 1, predicted:" and len(rows) == 9
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (head, *rows)]
    assert cells[1][:2] == ["kept", "kept"] and cells[1][4] == "0.0"
    assert ["recomputed", "recomputed selectively"] in [row[:2] for row in cells]
    assert all(len(row) == len(cells[0]) for row in cells)


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--gpu", "H1000", BF16], "error: --gpu H1000 is not known: take "),
        (["--gpu", "H100", "--gpu", "H200", BF16], "error: --gpu: several types are compared with --scale and "),
        (["--gpu", "X:0.001,100,100,100", BF16], "error: nothing fits on a X: "),
        (["--gpu", "H200", "--measured", STEPS, BF16], "error: --measured: only --scale shows it"),
        (
            ["--gpu", "H200", "--scale", "--measured", STEPS, BF16],
            f"error: --measured {STEPS}: no row is of these networks on H200",
        ),
    ],
)
def test_bad_input_is_one_line(monkeypatch, capsys, args, line):
    with pytest.raises(SystemExit) as left:
        run(monkeypatch, "--gpus-per-node", "1", *args)
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith(line)


@pytest.mark.parametrize(
    ("flag", "file", "line"),
    [
        ("--json", "missing/plan.json", "cannot be written: name a file in a folder that lets you"),
        ("--json", ".", "is a folder: name a file in it"),
        ("--picture", "missing/plan.png", "cannot be written: name a file in a folder that lets you"),
        ("--picture", "plan.xyz", "must end in .png or .svg or .pdf"),
        ("--picture", "plan", "must end in .png or .svg or .pdf"),
    ],
)
def test_what_could_not_be_written_is_refused_before_the_work(monkeypatch, capsys, tmp_path, flag, file, line):
    place = f"{tmp_path}/{file}"
    with pytest.raises(SystemExit) as left:
        run(monkeypatch, "--gpu", "H1000", flag, place)  # a card that is refused when the work begins
    assert left.value.code == 2
    assert capsys.readouterr().err.endswith(f"error: argument {flag}: {place} {line}\n")
