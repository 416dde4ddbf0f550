"""The cluster file: what Slurm is asked for, and what has to be set up on the nodes."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ladd_dist.config.section import Section
from ladd_dist.config.values import Count, CountOrZero, PathName, form
from ladd_dist.jobs.cluster import JobName, Line, NodesConfig, Text, load_jobs

EXAMPLE = "launchers/slurm/cluster.yaml"
_DAY, _HOUR, _MINUTE = 86_400, 3_600, 60
NodeList = Annotated[str, form(r"[A-Za-z0-9._,\[\]-]+", "nodes as Slurm lists them, such as n1 or n[2-4,7]")]
_N = "[0-9]{1,8}"
TimeLimit = Annotated[
    Text,
    form(
        f"{_N}-{_N}(:{_N}){{0,2}}|{_N}(:{_N}){{0,2}}",
        "minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS, as for sbatch",
    ),
]
ModuleName = Annotated[str, form("[A-Za-z0-9][A-Za-z0-9._/+-]*", "the name of a module, such as cuda/12.8")]
SbatchOption = Annotated[str, form(r"--[a-z][a-z0-9-]*(=[^\x00-\x1f\x7f]+)?", "--NAME or --NAME=VALUE")]
_OWN = {
    "nodes": "nodes",
    "ntasks": "ranks_per_node",
    "ntasks-per-node": "ranks_per_node",
    "gpus": "gpus_per_node",
    "gpus-per-node": "gpus_per_node",
    "cpus-per-task": "cpus_per_rank",
    "mem": "memory",
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "constraint": "constraint",
    "exclude": "exclude",
    "time": "time",
    "signal": "signal_seconds",
    "job-name": "run_dir",
    "output": "run_dir",
    "open-mode": None,
    "requeue": None,
    "no-requeue": None,
    "array": None,
}
"""Options of sbatch that the script has itself or cannot live with, and the key to set in their place."""


class ContainerConfig(Section):
    """An image in which everything but Slurm's own commands runs."""

    runtime: Literal["pyxis", "apptainer"]
    image: Annotated[Line, form("[^-].*", "an image, which begins with no -")]
    mounts: list[Line] = Field(default=[])
    """``FROM:TO``; the working folder, the run's, the data's and the models' must be among them."""


class ProcessLimits(Section):
    """What a job of one process needs in place of the file's own values."""

    gpus_per_node: CountOrZero | None = None
    partition: Line | None = None
    time: TimeLimit | None = None


class JobLimits(ProcessLimits):
    """What a job of many ranks needs in place of the file's own values."""

    nodes: Count | None = None
    ranks_per_node: Count | None = None


class JobsConfig(Section):
    """By kind of job."""

    synthesize: JobLimits = JobLimits()
    encode: JobLimits = JobLimits()
    pairs: JobLimits = JobLimits()
    train: JobLimits = JobLimits()
    evaluate: JobLimits = JobLimits()
    export: ProcessLimits = ProcessLimits()


class Cluster(NodesConfig):
    """Everything that the script has from the cluster file."""

    memory: Annotated[Text, form(f"{_N}[KMGT]?", "a number with K, M, G or T behind it, or 0")] | None = None
    """Per node, such as 900G; 0 is all of it, null the partition's default."""
    partition: Line | None = None
    account: Line | None = None
    qos: Line | None = None
    constraint: Line | None = None
    time: TimeLimit
    signal_seconds: Count = 300
    """So long before the time limit all ranks are told to save and leave: above the time that a checkpoint takes.
    Slurm may say so up to a minute earlier."""
    exclude: list[NodeList] = Field(default=[])
    """Nodes that are not to be used."""
    venv: PathName | None = None
    """null is the environment that renders the script."""
    container: ContainerConfig | None = None
    modules: list[ModuleName] = Field(default=[])
    sbatch: list[SbatchOption] = Field(default=[])
    """Other options of sbatch, such as ``--exclusive`` or ``--reservation=NAME``."""
    jobs: JobsConfig = JobsConfig()

    @model_validator(mode="after")
    def _fits(self) -> "Cluster":
        if seconds(self.time) <= self.signal_seconds:
            raise ValueError(
                f"time={self.time} is not longer than signal_seconds={self.signal_seconds}: every attempt would end "
                "as it begins"
            )
        if self.venv and self.container:
            raise ValueError("venv is not used inside of a container: leave one of them out")
        for name in (option[2:].partition("=")[0] for option in self.sbatch):
            if own := [key for option, key in _OWN.items() if option.startswith(name)]:  # sbatch completes names
                why = (
                    f"is the script's own: set {own[0]}"
                    if own[0]
                    else "does not suit a job that is requeued: drop it"
                )
                raise ValueError(f"sbatch: --{name} {why}")
        return self


def load_clusters(path: Path) -> dict[JobName, Cluster]:
    """The cluster file as each kind of job sees it.

    Raises:
        LaddError: naming the file, key or value at fault and what would be right.
    """
    return load_jobs(Cluster, path, EXAMPLE)


def seconds(limit: str) -> int:
    """A time limit of sbatch in seconds."""
    days, dash, rest = limit.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    units = (_HOUR, _MINUTE, 1) if dash or len(parts) == 3 else (_MINUTE, 1)
    return int(days or 0) * _DAY + sum(part * unit for part, unit in zip(parts, units, strict=False))


def quote_directive(text: str) -> str:
    """Text as one word of an ``#SBATCH`` line: between double quotes only a backslash means something to sbatch."""
    inside = re.sub(r'(["\\])', r"\\\1", text)
    return text if re.fullmatch(r"[A-Za-z0-9_@%+=:,./-]+", text) else f'"{inside}"'
