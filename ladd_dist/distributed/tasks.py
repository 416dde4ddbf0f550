"""Ranks started by ``srun`` or ``mpirun``: their variables as torchrun's, which DeepSpeed, Streaming and we read."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from zlib import crc32

from ladd_dist.errors import LaddError

_REMEDY = (
    "start torchrun instead, once per node, or set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and "
    "MASTER_PORT for every task"
)
_FIRST_PORT, _PORTS = 20_000, 12_000
"""Below those that Linux by default hands out."""

Environment = Mapping[str, str]


@dataclass(frozen=True)
class _Task:
    """One of several, as its launcher describes it.

    Attributes:
        host: of rank 0; empty if not known.
        job: the same for all tasks, and for no other job on their hosts; empty if not known.
    """

    launcher: str
    rank: int
    size: int
    local_rank: int
    local_size: int
    host: str
    job: str


def group_variables(env: Environment) -> dict[str, str]:
    """What torchrun would have set for this task of ``srun`` or ``mpirun``.

    Returns:
        Variables to set; none if torchrun's are there, or if this process is alone.

    Raises:
        LaddError: if this is one of several tasks and the environment does not say which: it must not train alone.
    """
    if "RANK" in env:
        if missing := [key for key in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if key not in env]:
            raise LaddError(f"RANK={env['RANK']} is set, but {missing[0]} is not: {_REMEDY}")
        return {}
    task = _mpi_task(env) or _slurm_task(env)
    size = task.size if task else 1
    if _number(env, "WORLD_SIZE", size) != size:
        raise LaddError(f"WORLD_SIZE={env['WORLD_SIZE']} is set, but RANK is not: {_REMEDY}")
    return _variables(task, env) if task else {}


def idle_tasks(env: Environment) -> int:
    """Tasks of a Slurm allocation that a batch script leaves idle by starting this process without ``srun``."""
    return _number(env, "SLURM_NTASKS", 1) - 1 if "RANK" not in env and _in_batch_script(env) else 0


def first_host(hosts: str) -> str:
    """The first host of a Slurm node list, such as ``n004`` of ``n[004-007,012],login1``."""
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", hosts).split(",")[0]


def _mpi_task(env: Environment) -> _Task | None:
    """A task of Open MPI's mpirun, or of MPICH's and Intel's.

    Comes before Slurm's, whose variables may be those of mpirun's own helpers, one per node.
    """
    openmpi, hydra = "OMPI_COMM_WORLD_SIZE" in env, "MPI_LOCALRANKID" in env or "SLURM_PROCID" not in env
    if openmpi:
        names = [f"OMPI_COMM_WORLD_{name}" for name in ("SIZE", "RANK", "LOCAL_RANK", "LOCAL_SIZE")]
    else:
        names = ["PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"]
    size = _number(env, names[0], 1)
    if size == 1 or not (openmpi or hydra):
        return None
    rank, local_rank, local_size = (_number(env, name) for name in names[1:])
    host = "127.0.0.1" if local_size == size else ""
    return _Task("mpirun", rank, size, local_rank, local_size, host, env.get("PMIX_NAMESPACE", ""))


def _slurm_task(env: Environment) -> _Task | None:
    step = "SLURM_STEP_ID" in env
    size = _number(env, "SLURM_STEP_NUM_TASKS" if step else "SLURM_NTASKS", _number(env, "SLURM_NTASKS", 1))
    if size == 1 or "SLURM_PROCID" not in env or _in_batch_script(env):
        return None
    # "4(x2)" stands for four tasks on each of two nodes.
    per_node = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE") or str(size)
    local_size = int(re.match(r"\d*", per_node)[0] or 1)  # type: ignore[index]
    hosts = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or ""
    host = "127.0.0.1" if local_size == size else first_host(hosts)
    job = f"{env['SLURM_JOB_ID']}.{env.get('SLURM_STEP_ID', '')}" if "SLURM_JOB_ID" in env else ""
    return _Task("srun", _number(env, "SLURM_PROCID"), size, _number(env, "SLURM_LOCALID"), local_size, host, job)


def _in_batch_script(env: Environment) -> bool:
    """A batch script itself is no task, though it has the first one's number."""
    return env.get("ENVIRONMENT") == "BATCH" and "SLURM_STEP_ID" not in env and env.get("SLURM_PROCID") == "0"


def _variables(task: _Task, env: Environment) -> dict[str, str]:
    host, port = env.get("MASTER_ADDR", task.host), env.get("MASTER_PORT", _port(task.job))
    for key, value in (("MASTER_ADDR", host), ("MASTER_PORT", port)):
        if not value:
            raise LaddError(f"{task.launcher} has started {task.size} tasks, but {key} is not known: {_REMEDY}")
    if task.size % task.local_size or task.rank % task.local_size != task.local_rank:
        raise LaddError(
            f"{task.launcher} has not dealt its {task.size} tasks to the nodes in equal blocks (task {task.rank} is "
            f"number {task.local_rank} of {task.local_size} on its node): use srun --distribution=block or mpirun "
            "--map-by slot, and as many tasks on every node"
        )
    numbers = {"RANK": task.rank, "WORLD_SIZE": task.size, "LOCAL_RANK": task.local_rank}
    numbers["LOCAL_WORLD_SIZE"] = task.local_size
    return {key: str(number) for key, number in numbers.items()} | {"MASTER_ADDR": host, "MASTER_PORT": port}


def _port(job: str) -> str:
    return str(_FIRST_PORT + crc32(job.encode()) % _PORTS) if job else ""


def _number(env: Environment, key: str, default: int | None = None) -> int:
    if key not in env and default is not None:
        return default
    text = env.get(key, "")
    if not text.isdecimal():
        raise LaddError(f"one of several tasks, but {key}={text} does not tell its place: {_REMEDY}")
    return int(text)
