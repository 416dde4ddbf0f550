"""What a job would find out only after it has waited for its nodes."""

import os
from pathlib import Path

from ladd_dist.config import Config
from ladd_dist.engines.settings import check_ranks, check_settings
from ladd_dist.errors import LaddError
from ladd_dist.jobs.cluster import JobName, NodesConfig

FLAGS: dict[JobName, list[str]] = {"synthesize": [], "train": [], "evaluate": [], "export": ["--overwrite"]}
"""What each job's launcher is told beside the configuration, so that it may be started again."""


def check_fit(name: JobName, config: Config, nodes: NodesConfig) -> None:
    """Check that a job can use all ranks that the cluster file gives it.

    Raises:
        LaddError: naming the setting that does not fit.
    """
    check_settings(config)
    size = nodes.nodes * nodes.ranks
    if name == "train":
        check_ranks(config, size)
        config.accumulation(size)
    if name == "evaluate" and size > (most := _most_batches(config)):
        settings = config.evaluation
        raise LaddError(
            f"evaluation.samples={settings.samples} are at most {most} batches of evaluation.batch={settings.batch}, "
            f"and {size} ranks would share them: set fewer for jobs.evaluate in the cluster file, or a smaller batch"
        )


def check_parts(config: Config, nodes: NodesConfig, prompts: Path) -> None:
    """Check that each rank of a synthesis can have a part, where the list of prompts can be seen from here.

    Raises:
        LaddError: naming the settings that make too few parts.
    """
    settings, size = config.synthesis, nodes.nodes * nodes.ranks
    if not (prompts.is_file() and os.access(prompts, os.R_OK)):
        return
    lines = [line for line in prompts.read_bytes().splitlines() if line.strip()]
    pictures = len(lines) * settings.images_per_prompt
    most = pictures // settings.part_samples + len(settings.buckets)
    if size > most:
        raise LaddError(
            f"{prompts} makes {pictures} pictures, at most {most} parts of synthesis.part_samples="
            f"{settings.part_samples}, and {size} ranks would share them: set fewer for jobs.synthesize in the "
            "cluster file, or smaller parts"
        )


def _most_batches(config: Config) -> int:
    """Each is of one bucket; how many pictures each bucket has, only the prompts say."""
    return config.evaluation.samples // config.evaluation.batch + len(config.synthesis.buckets)
