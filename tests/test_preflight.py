"""Preflight: judgements as functions of measurements, and real faults among three nodes with links of their own."""

import ctypes
import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from importlib.metadata import PackageNotFoundError
from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch.distributed as dist
from conftest import ALONE, TINY, tiny_config, tiny_overrides
from hypothesis import given
from hypothesis import strategies as st
from launch import join, launch
from ranks import Ranks

from ladd_dist import versions
from ladd_dist.checkpoints.folders import step_folder
from ladd_dist.checkpoints.room import checkpoint_bytes, missing_room
from ladd_dist.config import Config
from ladd_dist.data.handing_over import handed_over
from ladd_dist.data.mds import Manifest
from ladd_dist.data.reader import LatentReader
from ladd_dist.distributed import connection
from ladd_dist.distributed.world import World
from ladd_dist.errors import EXIT_PEER_LOST, LaddError, PeerLost
from ladd_dist.preflight import board, clocks, collectives, folder, identity, links, memory
from ladd_dist.preflight.clocks import Visit, apart
from ladd_dist.preflight.findings import Finding, RankPlace, failures, odd_one, table
from ladd_dist.preflight.jobs import JOBS, judge_pieces
from ladd_dist.preflight.links import Link, Pair
from ladd_dist.preflight.run import preflight
from ladd_dist.supervision import exits
from ladd_dist.training.trainer import Trainer

GB = 10**9


def places(*nodes: int) -> list[RankPlace]:
    return [RankPlace(rank, f"n{node}", node) for rank, node in enumerate(nodes)]


THREE = places(0, 1, 2)


# --- judgements


def own(**changes: object) -> identity.Identity:
    return replace(identity.Identity({"seed": "0"}, "c0de", {"dataset": "da7a"}, VERSIONS, "", ""), **changes)


VERSIONS = {"ladd_dist": "0.1.0", "torch": "2.15.0", "NCCL": "2.27.3", "driver": "580.1"}


def refusals(*ranks: identity.Identity) -> list[str]:
    return failures(identity.judge(ranks, places(*range(len(ranks)))))


def test_ranks_of_one_mind_have_nothing_against_them() -> None:
    found = identity.judge([own()] * 3, THREE)
    assert [finding.status for finding in found] == ["ok"] * 4


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"settings": {"seed": "1"}}, "rank 2 (host n2) has seed=1, most have 0: start every rank with the same"),
        ({"code": "bad"}, "code differs: rank 2 (host n2) has 0.1.0, sources bad, most have 0.1.0, sources c0de"),
        (
            {"inputs": {"dataset": "bad"}},
            "dataset differs: rank 2 (host n2) has bad, most have da7a: give every node",
        ),
        (
            {"versions": VERSIONS | {"NCCL": "2.1"}},
            "rank 2 (host n2) has NCCL 2.1, most have 2.27.3: install the same",
        ),
        ({"problem": "no dataset: x"}, "rank 2 (host n2), not on every rank: no dataset: x"),
    ],
)
def test_the_rank_that_differs_is_named(changes: dict, line: str) -> None:
    (refusal,) = refusals(own(), own(), own(**changes))
    assert refusal.startswith(line)


def test_another_driver_is_a_warning() -> None:
    found = identity.judge([own(), own(versions=VERSIONS | {"driver": "570"})], THREE[:2])
    assert [f.text for f in found if f.status == "warning"] == [
        "rank 1 (host n1) has driver 570, most have 580.1: the slowest sets the pace"
    ]


def test_what_is_wrong_everywhere_is_said_as_the_job_would_say_it() -> None:
    assert refusals(*[own(problem="no dataset: x")] * 3) == ["no dataset: x"]


def test_two_ranks_on_one_gpu_are_refused() -> None:
    (refusal,) = refusals(own(device="a"), own(device="b"), own(device="a"))
    assert refusal.startswith("rank 2 (host n2) and rank 0 (host n0) have the same GPU: start as many ranks")


@given(st.lists(st.integers(0, 2), min_size=1, max_size=12))
def test_the_odd_one_is_in_a_minority(values: list[int]) -> None:
    odd = odd_one(values)
    if odd is None:
        assert len(set(values)) == 1
        return
    assert values[odd.rank] != values[odd.usual]
    assert all(values.count(values[odd.usual]) >= values.count(value) for value in values)
    assert odd.ranks == sum(value != values[odd.usual] for value in values)


def test_memory_is_held_against_what_is_free() -> None:
    def ranks(device: int, host: int, shared: int) -> list[memory.Memory]:
        free = memory.Memory(memory.Needs(), 80 * GB, 80 * GB, 64 * GB, GB)
        return [free, replace(free, needs=memory.Needs(device * GB, host * GB, shared * GB)), free]

    def refused(device: int = 0, host: int = 0, shared: int = 0) -> list[str]:
        return failures(memory.judge(ranks(device, host, shared), THREE, workers=2))

    assert refused(80, 64, 0) == []
    (line,) = refused(device=81)
    assert line.startswith("81 GB of state, 80 GB of 80 GB free on rank 1 (host n1): ")
    (line,) = refused(host=65)
    assert line.startswith("65 GB of host memory needed, 64 GB free on host n1: take more nodes")
    (line,) = refused(shared=2)
    assert line.startswith("2 GB of /dev/shm needed, 1 GB free on host n1: ") and "data.workers=2" in line


def test_a_gpu_that_is_full_is_its_nodes_fault_unless_all_are() -> None:
    full, free = (memory.Memory(memory.Needs(device=70 * GB), gb * GB, 80 * GB, 64 * GB, GB) for gb in (60, 80))
    assert memory.judge([free, free, full], THREE, 0)[0].hosts == ("n2",)
    assert memory.judge([full] * 3, THREE, 0)[0].hosts == ()


def test_ranks_of_one_node_share_its_memory() -> None:
    ranks = [memory.Memory(memory.Needs(host=40 * GB), 0, 0, 64 * GB, GB)] * 3
    assert failures(memory.judge(ranks, THREE, 0)) == []
    (line,) = failures(memory.judge(ranks, places(0, 1, 1), 0))
    assert line.startswith("80 GB of host memory needed, 64 GB free on host n1")


UNLIMITED = 9223372036854771712
"""As version 1 of control groups says it."""
JOB = "system.slice/slurmstepd.scope/job_42"
GROUPS: dict[str, tuple[str, dict[str, object], int]] = {
    "none": ("", {}, 64),
    "no limit": (f"0::/{JOB}/step_0/user/task_0", {f"{JOB}/memory.max": "max"}, 64),
    "a job's": (
        f"0::/{JOB}/step_0/user/task_0",
        {f"{JOB}/memory.max": 8 * GB, f"{JOB}/step_0/memory.max": "max", f"{JOB}/step_0/user/memory.max": 9 * GB},
        8,
    ),
    "more than is free": (f"0::/{JOB}", {f"{JOB}/memory.max": 65 * GB}, 64),
    "another job's": (f"0::/{JOB}", {f"{JOB}1/memory.max": 8 * GB}, 64),
    "a container's": ("0::/", {"memory.max": 8 * GB}, 8),
    "a container's that sees the node's name of it": ("0::/kubepods/pod1", {"memory.max": 8 * GB}, 8),
    "version 1, a job's": (
        "9:name=systemd:/x\n5:cpuset,memory:/slurm/uid_0/job_42/step_0\n1:cpu:/",
        {
            "memory/memory.limit_in_bytes": UNLIMITED,
            "memory/slurm/uid_0/job_42/memory.limit_in_bytes": 8 * GB,
            "memory/slurm/uid_0/job_42/step_0/memory.limit_in_bytes": UNLIMITED,
        },
        8,
    ),
    "version 1 beside version 2": ("4:memory:/job_42\n0::/", {"memory/job_42/memory.limit_in_bytes": 8 * GB}, 8),
    "version 1, no limit": ("4:memory:/", {"memory/memory.limit_in_bytes": UNLIMITED}, 64),
}


@pytest.mark.parametrize(("own", "limits", "free"), GROUPS.values(), ids=GROUPS)
def test_a_jobs_limit_is_found_wherever_it_lies_above_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, limits: dict[str, object], free: int
) -> None:
    (tmp_path / "meminfo").write_text(f"MemTotal: {80 * GB // 1024} kB\nMemAvailable: {64 * GB // 1024} kB\n")
    (tmp_path / "cgroup").write_text(f"{own}\n" if own else "")
    for name, limit in limits.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(f"{limit}\n")
    for constant, name in {"_MEMINFO": "meminfo", "_OWN_GROUPS": "cgroup", "_GROUPS": "groups"}.items():
        monkeypatch.setattr(memory, constant, tmp_path / name)
    assert memory.memory(memory.Needs(), ALONE).host_free == free * GB


def test_the_fullest_disk_and_the_slowest_writer_are_named() -> None:
    ranks = [folder.Written("a", 0.1, 100 * GB, 200 * GB, ""), folder.Written("b", 1.0, 10 * GB, 200 * GB, "")]

    limits = {"train.hang_timeout=900": 900.0, "x=1000": 1000.0}

    def judged(total: int, at_once: int = 0, ranks: list[folder.Written] = ranks) -> Finding:
        return folder.judge_written(ranks, THREE[:2], "run_dir=r", folder.Room(total * GB, at_once * GB), limits)

    assert judged(10).status == "ok" and "slowest rank 1 (host n1)" in judged(10).text
    assert judged(11).status == "failed" and "11 needed (seen by rank 1 (host n1)): make room" in judged(11).text
    assert judged(11, ranks=[replace(rank, total=0) for rank in ranks]).status == "ok", "it does not say"
    assert judged(10, 20).status == "warning" and "longer than train.hang_timeout=900" in judged(10, 20).text
    full = [ranks[0], folder.Written("b", 0, 0, 0, "No space left on device")]
    assert "run_dir=r cannot be written to by rank 1 (host n1) (No space left on device): " in judged(0, 0, full).text


def test_a_checkpoint_must_be_written_before_ranks_are_killed(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path, dataset)
    monkeypatch.delenv("PET_SHUTDOWN_TIMEOUT", raising=False)
    assert {f.check: f.status for f in preflight(config, ALONE, "train")}["folder"] == "ok"
    monkeypatch.setenv("PET_SHUTDOWN_TIMEOUT", "0")
    said = {f.check: f for f in preflight(config, ALONE, "train")}["folder"]
    assert said.status == "warning"
    assert "longer than PET_SHUTDOWN_TIMEOUT=0, which is the cluster file's signal_seconds" in said.text


def test_ranks_that_would_find_nothing_to_draw_are_counted(tmp_path: Path, dataset: Path) -> None:
    pieces = JOBS["synthesize"].pieces
    assert pieces is not None
    assert pieces(tiny_config(tmp_path, dataset, f"data.path={tmp_path}")) == len(list(dataset.glob("*/part-*"))) > 1
    assert pieces(tiny_config(tmp_path, dataset)) == 0
    assert [judge_pieces(left, 2).status for left in (0, 1, 2, 3)] == ["ok", "warning", "ok", "ok"]
    assert judge_pieces(1, 8).text.startswith("1 parts left for 8 ranks, 7 of them stay idle: start fewer")


def test_the_room_for_a_checkpoint_is_what_one_takes(tmp_path: Path, dataset: Path) -> None:
    config = tiny_config(tmp_path, dataset, "train.iterations=2")
    Trainer(config, ALONE).run()
    taken = sum(file.stat().st_size for file in step_folder(tmp_path, 2).glob("*.safetensors"))
    assert 1 <= taken / checkpoint_bytes(config) < 1.02, "names and shapes come on top"
    assert missing_room(config) == config.train.keep_checkpoints * checkpoint_bytes(config)


def test_what_loader_processes_hand_over_is_what_batches_take(tmp_path: Path, dataset: Path) -> None:
    config = tiny_config(tmp_path, dataset)
    batches = islice(LatentReader(config, Manifest.read(dataset), ALONE), 6)
    tensors = [(b.latents, b.cond.context, b.cond.pooled) for micro in batches for b in micro]
    largest = max(sum(t.numel() * t.element_size() for t in batch) for batch in tensors)
    with_one = handed_over(tiny_config(tmp_path, dataset, "data.workers=1"), 1)
    under_way = with_one - handed_over(config, 1)
    assert 1 <= under_way / (2 * largest) < 1.01, "two are kept ready; numbers of samples come on top"


# --- links


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9))
def test_every_link_of_every_ring_is_measured_in_six_rounds(sizes: list[int]) -> None:
    where = places(*[node for node, size in enumerate(sizes) for _ in range(size)])
    plan = links.rounds(where)
    assert len(plan) <= 6
    for pairs in plan:
        busy = [rank for pair in pairs for rank in pair[1:]]
        assert len(set(busy)) == len(busy), "nobody has two partners"
    found = [pair for pairs in plan for pair in pairs]
    assert len({(kind, frozenset(ends)) for kind, *ends in found}) == len(found)
    for pair in found:
        assert (where[pair.first].node == where[pair.second].node) == (pair.kind == "within a node")
    reached, waiting = set(), {0}
    while waiting:
        reached |= waiting
        waiting = {r for pair in found for r in pair[1:] if set(pair[1:]) & reached} - reached
    assert reached == set(range(len(where))), "links hold all ranks together"


def ring(*speeds: float) -> dict[Pair, float]:
    ends = [*range(len(speeds)), 0]
    return {Pair("between nodes", *pair): speed for pair, speed in zip(pairwise(ends), speeds, strict=True)}


@pytest.mark.parametrize(
    ("speeds", "culprit"),
    [
        (
            (24, 24, 9, 24, 24),
            "9 GB/s between nodes, where 24 are usual: the link of rank 2 (host n2) and rank 3 (host n3):",
        ),
        ((24, 9, 8, 24, 24), "8 GB/s between nodes, where 24 are usual: all links of rank 2 (host n2):"),
        ((24, 9, 8), "8 GB/s between nodes, where 24 are usual: all links of rank 2 (host n2):"),
        ((9, 24, 24, 9, 24), "the link of rank 0 (host n0) and rank 1 (host n1) and 1 more:"),
        ((24, 20, 23, 24, 24), None),
        ((3, 3, 3), None),
    ],
)
def test_a_slow_cable_is_told_from_a_slow_node(speeds: tuple[float, ...], culprit: str | None) -> None:
    found = links.judge_speeds(ring(*speeds), places(*range(len(speeds))), "cuda")
    assert found.status == ("warning" if culprit else "ok")
    assert culprit is None or culprit in found.text


def test_a_dead_link_is_named_by_its_ends() -> None:
    pairs = [Pair("between nodes", 0, 1), Pair("between nodes", 2, 3)]
    alive, dead = Link(0.1), Link(None, "nothing in 30 s")
    assert links.judge_round(pairs, [alive] * 4, places(0, 1, 2, 3)) is None
    found = links.judge_round(pairs, [alive, alive, alive, dead], places(0, 1, 2, 3))
    assert found and found.text.startswith(
        "no way between nodes: rank 2 (host n2) and rank 3 (host n3) cannot reach each other (nothing in 30 s): "
    )


def test_wrong_sums_and_collectives_that_hang_are_named() -> None:
    fine = collectives.Collective("all-reduce", 0.1, True), collectives.Collective("all-gather", 0.1, True)
    good, bad = collectives.Together(fine), collectives.Together((fine[0], replace(fine[1], right=False)))
    stuck = collectives.Together(problem="no end in 90 s")
    assert failures(collectives.judge([good] * 3, THREE, "cuda")) == []
    (line,) = failures(collectives.judge([good, bad, good], THREE, "cuda"))
    assert line.startswith("all-gather gives wrong numbers on rank 1 (host n1): ")
    (line,) = failures(collectives.judge([good, good, stuck], THREE, "cuda"))
    assert line.startswith("collectives of all ranks fail on rank 2 (host n2) (no end in 90 s): ")


# --- clocks

SECONDS = st.floats(0, 100, allow_nan=False)


@given(st.floats(-1e4, 1e4), st.lists(st.tuples(*[SECONDS] * 5), min_size=1, max_size=5))
def test_what_is_said_of_clocks_is_true_whatever_the_network_does(ahead: float, delays: list[tuple]) -> None:
    """Both are inside an all-reduce at one moment; clocks, lateness and ways back are anything."""
    mine, other = [], []
    for moment, *times in delays:
        before, after, other_before, other_after = times
        mine.append(Visit(moment - before + ahead, moment + after + ahead))
        other.append(Visit(moment - other_before, moment + other_after))
    found = apart(mine, other)
    assert found.least - 1e-6 <= ahead <= found.most + 1e-6
    assert found.certain <= abs(ahead) + 1e-6


def test_a_clock_is_odd_from_a_second_on_and_wrong_from_five_minutes_on() -> None:
    def judged(ahead: float) -> Finding:
        at = [Visit(10.0, 10.01)]
        (found,) = clocks.judge([at, [Visit(10.0 + ahead, 10.01 + ahead)]], THREE[:2])
        return found

    assert judged(0.5).status == "ok"
    assert (
        judged(2).status == "warning" and "the clock of rank 1 (host n1) is 2.0 s ahead of that of" in judged(2).text
    )
    assert judged(-400).status == "failed" and "is 400.0 s behind that of rank 0" in judged(-400).text
    assert clocks.judge([[]], THREE[:1]) == []


def test_the_table_is_aligned() -> None:
    lines = table([Finding("a", "ok", "x"), Finding("longer", "warning", "y")])
    assert lines == ["a       ok       x", "longer  warning  y"]


# --- the board


def test_a_rank_that_says_nothing_or_something_else_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "PATIENCE", timedelta(seconds=1))
    two = replace(ALONE, size=2)
    with pytest.raises(PeerLost, match="no word of own/1 in 1 s: look at that rank's node"):
        board.Board(two).collect("own", 1, int)
    notes = board.Board(two)
    notes._store.set("own/1", '{"of": "other code"}')
    with pytest.raises(LaddError, match="not all ranks run the same code"):
        notes.collect("own", 1, int)


# --- one process


def test_alone_it_looks_at_what_one_rank_has(tmp_path: Path, dataset: Path) -> None:
    config = tiny_config(tmp_path / "run", dataset)
    found = preflight(config, ALONE, "train")
    checks = ["config", "code", "dataset", "teacher", "software", "host_memory", "/dev/shm", "folder", "one_folder"]
    assert [f.check.replace(" ", "_") for f in found] == checks
    assert {f.status for f in found} == {"ok"} and not list(tmp_path.iterdir()), "nothing is left"
    with pytest.raises(LaddError, match=r"no dataset at data.path=.*: run launchers/synthesize.py"):
        preflight(tiny_config(tmp_path, tmp_path / "none"), ALONE, "train")
    for job in ("synthesize", "evaluate"):
        assert not failures(preflight(config, ALONE, job))
    (tmp_path / "run" / "evaluation").mkdir(parents=True)
    with pytest.raises(LaddError, match="holds no evaluation of an earlier call"):
        preflight(config, ALONE, "evaluate")


def test_a_checkout_that_nobody_installed_is_looked_at_too(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(versions, "version", version)
    found = {f.check: f.text for f in preflight(tiny_config(tmp_path / "run", dataset), ALONE, "train")}
    assert found["code"].startswith("not installed, sources ")
    assert found["software"] == "ladd_dist not installed, torch not installed"


def test_prompts_are_read_before_a_job_that_draws(tmp_path: Path, dataset: Path) -> None:
    missing = [f"evaluation.prompts={tmp_path / 'none.txt'}", f"synthesis.prompts={tmp_path / 'none.txt'}"]
    for job, overrides in (("synthesize", []), ("evaluate", []), ("train", ["train.preview_every=1"])):
        with pytest.raises(LaddError, match="prompt file .*none.txt cannot be read"):
            preflight(tiny_config(tmp_path / "run", dataset, *missing, *overrides), ALONE, job)
    assert not failures(preflight(tiny_config(tmp_path / "run", dataset, *missing), ALONE, "train"))


def test_a_full_disk_is_refused_before_anything_is_loaded(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, size = tiny_config(tmp_path, dataset), checkpoint_bytes(tiny_config(tmp_path, dataset))
    there, status = step_folder(tmp_path, 2), os.statvfs(tmp_path)
    room = (config.train.keep_checkpoints + 1) * size

    def left(size: int) -> None:
        few = os.statvfs_result((1, 1, size * 2, size, size, *status[5:]))
        monkeypatch.setattr(folder.os, "statvfs", lambda path: few if Path(path).is_relative_to(tmp_path) else status)

    left(room)
    assert not failures(preflight(config, ALONE, "train"))
    left(room - 1)
    with pytest.raises(
        LaddError, match=re.escape(f"run_dir={tmp_path}: ") + r".* needed \(seen by rank 0 .*make room"
    ):
        preflight(config, ALONE, "train")
    there.mkdir(parents=True)
    assert not failures(preflight(config, ALONE, "train")), "one of the checkpoints is there"


def test_the_command_prints_the_table(tmp_path: Path, dataset: Path) -> None:
    settings = [*tiny_overrides(tmp_path / "run", dataset), "engine=fsdp2", "train.micro_batch=null"]
    done = launch(["preflight.py", "--config", TINY, *settings], ranks=2)
    assert done.returncode == 0, done.stderr
    for check in ("config", "dataset", "one folder", "links", "all-reduce", "all-gather", "clocks"):
        assert re.search(rf"^[\d:]+ {check} +(ok|warning) ", done.stderr, re.MULTILINE), done.stderr
    assert "preflight passed on 2 ranks in" in done.stderr


# --- real faults: three nodes, with one network for the store and one for the data

NODES, MANAGEMENT, DATA = 3, "10.76.1.", "10.76.2."


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=300)


@pytest.fixture(scope="module")
def cluster(privileged: None) -> Iterator[list[str]]:
    """Names of network namespaces, each with the interfaces ``mgmt0`` and ``data0``."""
    names = [f"ladd-{os.getpid()}-{name}" for name in ("switch", *range(NODES))]
    switch, *nodes = names
    try:
        for name in names:
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        for network, prefix in (("mgmt", MANAGEMENT), ("data", DATA)):
            _run(*f"ip -n {switch} link add {network} type bridge".split())
            _run(*f"ip -n {switch} link set {network} up".split())
            for number, node in enumerate(nodes):
                port = f"{network}{number}"
                _run(*f"ip link add {port} netns {switch} type veth peer name {network}0 netns {node}".split())
                _run(*f"ip -n {switch} link set {port} master {network} up".split())
                _run(*f"ip -n {node} address add {prefix}{number + 1}/24 dev {network}0".split())
                _run(*f"ip -n {node} link set {network}0 up".split())
        yield nodes
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def on_nodes(nodes: list[str]) -> dict:
    """Options of `start_ranks`: one rank on each."""
    env = {"MASTER_ADDR": f"{MANAGEMENT}1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GLOO_SOCKET_IFNAME": "data0"}
    return {"env": env, "namespaces": [Path("/run/netns", node) for node in nodes]}


@pytest.fixture(scope="module")
def three(cluster: list[str]) -> Iterator[Ranks]:
    """A rank on each node, which has a host name and mounts of its own."""
    ranks = Ranks(NODES, **on_nodes(cluster))
    ranks(_own_host)
    yield ranks
    ranks.close()


def _libc(function: str, *args: object) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), function)(*args) != 0:
        raise OSError(ctypes.get_errno(), function)


def _own_host(world: World) -> None:
    _libc("unshare", 0x04000000 | 0x00020000)  # host name, mounts
    _libc("mount", b"none", b"/", None, 1 << 18 | 1 << 14, None)  # private, recursively
    name = f"n{world.rank}".encode()
    _libc("sethostname", name, len(name))


Refusal = tuple[str, tuple[str, ...]]
"""What is said, and the nodes at fault; nothing of both where all is well."""


def _looked_at(world: World, configs: list[Config], ahead: float = 0.0) -> tuple[Refusal, list[Finding], float]:
    """The refusal, the findings and the seconds of a rank with a configuration of its own; the last one's clock goes
    wrong."""
    begin = time.monotonic()
    clocks._now = lambda: time.time() + (ahead if world.rank == NODES - 1 else 0)
    links.LIMIT = 8.0
    try:
        return ("", ()), preflight(configs[world.rank], world, "train"), time.monotonic() - begin
    except LaddError as error:
        return (str(error), ()), [], time.monotonic() - begin
    except PeerLost as error:
        return (str(error), error.hosts), [], time.monotonic() - begin


def _mount(world: World, rank: int, place: Path, size: str) -> None:
    if world.rank == rank:
        _libc("mount", b"tmpfs", str(place).encode(), b"tmpfs", 0, f"size={size}".encode())


@pytest.fixture
def config(tmp_path: Path, dataset: Path) -> Config:
    (tmp_path / "run").mkdir()
    batch = ["train.global_batch=6", "train.micro_batch=null"]
    return tiny_config(tmp_path / "run", dataset, "engine=fsdp2", *batch)


def _refusal(three: Ranks, *args: object) -> Refusal:
    """Every rank says the same."""
    (refusal,) = {refusal for refusal, *_ in three(_looked_at, *args)}
    assert "\n" not in refusal[0]
    return refusal


@pytest.mark.slow
def test_healthy_nodes_pass(three: Ranks, config: Config) -> None:
    answers = three(_looked_at, [config] * NODES)
    assert all(answer[:2] == answers[0][:2] for answer in answers)
    refusal, found, _ = answers[0]
    assert refusal == ("", ()) and not failures(found)
    assert [f.check for f in found][-5:] == ["one folder", "links", "all-reduce", "all-gather", "clocks"]
    assert not list(Path(config.run_dir).iterdir()), "nothing is left"


@pytest.mark.slow
def test_another_configuration_on_one_rank(three: Ranks, config: Config) -> None:
    other = config.model_copy(update={"seed": 7})
    refusal = _refusal(three, [config, other, config])
    assert refusal == ("rank 1 (host n1) has seed=7, most have 0: start every rank with the same command", ())


@pytest.mark.slow
def test_a_dataset_that_one_node_has_not(three: Ranks, config: Config, dataset: Path) -> None:
    three(_mount, 2, dataset, "1m")
    try:
        line, hosts = _refusal(three, [config] * NODES)
    finally:
        three(_unmount, 2, dataset)
    assert line.startswith("rank 2 (host n2), not on every rank: no dataset at data.path=") and hosts == ("n2",)


def _unmount(world: World, rank: int, place: Path) -> None:
    if world.rank == rank:
        _libc("umount", str(place).encode())


@pytest.mark.slow
def test_a_disk_that_is_full_on_one_node(three: Ranks, config: Config) -> None:
    three(_mount, 1, Path(config.run_dir), "1m")
    line, hosts = _refusal(three, [config] * NODES)
    where = f"run_dir={config.run_dir} cannot be written to by rank 1 (host n1) (No space left on device): "
    assert line.startswith(where) and hosts == ("n1",)


@pytest.mark.slow
def test_a_folder_that_is_another_one_on_one_node(three: Ranks, config: Config) -> None:
    three(_mount, 1, Path(config.run_dir), "1g")
    line, hosts = _refusal(three, [config] * NODES)
    assert line.startswith(
        f"run_dir={config.run_dir} is not one folder: rank 1 (host n1) and rank 0 (host n0) do not see"
    )
    assert hosts == ("n1",)


@pytest.mark.slow
def test_a_clock_that_is_wrong(three: Ranks, config: Config) -> None:
    line, hosts = _refusal(three, [config] * NODES, 3600.0)
    assert line.startswith("the clock of rank 2 (host n2) is 3600.0 s ahead of that of rank 0 (host n0): ")
    assert hosts == ("n2",)


@pytest.mark.slow
def test_a_slow_link_is_a_warning(three: Ranks, config: Config, cluster: list[str]) -> None:
    """The kernels of most test machines know no netem; a token bucket limits the rate as well."""
    limit = ["root", "tbf", "rate", "80mbit", "burst", "64kb", "latency", "400ms"]
    _run("tc", "-n", cluster[2], "qdisc", "add", "dev", "data0", *limit)
    try:
        (line, _), found, _ = three(_looked_at, [config] * NODES)[0]
    finally:
        _run("tc", "-n", cluster[2], "qdisc", "delete", "dev", "data0", "root")
    (slow,) = [f for f in found if f.status == "warning"]
    assert not line and slow.check == "links"
    assert re.match(r"0\.0\S+ GB/s between nodes, where \S+ are usual: all links of rank 2 \(host n2\): ", slow.text)


@pytest.mark.slow
def test_a_dead_link_ends_the_job_by_name(three: Ranks, config: Config, cluster: list[str]) -> None:
    """Comes last: the ranks are of no use after it. Their store has another network, which works: gloo alone would
    wait for five times its limit of half an hour."""
    _run("tc", "-n", cluster[2], "qdisc", "add", "dev", "data0", "root", "pfifo", "limit", "0")
    try:
        (line,) = set(three(_connected_again))
        assert re.match(r"rank 2 \(host n2\) gets no connection to rank [01] \(host n[01]\) \(", line)
        line, hosts = _refusal(three, [config] * NODES)
        assert re.match(
            r"no way between nodes: rank \d \(host n\d\) and rank \d \(host n\d\) cannot reach each", line
        )
        assert "rank 2 (host n2)" in line and "n2" in hosts
        for end in three._ends:
            end.send((_end, ()))
        assert join(three._processes, 60) == [EXIT_PEER_LOST] * NODES, "though a thread hangs in each"
    finally:
        _run("tc", "-n", cluster[2], "qdisc", "delete", "dev", "data0", "root")


def _connected_again(world: World) -> str:
    def group(limit: timedelta) -> object:
        return dist.new_group(backend="gloo", timeout=limit)

    connection.LIMIT = timedelta(seconds=4)
    assert world.store is not None
    with pytest.raises(PeerLost) as refused:
        connection.connect(group, dist.PrefixStore("again", world.store.clone()), world.rank, world.size)
    return str(refused.value)


def _end(world: World) -> None:
    exits.end(EXIT_PEER_LOST)
