"""The batch script of one job, from the run's configuration and the cluster's."""

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ladd_dist.config import Config
from ladd_dist.engines.registry import engine_entry
from ladd_dist.errors import LaddError
from ladd_dist.jobs.arguments import FLAGS, check_words
from ladd_dist.jobs.cluster import CONTROL, JobName
from ladd_dist.jobs.fit import check_fit, check_prompts
from ladd_dist.slurm.attempts import folder_of
from ladd_dist.slurm.cluster import Cluster, ContainerConfig, quote_directive


@dataclass(frozen=True)
class Job:
    """One job of a run.

    Attributes:
        config_file: as the job reads it, with the overrides, each time that it starts.
        folder: the job's working folder, to which the configuration's paths are relative.
        arguments: what its launcher is told beside the configuration.
    """

    name: JobName
    config: Config
    config_file: Path
    overrides: tuple[str, ...]
    cluster: Cluster
    folder: Path
    arguments: tuple[str, ...] = ()

    @property
    def run_dir(self) -> Path:
        """The run's folder, absolute."""
        return self.folder / self.config.run_dir

    @property
    def script(self) -> Path:
        """Where the script is written."""
        return folder_of(self.run_dir) / f"{self.name}.sbatch"

    def check(self) -> None:
        """Check what the job would find out after it has waited in the queue.

        Raises:
            LaddError: naming the setting that does not fit the cluster, or that no script can hold.
        """
        check_fit(self.name, self.config, self.cluster)
        check_words(self.name, self.arguments)
        if self.name == "synthesize":
            check_prompts(self.config, self.cluster, self.folder / self.config.synthesis.prompts)
        for text in (str(self.folder), str(self.run_dir), str(self.config_file), *self.arguments, *self.overrides):
            if re.search(CONTROL, text):
                raise LaddError(f"{text!a} cannot stand in a batch script: it has a line break or control character")
        venv = self.cluster.venv
        if venv and not (self.folder / venv / "bin/python").exists():
            raise LaddError(f"venv={venv} has no bin/python: name an environment that all nodes see, or leave it out")
        if "\\" in str(self.run_dir):
            raise LaddError(f"run_dir={self.run_dir}: Slurm writes no output to a path with a backslash, rename it")


class _Raw(str):
    """Text that is quoted already."""


def render(job: Job, template: Path) -> str:
    """The script. Whatever the template names is quoted for bash, unless it passes a filter that quotes otherwise."""
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - not HTML
        finalize=lambda value: value if isinstance(value, _Raw) else shlex.quote(str(value)),
    )
    environment.filters["words"] = lambda words: _Raw(shlex.join(words))
    environment.filters["directive"] = lambda text: _Raw(quote_directive(str(text)))
    return environment.get_template(template.name).render(_values(job, template.parent))


def _values(job: Job, launchers: Path) -> dict[str, Any]:
    cluster = job.cluster
    arguments = ["--config", str(job.config_file), *FLAGS.get(job.name, []), *job.arguments, *job.overrides]
    return {
        "job": job.name,
        "options": _options(job),
        "folder": job.folder,
        "run_dir": job.run_dir,
        "data": job.folder / job.config.data.path,
        "modules": cluster.modules,
        "environment": cluster.environment,
        "programs": None if cluster.container else Path(cluster.venv or sys.prefix) / "bin",
        "step": ["srun", "--kill-on-bad-exit=0", "--wait=300", *_step_options(cluster, job.folder)],
        "python": [*_inside(cluster.container, job.folder), "python"],
        "alone": cluster.nodes * cluster.ranks == 1 and engine_entry(job.config.engine).launcher != "python",
        "signal_seconds": cluster.signal_seconds,
        "exclude": ",".join(cluster.exclude),
        "attempt": [*_beside(cluster.container, job.folder), "python", str(launchers / "attempt.py")],
        "launcher": [str(launchers.parent / f"{job.name}.py"), *arguments],
    }


def _options(job: Job) -> list[str]:
    """Options of sbatch, in the order in which people look for them."""
    cluster = job.cluster
    chosen: dict[str, Any] = {
        "job-name": f"{job.run_dir.name}-{job.name}",
        "output": f"{str(folder_of(job.run_dir)).replace('%', '%%')}/{job.name}-%j.out",
        "open-mode": "append",
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "exclude": ",".join(cluster.exclude),
        "nodes": cluster.nodes,
        "ntasks-per-node": cluster.ranks,
        "gpus-per-node": cluster.gpus_per_node,
        "cpus-per-task": cluster.cpus_per_rank,
        "mem": cluster.memory,
        "time": cluster.time,
        "signal": f"B:USR1@{cluster.signal_seconds}",
    }
    return [f"--{name}={value}" for name, value in chosen.items() if value] + ["--requeue", *cluster.sbatch]


def _step_options(cluster: Cluster, folder: Path) -> list[str]:
    """What a step does not take over from its job."""
    cpus = cluster.cpus_per_rank
    return [*([f"--cpus-per-task={cpus}"] if cpus else []), *_pyxis(cluster.container, folder)]


def _beside(container: ContainerConfig | None, folder: Path) -> list[str]:
    """What starts a single process in the step's surroundings."""
    pyxis = _pyxis(container, folder)
    return ["srun", "--overlap", "--nodes=1", "--ntasks=1", *pyxis] if pyxis else _inside(container, folder)


def _pyxis(container: ContainerConfig | None, folder: Path) -> list[str]:
    if container is None or container.runtime != "pyxis":
        return []
    mounts = [f"--container-mounts={','.join(container.mounts)}"] if container.mounts else []
    return [f"--container-image={container.image}", *mounts, f"--container-workdir={folder}"]


def _inside(container: ContainerConfig | None, folder: Path) -> list[str]:
    if container is None or container.runtime != "apptainer":
        return []
    binds = [word for mount in container.mounts for word in ("--bind", mount)]
    return ["apptainer", "exec", "--nv", "--pwd", str(folder), *binds, container.image]
