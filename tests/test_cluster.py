"""What nodes, links, containers and torchrun do to a job, acted out on one machine."""

import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path

import pytest
from conftest import TINY, tiny_config, tiny_overrides
from documented import documented
from launch import ROOT, environment, join
from recorded import newest, notes_of, wait_until
from test_elastic import order_over
from test_watchdog import LOWERED, Job, _train

from ladd_dist.errors import EXIT_PEER_LOST
from ladd_dist.training.tracking import read_metrics

HANG = 600
TRAIN = "tests/recorded_train.py"
INTERFACE, ADDRESSES = "ladd0", ("10.77.0.1", "10.77.0.2")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=300)


@pytest.fixture
def nodes(privileged: None) -> Iterator[list[str]]:
    """Two network namespaces with a link between them."""
    names = [f"ladd-{os.getpid()}-{node}" for node in range(2)]
    try:
        for name in names:
            _run("ip", "netns", "add", name)
        _run(*f"ip link add {INTERFACE} netns {names[0]} type veth peer name {INTERFACE} netns {names[1]}".split())
        for name, address in zip(names, ADDRESSES, strict=True):
            _run("ip", "-n", name, "address", "add", f"{address}/24", "dev", INTERFACE)
            for interface in ("lo", INTERFACE):
                _run("ip", "-n", name, "link", "set", interface, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_two_nodes_train_until_their_link_is_cut_and_both_end_by_name(
    tmp_path: Path, dataset: Path, nodes: list[str], engine: str
) -> None:
    batch = ["train.global_batch=6", "train.micro_batch=null", "train.iterations=100000"]
    config = tiny_config(tmp_path / "run", dataset, f"engine={engine}", *batch)
    group = {"MASTER_ADDR": ADDRESSES[0], "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GLOO_SOCKET_IFNAME": INTERFACE}
    namespaces = [Path("/run/netns", name) for name in nodes]
    job = Job(tmp_path, config, _train, 2, env=group, namespaces=namespaces)
    job.wait_until(lambda: len(read_metrics(tmp_path / "run")) > LOWERED + 1)
    _run("ip", "-n", nodes[1], "link", "set", INTERFACE, "down")
    assert join(job.ranks, HANG) == [EXIT_PEER_LOST] * 2
    for rank, (other, sign) in enumerate([(1, "no sign of it for"), (0, "the job's store, which it holds,")]):
        said = job.stderr(rank)
        assert f"error: rank {other} (host " in said and sign in said and "Traceback" not in said


class Torchrun:
    """One torchrun and its ranks.

    Args:
        log: takes what they say.
        inside: a command that starts another one somewhere else.
    """

    def __init__(self, log: Path, arguments: Sequence[str], inside: Sequence[str] = (), **env: str) -> None:
        command = [*inside, sys.executable, "-m", "torch.distributed.run", *arguments]
        with log.open("a") as file:
            self._agent = subprocess.Popen(
                command, cwd=ROOT, env=environment(env), stderr=file, start_new_session=True
            )
        self._log = log

    def __enter__(self) -> "Torchrun":
        return self

    def __exit__(self, *_: object) -> None:
        if self._agent.poll() is None:
            self.lose()

    def wait(self) -> str:
        """What was said by the time that it has ended well."""
        assert self._agent.wait(2 * HANG) == 0, self._log.read_text()
        return self._log.read_text()

    def lose(self) -> None:
        """End all its processes at once, as a power loss does."""
        for pid in [self._agent.pid, *self._children()]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._agent.wait()

    def kill(self, rank: int) -> None:
        """End a rank of this node alone."""
        (pid,) = [
            pid for pid in self._children() if f"RANK={rank}" in Path(f"/proc/{pid}/environ").read_text().split("\0")
        ]
        os.kill(pid, signal.SIGKILL)

    def _children(self) -> list[int]:
        pid = self._agent.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.timeout(6 * HANG)
def test_a_rank_that_is_killed_under_max_restarts_costs_no_iteration(tmp_path: Path, dataset: Path) -> None:
    run_dir, iterations = tmp_path / "run", 20
    settings = ["engine=fsdp2", f"train.iterations={iterations}", "train.micro_batch=null"]
    arguments = [TRAIN, "--config", TINY, *tiny_overrides(run_dir, dataset), *settings]
    starter = ["--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    with Torchrun(tmp_path / "log", [*starter, *arguments]) as started:
        wait_until(lambda: len(read_metrics(run_dir)) >= 3, 2 * HANG)
        started.kill(rank=1)
        said = started.wait()
    assert [row["iteration"] for row in read_metrics(run_dir)] == list(range(1, iterations + 1))
    assert newest(run_dir).state.iteration == iterations
    assert "going on" in said or "at iteration" in said


# One or two nodes

ELASTIC = documented("docs/cluster.md", "torchrun", "--nnodes=1:2")


def start_node(nodes: list[str], number: int, folder: Path, config: Path) -> Torchrun:
    """A node with an address and shared memory of its own, of which the second one holds the rendezvous."""
    flags = [word for word in ELASTIC.words[1:] if word.startswith("--") and word != "--config"]
    flags += ["--nproc-per-node=1", f"--local-addr={ADDRESSES[number]}", f"--rdzv-endpoint={ADDRESSES[1]}:29400"]
    flags.append(f"--rdzv-conf=is_host={number == 1},last_call_timeout=2,keep_alive_interval=2")
    inside = ["ip", "netns", "exec", nodes[number], "sh", "-c", 'mount -t tmpfs tmpfs /dev/shm && exec "$@"', "sh"]
    arguments = [*flags, TRAIN, "--config", str(config)]
    return Torchrun(folder / f"log-{number}", arguments, inside, GLOO_SOCKET_IFNAME=INTERFACE, **ELASTIC.env)


def legs(run_dir: Path) -> list[tuple[int, int]]:
    """On how many ranks a run went on, and for how many iterations."""
    sizes = groupby(size for _, size, _, _ in notes_of(run_dir, 0))
    return [(size, len(list(group))) for size, group in sizes]


def wait_for_ranks(run_dir: Path, size: int) -> None:
    """Until so many ranks have got going."""
    wait_until(lambda: any(on == size and count > LOWERED for on, count in legs(run_dir)[-1:]), 2 * HANG)


@pytest.mark.slow
@pytest.mark.timeout(6 * HANG)
def test_a_run_of_one_to_two_nodes_goes_on_with_those_that_are_there(
    tmp_path: Path, dataset: Path, nodes: list[str]
) -> None:
    """The lost node has rank 0, and has it again when it is back."""
    run_dir, config = tmp_path / "run", tmp_path / "config.yaml"
    settings = ["engine=fsdp2", "train.micro_batch=null", "student_optimizer.decay=constant"]
    overrides = [*settings, "head_optimizer.decay=constant"]
    tiny_config(run_dir, dataset, *overrides, "train.iterations=100000").save(config)
    with start_node(nodes, 1, tmp_path, config) as stays:
        with start_node(nodes, 0, tmp_path, config) as leaves:
            wait_for_ranks(run_dir, 2)
            _run("ip", "-n", nodes[0], "link", "set", INTERFACE, "down")
            leaves.lose()
        wait_for_ranks(run_dir, 1)
        _run("ip", "-n", nodes[0], "link", "set", INTERFACE, "up")
        with start_node(nodes, 0, tmp_path, config) as returns:
            wait_for_ranks(run_dir, 2)
            iterations = read_metrics(run_dir)[-1]["iteration"] + 5
            tiny_config(run_dir, dataset, *overrides, f"train.iterations={iterations}").save(config)
            stays.kill(rank=1)
            returns.wait()
        stays.wait()
    done = newest(run_dir).state.iteration
    assert done >= iterations
    assert [row["iteration"] for row in read_metrics(run_dir)] == list(range(1, done + 1))
    assert [batch for _, batch in sorted(whole_batches(run_dir).items())] == order_over(dataset, [(1, done)])


def whole_batches(run_dir: Path) -> dict[int, list[int]]:
    """The ids of every iteration in order, the same on all numbers of ranks that have gone through it together."""
    shares: dict[tuple[int, int], dict[int, list[int]]] = defaultdict(dict)
    for iteration, size, rank, ids in notes_of(run_dir):
        assert shares[iteration, size].setdefault(rank, ids) == ids
    batches: dict[int, list[int]] = {}
    for (iteration, size), ids in shares.items():
        if len(ids) == size:
            batch = sorted(sum(ids.values(), []))
            assert batches.setdefault(iteration, batch) == batch
    return batches


@pytest.mark.slow
def test_four_megabytes_of_shared_memory_are_enough(tmp_path: Path, dataset: Path, privileged: None) -> None:
    """With a loader process, which hands batches over through it; a container's default is 64 MB."""
    settings = ["data.workers=1", "train.iterations=2"]
    arguments = ["launchers/train.py", "--config", TINY, *tiny_overrides(tmp_path, dataset), *settings]
    small = 'mount -t tmpfs -o size=4m tmpfs /dev/shm && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", small, "sh", sys.executable, *arguments],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=HANG,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(read_metrics(tmp_path)) == 2
