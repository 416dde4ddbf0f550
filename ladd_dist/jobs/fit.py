"""What a job would find out only after it has waited for its nodes."""

from ladd_dist.config import Config
from ladd_dist.engines.settings import check_ranks, check_settings
from ladd_dist.jobs.cluster import JobName, NodesConfig

FLAGS: dict[JobName, list[str]] = {"synthesize": [], "train": [], "evaluate": [], "export": ["--overwrite"]}
"""What each job's launcher is told beside the configuration, so that it may be started again."""


def check_fit(name: JobName, config: Config, nodes: NodesConfig) -> None:
    """Check that a job can use all ranks that the cluster file gives it.

    Raises:
        LaddError: naming the setting that does not fit.
    """
    check_settings(config)
    if name == "train":
        size = nodes.nodes * nodes.ranks
        check_ranks(config, size)
        config.accumulation(size)
