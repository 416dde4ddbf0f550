"""What a job would find out only after it has waited for its nodes."""

import os
from pathlib import Path

from ladd_dist.config import Config
from ladd_dist.engines.settings import check_ranks, check_settings
from ladd_dist.errors import LaddError
from ladd_dist.jobs.cluster import JobName, NodesConfig


def chain(config: Config) -> tuple[JobName, ...]:
    """The jobs of a run from its dataset to its export, each of which needs what the one before it has made."""
    return "pairs" if config.method.trains_on_pairs else "synthesize", "train", "evaluate", "export"


def check_fit(name: JobName, config: Config, nodes: NodesConfig) -> None:
    """Check that a job can use all ranks that the cluster file gives it.

    Raises:
        LaddError: naming the setting that does not fit.
    """
    check_settings(config)
    if name in ("synthesize", "encode"):
        check_latents(config)
    size = nodes.nodes * nodes.ranks
    if name == "train":
        check_ranks(config, size)
        config.accumulation(size)
    settings, buckets = config.evaluation, config.synthesis.buckets
    if name == "evaluate" and size > (most := _most_pieces(settings.samples, settings.batch, buckets)):
        raise LaddError(
            f"evaluation.samples={settings.samples} are at most {most} batches of evaluation.batch={settings.batch}, "
            f"and {size} ranks would share them: set fewer for jobs.evaluate in the cluster file, or a smaller batch"
        )


def check_latents(config: Config) -> None:
    """Check that the method can be trained on latents without a rejected one.

    Raises:
        LaddError: naming what makes its dataset.
    """
    if config.method.trains_on_pairs:
        raise LaddError(
            f"method.name={config.method.name} needs preference pairs, and data.path={config.data.path} would hold "
            "latents without a rejected one: make pairs with launchers/pairs.py"
        )


def check_prompts(config: Config, nodes: NodesConfig, prompts: Path) -> None:
    """Check that the prompts make a part for each rank of a synthesis, where their list can be seen from here.

    Raises:
        LaddError: naming the settings that make too few parts.
    """
    settings, size = config.synthesis, nodes.nodes * nodes.ranks
    if not (prompts.is_file() and os.access(prompts, os.R_OK)):
        return
    lines = [line for line in prompts.read_bytes().splitlines() if line.strip()]
    pictures = len(lines) * settings.images_per_prompt
    if size > (most := _most_pieces(pictures, settings.part_samples, settings.buckets)):
        raise LaddError(
            f"{prompts} makes {pictures} pictures, at most {most} parts of synthesis.part_samples="
            f"{settings.part_samples}, and {size} ranks would share them: set fewer for jobs.synthesize in the "
            "cluster file, or smaller parts"
        )


def _most_pieces(pictures: int, piece: int, buckets: list[str]) -> int:
    """Pieces that pictures can be cut into: each is of one bucket, and how many a bucket has is not known here."""
    return pictures // piece + len(buckets)
