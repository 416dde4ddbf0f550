"""What the cluster files of all schedulers have in common."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import BeforeValidator, Field, model_validator

from ladd_dist.config.loading import validate
from ladd_dist.config.section import Section
from ladd_dist.config.values import Count, CountOrZero, form
from ladd_dist.config.yaml import read_yaml
from ladd_dist.supervision import exits

JobName = Literal["synthesize", "encode", "pairs", "train", "evaluate", "export"]
JOBS: tuple[JobName, ...] = get_args(JobName)
DATASETS: tuple[JobName, ...] = ("synthesize", "encode", "pairs")
"""Those that make a dataset, of which a run needs one; the others need what the one before them has made."""

_CONTROLS = r"\x00-\x1f\x7f-\x9f"
CONTROL = f"[{_CONTROLS}]"
"""Line breaks and other characters that do not come through every script and manifest."""
Text = Annotated[str, BeforeValidator(lambda value: str(value) if type(value) is int else value)]
"""That may look like a number: ``10`` need not be quoted."""
Line = Annotated[str, form(f"[^{_CONTROLS}]+", "a line of text")]
VariableName = Annotated[str, form("[A-Za-z_][A-Za-z0-9_]*", "the name of a variable: letters, digits and _")]
VariableValue = Annotated[Text, form(f"[^{_CONTROLS}]*", "a line of text")]
JOB_UID = "LADD_JOB_UID"
"""Variable by which a pod knows its Job from others of the same name."""
_PLACE = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", JOB_UID, exits.VARIABLE}


def check_variables(key: str, names: Iterable[str]) -> None:
    """Check that no variable tells a rank its place: all of them would be one rank.

    Raises:
        ValueError: naming the key and the variable.
    """
    if reserved := [name for name in names if name in _PLACE or name.startswith("PET_")]:
        raise ValueError(f"{key}: {reserved[0]} is set by whatever starts the ranks: leave it out")


class NodesConfig(Section):
    """How many nodes, and what runs on each of them."""

    nodes: Count
    gpus_per_node: CountOrZero
    ranks_per_node: Count | None = None
    """null is a rank per GPU, or one without GPUs."""
    cpus_per_rank: Count | None = None
    """For the rank itself and its loader processes; null is the scheduler's default."""
    environment: dict[VariableName, VariableValue] = Field(default={})
    jobs: Section = Section()
    """What a job needs in place of these, by its name."""

    @model_validator(mode="after")
    def _ranks_have_gpus(self) -> "NodesConfig":
        if self.gpus_per_node and self.ranks_per_node and self.ranks_per_node > self.gpus_per_node:
            raise ValueError(
                f"ranks_per_node={self.ranks_per_node} is more than gpus_per_node={self.gpus_per_node}: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _ranks_keep_their_places(self) -> "NodesConfig":
        check_variables("environment", self.environment)
        return self

    @property
    def ranks(self) -> int:
        """Processes per node."""
        return self.ranks_per_node or self.gpus_per_node or 1


_Cluster = TypeVar("_Cluster", bound=NodesConfig)


def load_jobs(kind: type[_Cluster], path: Path, example: str) -> dict[JobName, _Cluster]:
    """A cluster file as each kind of job sees it: what ``jobs`` has for it is in place of the file's own.

    An export is one process on one node, by default with one GPU if there are any.

    Args:
        kind: the scheduler's description of a cluster.
        path: the file.
        example: a file of that kind.

    Raises:
        LaddError: naming the file, key or value at fault and what would be right.
    """
    tree = read_yaml(path, "cluster", example)
    cluster = validate(kind, tree, path)
    limits = {name: getattr(cluster.jobs, name).model_dump(exclude_none=True) for name in JOBS}
    one = {"nodes": 1, "ranks_per_node": 1, "gpus_per_node": min(1, cluster.gpus_per_node)}
    limits["export"] = one | limits["export"]
    return {name: validate(kind, tree | own, f"{path}: jobs.{name}") for name, own in limits.items()}
