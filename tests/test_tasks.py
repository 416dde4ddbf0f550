"""Tasks of srun and mpirun know their place, or are refused in one line: none trains alone in the others' folder."""

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from launch import environment, free_port, join

from ladd_dist.distributed import world as distributed
from ladd_dist.distributed.tasks import first_host, group_variables, idle_tasks
from ladd_dist.errors import LaddError

JOB = {"SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "n[07-08]"}
STEP = JOB | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}
SRUN = STEP | {"SLURM_NTASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}
MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}
OPEN_MPI = MPI | {
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "prte-n7-1@1",
}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
MASTER = {"MASTER_ADDR": "n1", "MASTER_PORT": "29500"}
BATCH = JOB | {"ENVIRONMENT": "BATCH", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}

ALONE = {
    "nothing": {},
    "a batch script": BATCH | {"SLURM_NTASKS": "1"},
    "a batch script of eight tasks": BATCH,
    "an interactive shell in an allocation": BATCH | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},
    "one task of srun": SRUN | {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"},
    "salloc without srun": JOB | {"SLURM_NTASKS": "8"},
    "one task of mpirun": {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
    "torchrun in a batch script": BATCH | MASTER | {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3"},
    "torchrun under srun": SRUN | MASTER | {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3"},
}


@pytest.mark.parametrize("env", ALONE.values(), ids=ALONE)
def test_who_is_alone_or_has_torchruns_variables_gets_none(env: dict[str, str]) -> None:
    assert group_variables(env) == {}


def place(rank: int, size: int, local_rank: int, local_size: int, address: str) -> dict[str, str]:
    numbers = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": local_size}
    return {key: str(value) for key, value in numbers.items()} | {"MASTER_ADDR": address}


PLACED = {
    "srun on two nodes": (SRUN, place(5, 8, 1, 4, "n07")),
    "srun with an address of its own": (SRUN | MASTER, place(5, 8, 1, 4, "n1")),
    "srun on some of the job's nodes": (SRUN | {"SLURM_STEP_NODELIST": "n[08,10]"}, place(5, 8, 1, 4, "n08")),
    "srun on one node": (
        SRUN | {"SLURM_STEP_TASKS_PER_NODE": "8", "SLURM_LOCALID": "5"},
        place(5, 8, 5, 8, "127.0.0.1"),
    ),
    "srun under another mpi": (SRUN | {"PMI_RANK": "5", "PMI_SIZE": "8"}, place(5, 8, 1, 4, "n07")),
    "Open MPI on one node": (OPEN_MPI, place(1, 2, 1, 2, "127.0.0.1")),
    "Open MPI whose helpers srun started": (SRUN | OPEN_MPI, place(1, 2, 1, 2, "127.0.0.1")),
    "Open MPI on two nodes": (
        OPEN_MPI | MASTER | {"OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"},
        place(1, 2, 0, 1, "n1"),
    ),
    "MPICH": (HYDRA | MASTER, place(1, 2, 1, 2, "n1")),
}


@pytest.mark.parametrize(("env", "expected"), PLACED.values(), ids=PLACED)
def test_tasks_know_their_place(env: dict[str, str], expected: dict[str, str]) -> None:
    found = group_variables(env)
    port = found.pop("MASTER_PORT")
    assert found == expected
    assert port == MASTER["MASTER_PORT"] if "MASTER_PORT" in env else 20_000 <= int(port) < 32_000


def test_tasks_of_a_job_agree_on_a_port_and_other_jobs_have_others() -> None:
    ports = [group_variables(SRUN | {"SLURM_JOB_ID": job})["MASTER_PORT"] for job in ("42", "42", "43")]
    assert ports[0] == ports[1] != ports[2]


_ALL = "set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT for every task"
REFUSED = {
    "bare numbers of Slurm": ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, "SLURM_LOCALID= does not tell"),
    "no job id": (
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"},
        "srun has started 2 tasks, but MASTER_PORT is not known",
    ),
    "no node list": (
        {key: value for key, value in SRUN.items() if key != "SLURM_JOB_NODELIST"},
        "srun has started 8 tasks, but MASTER_ADDR is not known",
    ),
    "bare numbers of Open MPI": (MPI, "OMPI_COMM_WORLD_LOCAL_RANK= does not tell"),
    "Open MPI on two nodes": (
        OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
        "mpirun has started 2 tasks, but MASTER_ADDR is not known",
    ),
    "MPICH": (HYDRA, "mpirun has started 2 tasks, but MASTER_PORT is not known"),
    "another PMI": ({"PMI_RANK": "1", "PMI_SIZE": "2"}, "MPI_LOCALRANKID= does not tell"),
    "a size without a rank": ({"WORLD_SIZE": "8"}, "WORLD_SIZE=8 is set, but RANK is not"),
    "a rank without a size": ({"RANK": "0"}, "RANK=0 is set, but WORLD_SIZE is not"),
    "a rank without an address": ({"RANK": "0", "WORLD_SIZE": "2"}, "RANK=0 is set, but MASTER_ADDR is not"),
}


@pytest.mark.parametrize(("env", "message"), REFUSED.values(), ids=REFUSED)
def test_a_task_that_cannot_know_its_place_is_refused_with_the_remedy(env: dict[str, str], message: str) -> None:
    with pytest.raises(LaddError) as refusal:
        group_variables(env)
    assert message in str(refusal.value) and _ALL in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("change", [{"SLURM_LOCALID": "2"}, {"SLURM_STEP_TASKS_PER_NODE": "5,3"}])
def test_tasks_that_are_dealt_out_in_another_order_are_refused(change: dict[str, str]) -> None:
    with pytest.raises(
        LaddError, match="has not dealt its 8 tasks to the nodes in equal blocks.*--distribution=block"
    ):
        group_variables(SRUN | change)


@pytest.mark.parametrize(
    ("hosts", "first"),
    [("n7", "n7"), ("n7,n8", "n7"), ("n[007-012,014],x", "n007"), ("r[1-2]n[3,5].a,x[1]", "r1n3.a"), ("", "")],
)
def test_the_first_host_of_a_node_list(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


def test_tasks_that_a_batch_script_leaves_idle_are_counted() -> None:
    assert idle_tasks(BATCH) == 7
    assert idle_tasks(SRUN) == idle_tasks({}) == idle_tasks(BATCH | {"RANK": "0"}) == 0


def test_a_place_where_ranks_cannot_meet_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(*_: object, **__: object) -> Any:
        raise dist.DistNetworkError("EADDRINUSE\nmore")

    monkeypatch.setattr(dist, "rendezvous", taken)
    for key, value in (MASTER | {"RANK": "0", "WORLD_SIZE": "2"}).items():
        monkeypatch.setenv(key, value)
    with pytest.raises(LaddError, match=r"MASTER_ADDR=n1 MASTER_PORT=29500 \(EADDRINUSE\): set both"):
        distributed.start("cpu")


@pytest.mark.parametrize(("visible", "index"), [(1, 0), (4, 1)])
def test_a_task_that_sees_one_gpu_takes_it(monkeypatch: pytest.MonkeyPatch, visible: int, index: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert distributed.start().device == torch.device("cuda", index)


def _task(folder: Path, env: dict[str, str]) -> None:
    clean = environment(env)
    os.environ.clear()
    os.environ.update(clean)
    world = distributed.start("cpu", hang_timeout=2000)
    # Its own, and those of groups that others make: PyTorch's are 1800 at most.
    groups: list[Any] = [dist.group.WORLD, world.aside().group, dist.new_group()]
    waits = [group._get_backend(world.device).options._timeout.total_seconds() for group in groups]
    place = [world.rank, world.local_rank, world.size, *waits]
    (folder / f"{world.rank}.json").write_text(json.dumps(world.gather(place)))
    distributed.stop()


TWO = {
    "srun": SRUN | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"},
    "mpirun": OPEN_MPI,
}


@pytest.mark.parametrize("launcher", TWO)
def test_real_tasks_meet(tmp_path: Path, launcher: str) -> None:
    context, port = multiprocessing.get_context("forkserver"), str(free_port())
    context.set_forkserver_preload(["ladd_dist.training.trainer", "ladd_dist.drawing.synthesis"])
    numbers = [key for key in TWO[launcher] if key.endswith(("_PROCID", "_LOCALID", "_RANK"))]
    tasks = [TWO[launcher] | dict.fromkeys(numbers, str(rank)) | {"MASTER_PORT": port} for rank in range(2)]
    started = [context.Process(target=_task, args=(tmp_path, task)) for task in tasks]
    for process in started:
        process.start()
    assert join(started) == [0, 0]
    for file in ("0.json", "1.json"):
        assert json.loads((tmp_path / file).read_text()) == [[rank, rank, 2, *[4000] * 3] for rank in range(2)]
