"""One job of a run on Kubernetes, and what would keep its pods from doing their work."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal, get_args

from ladd_dist.config import Config
from ladd_dist.errors import LaddError
from ladd_dist.jobs.arguments import check_words
from ladd_dist.jobs.cluster import CONTROL, DATASETS, JobName
from ladd_dist.jobs.fit import check_fit
from ladd_dist.kubernetes.cluster import Cluster
from ladd_dist.kubernetes.values import LONGEST_NAME

Tree = dict[str, Any]
"""An object of Kubernetes, or a part of one."""
Kind = Literal["job", "jobset", "trainjob"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""A plain Job needs nothing but Kubernetes, a JobSet its controller, a TrainJob Kubeflow's Trainer and that one."""
GROUP = "node"
"""What JobSet's pods are called; Kubeflow's Trainer knows them by this name."""


@dataclass(frozen=True)
class Job:
    """One job of a run, as objects of a kind.

    Attributes:
        arguments: what its launcher is told beside the configuration.
    """

    name: JobName
    kind: Kind
    config: Config
    cluster: Cluster
    arguments: tuple[str, ...] = ()

    @property
    def run_dir(self) -> PurePosixPath:
        """The run's folder, in a pod."""
        return self._inside(self.config.run_dir)

    @property
    def data(self) -> PurePosixPath:
        """The dataset's folder, in a pod."""
        return self._inside(self.config.data.path)

    @property
    def object_name(self) -> str:
        """Of the objects, and of the service that makes hosts of the pods."""
        return f"{self.cluster.name or self.run_dir.name}-{self.name}"

    @property
    def first_host(self) -> str:
        """The pod on which the ranks meet, for the others in its namespace."""
        return f"{self._hosts}-0.{self.object_name}"

    def check(self) -> None:
        """Check what the pods would find out after they have waited for their nodes.

        Raises:
            LaddError: naming the setting that does not fit the cluster, and what would.
        """
        check_fit(self.name, self.config, self.cluster)
        check_words(self.name, self.arguments)
        self._check_names()
        self._check_place("run_dir", self.run_dir, written=self.name not in DATASETS)
        self._check_place("data.path", self.data, written=self.name in DATASETS)
        if self.name == "train" and self.config.tracking.wandb == "online":
            self._check_secret("WANDB_API_KEY", "tracking.wandb=online")

    @property
    def _hosts(self) -> str:
        """What the hosts are called before their number."""
        return self.object_name if self.kind == "job" else f"{self.object_name}-{GROUP}-0"

    def _inside(self, path: str) -> PurePosixPath:
        return PurePosixPath(self.cluster.working_folder) / path

    def _check_names(self) -> None:
        if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", self.object_name):
            raise LaddError(
                f"run_dir={self.run_dir}: {self.run_dir.name!a} cannot begin the name of a host (lower-case letters, "
                "digits and -): set name in the cluster file"
            )
        suffix = "" if self.kind == "job" else "-xxxxx"  # JobSet takes only names that leave room for the pod's own
        if len(longest := f"{self._hosts}-{self.cluster.nodes - 1}{suffix}") > LONGEST_NAME:
            raise LaddError(
                f"a pod would be called {longest}, {len(longest)} characters where a name has at most "
                f"{LONGEST_NAME}: set a shorter name in the cluster file"
            )

    def _check_place(self, key: str, path: PurePosixPath, *, written: bool) -> None:
        if re.search(CONTROL, str(path)):
            raise LaddError(f"{key}={str(path)!a} has a line break or control character: rename it")
        around = [volume for volume in self.cluster.volumes if path.is_relative_to(volume.path)]
        if not around or ".." in path.parts:
            known = ", ".join(volume.path for volume in self.cluster.volumes)
            raise LaddError(
                f"{key}={path} is on no volume of the cluster file: put it below {known}, or add a volume"
            )
        inner = max(around, key=lambda volume: len(volume.path))
        if written and inner.read_only:
            raise LaddError(f"{key}={path} is written to, but the volume at {inner.path} is read_only: change one")

    def _check_secret(self, variable: str, why: str) -> None:
        if variable not in self.cluster.secrets:
            raise LaddError(
                f"{why} needs {variable}: name its Secret in the cluster file, secrets: "
                f"{{{variable}: {{name: NAME, key: KEY}}}}"
            )
