"""What nodes, links, containers and torchrun do to a job, acted out on one machine."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TINY, tiny_config, tiny_overrides
from launch import ROOT, environment, join
from recorded import newest, wait_until
from test_watchdog import LOWERED, Job, _train

from ladd_dist.errors import EXIT_PEER_LOST
from ladd_dist.training.tracking import read_metrics

HANG = 600
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


@pytest.mark.slow
@pytest.mark.timeout(6 * HANG)
def test_a_rank_that_is_killed_under_max_restarts_costs_no_iteration(tmp_path: Path, dataset: Path) -> None:
    run_dir, iterations = tmp_path / "run", 20
    settings = ["engine=fsdp2", f"train.iterations={iterations}", "train.micro_batch=null"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = ["launchers/train.py", "--config", TINY, *tiny_overrides(run_dir, dataset), *settings]
    process = subprocess.Popen(
        [*torchrun, "--max-restarts=1", *arguments],
        cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        wait_until(lambda: len(read_metrics(run_dir)) >= 3, 2 * HANG)
        os.kill(_child(process.pid, rank=1), signal.SIGKILL)
        said = process.communicate(timeout=2 * HANG)[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, said
    assert [row["iteration"] for row in read_metrics(run_dir)] == list(range(1, iterations + 1))
    assert newest(run_dir).state.iteration == iterations
    assert "going on" in said or "at iteration" in said


def _child(parent: int, rank: int) -> int:
    """The pid of torchrun's worker."""
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if f"RANK={rank}" in Path(f"/proc/{pid}/environ").read_text().split("\0"):
            return int(pid)
    raise AssertionError(f"torchrun has no rank {rank}")


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
