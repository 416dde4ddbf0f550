"""The cluster file: what Kubernetes is asked for, and what a pod sees."""

from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ladd_dist.config.section import Section
from ladd_dist.config.values import Count, CountOrZero, EachOnce
from ladd_dist.jobs.cluster import JobName, Line, NodesConfig, VariableName, check_variables, load_jobs
from ladd_dist.kubernetes.values import (
    Amount,
    Bytes,
    Image,
    LabelKey,
    LabelValue,
    MountPath,
    ObjectName,
    ResourceName,
    SecretKey,
    ServiceName,
    UserId,
    size_of,
)

EXAMPLE = "launchers/kubernetes/cluster.yaml"
CONFIG_FOLDER = "/etc/ladd_dist"
"""Where a pod finds the configuration."""
LEAVING = 30
"""Seconds of the grace period that are left for torchrun and the kubelet once the ranks must be gone."""


class VolumeConfig(Section):
    """A file system that every pod sees at the same path, such as one with teacher, prompts, data and run."""

    claim: ObjectName
    """A PersistentVolumeClaim that is there already; what several nodes write to must be ReadWriteMany."""
    path: MountPath
    read_only: bool = False


class SecretConfig(Section):
    """A value that stays in the cluster."""

    name: ObjectName
    key: SecretKey


class TolerationConfig(Section):
    """A taint of nodes that may be used all the same."""

    key: LabelKey
    value: LabelValue | None = None
    """null is any."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """null is all of them."""


class ProcessLimits(Section):
    """What a job of one process needs in place of the file's own values."""

    gpus_per_node: CountOrZero | None = None
    cpus_per_rank: Count | None = None
    memory: Bytes | None = None


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
    """Everything that the manifests have from the cluster file. A pod is a node's share of a job."""

    image: Image
    """With this project installed; best by its digest, so that every attempt runs the same code."""
    code: MountPath = "/opt/ladd_dist"
    """Where the project lies in the image."""
    folder: MountPath | None = None
    """Where the configuration's relative paths begin; null is the first volume."""
    name: ServiceName | None = None
    """Of the run's objects, with the job's behind it; null is the name of run_dir."""
    namespace: ServiceName | None = None
    """null is that of the caller's context."""
    cpus_per_rank: Count
    """For the rank itself and its loader processes."""
    memory: Bytes
    """Of a pod, in which ``shared_memory`` counts."""
    shared_memory: Bytes = "16Gi"
    """Through which loader processes and NCCL hand over data."""
    scratch: Bytes = "10Gi"
    """The pod's own temporary files; beside them only volumes can be written to."""
    gpu_resource: ResourceName = "nvidia.com/gpu"
    resources: dict[ResourceName, Amount] = Field(default={})
    """Others of a pod, such as ``rdma/hca_shared_devices_a: 1`` or ``vpc.amazonaws.com/efa: 32``."""
    volumes: Annotated[list[VolumeConfig], Field(min_length=1)]
    secrets: dict[VariableName, SecretConfig] = Field(default={})
    """By environment variable, such as WANDB_API_KEY or AWS_SECRET_ACCESS_KEY."""
    pull_secrets: Annotated[list[ObjectName], EachOnce] = Field(default=[])
    user: UserId | None = None
    """null is the image's, which must not be root, or what the namespace prescribes (OpenShift)."""
    group: UserId | None = None
    """Given to the volumes; null leaves them as they are."""
    pod_annotations: dict[LabelKey, Line] = Field(default={})
    """Such as ``k8s.v1.cni.cncf.io/networks`` for an RDMA network."""
    node_selector: dict[LabelKey, LabelValue] = Field(default={})
    tolerations: list[TolerationConfig] = Field(default=[])
    spread: Annotated[list[LabelKey], EachOnce] = Field(default=["kubernetes.io/hostname"])
    """Node labels over whose values pods are spread evenly where that is possible."""
    queue: ServiceName | None = None
    """Kueue's local queue; null does without Kueue."""
    grace_seconds: Annotated[Count, Field(ge=2 * LEAVING)] = 600
    """So long a pod that is evicted may take to save and leave: above the time that a checkpoint takes."""
    restarts: CountOrZero = 20
    """Failures of a pod, or with a JobSet's restarts of all of them, after which the job fails. Not counted are
    disruptions, stops, and ends for another pod's sake after which something new had been saved."""
    jobs: JobsConfig = JobsConfig()

    @model_validator(mode="after")
    def _fits(self) -> "Cluster":
        if size_of(self.shared_memory) >= size_of(self.memory):
            raise ValueError(
                f"shared_memory={self.shared_memory} is a part of memory={self.memory}, and leaves nothing of it: "
                "lower it, or raise memory"
            )
        if both := self.secrets.keys() & self.environment.keys():
            raise ValueError(f"environment and secrets both have {min(both)}: keep one")
        check_variables("secrets", self.secrets)
        if self.gpu_resource in self.resources:
            raise ValueError(f"resources: {self.gpu_resource} is counted by gpus_per_node: leave it out")
        self._check_places()
        return self

    def _check_places(self) -> None:
        paths = [volume.path for volume in self.volumes]
        for path in paths:
            if paths.count(path) > 1:
                raise ValueError(f"there are two volumes at {path}: choose another path for one")
            for place in (self.code, CONFIG_FOLDER, "/dev/shm", "/tmp"):  # noqa: S108
                if PurePosixPath(place).is_relative_to(path):
                    raise ValueError(f"a volume at {path} would hide a pod's {place}: choose another path")
            for place in (CONFIG_FOLDER, "/proc", "/sys"):
                if PurePosixPath(path).is_relative_to(place):
                    raise ValueError(f"no volume can be at {path}, in a pod's {place}: choose another path")

    @property
    def working_folder(self) -> str:
        """Where the configuration's relative paths begin."""
        return self.folder or self.volumes[0].path


def load_clusters(path: Path) -> dict[JobName, Cluster]:
    """The cluster file as each kind of job sees it.

    Raises:
        LaddError: naming the file, key or value at fault and what would be right.
    """
    return load_jobs(Cluster, path, EXAMPLE)
