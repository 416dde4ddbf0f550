"""The cluster file: what Slurm is asked for, and what has to be set up on the nodes."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ladd_dist.config.section import Section
from ladd_dist.config.values import Count, CountOrZero, PathName
from ladd_dist.jobs.cluster import JobName, Line, NodesConfig, load_jobs

EXAMPLE = "launchers/slurm/cluster.yaml"
_DAY, _HOUR, _MINUTE = 86_400, 3_600, 60
NodeList = Annotated[str, Field(pattern=r"^[A-Za-z0-9._,\[\]-]+$")]
_N = "[0-9]{1,8}"
TimeLimit = Annotated[str, Field(pattern=f"^({_N}-{_N}(:{_N}){{0,2}}|{_N}(:{_N}){{0,2}})$")]
"""As sbatch has it: minutes, ``MM:SS``, ``HH:MM:SS``, ``D-HH``, ``D-HH:MM`` or ``D-HH:MM:SS``."""
ModuleName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/+-]*$")]
SbatchOption = Annotated[str, Field(pattern=r"^--[a-z][a-z0-9-]*(=[^\x00-\x1f\x7f]+)?$")]


class ContainerConfig(Section):
    """An image in which everything but Slurm's own commands runs."""

    runtime: Literal["pyxis", "apptainer"]
    image: Line
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
    train: JobLimits = JobLimits()
    evaluate: JobLimits = JobLimits()
    export: ProcessLimits = ProcessLimits()


class Cluster(NodesConfig):
    """Everything that the script has from the cluster file."""

    memory: Annotated[str, Field(pattern=f"^{_N}[KMGT]?$")] | None = None
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
