"""A micro-batch of random numbers, where no dataset is at hand: for a dry run, and to measure a step."""

from typing import Any

import torch

from ladd_dist.config import Config
from ladd_dist.data.buckets import Bucket, LatentSpace
from ladd_dist.data.mds import REJECTED
from ladd_dist.diffusion.batch import Batch
from ladd_dist.diffusion.conditioning import Conditioning
from ladd_dist.distributed.world import World
from ladd_dist.methods.base import Method
from ladd_dist.methods.networks import meta_backbone
from ladd_dist.methods.registry import method_of
from ladd_dist.models.registry import family_of


def random_batch(config: Config, bucket: str, count: int, device: torch.device) -> Batch:
    """So many latents of a bucket with their prompts, as the reader would give them."""
    method = method_of(config)
    latents = torch.randn(count, *LatentSpace.of(config.teacher.path).shape(Bucket.parse(bucket)), device=device)
    tokens, width = family_of(config.teacher.path).context_shape(config.teacher)
    pooled = meta_backbone(config.teacher.path).pooled_width
    cond = Conditioning(torch.randn(count, tokens, width, device=device), torch.randn(count, pooled, device=device))
    return Batch(
        latents,
        cond,
        list(range(count)),
        bucket,
        mismatched=cond if method.mismatched_prompts(config) else None,
        rejected=torch.randn_like(latents) if REJECTED in method.FIELDS else None,
    )


def random_sample(config: Config, world: World, method: Method, bucket: str, index: int) -> Any:
    """A micro-batch of a bucket on the device, with an iteration's noise."""
    space = LatentSpace.of(config.teacher.path, config.student.path)
    batch = random_batch(config, bucket, config.micro_batch(world.size), world.device)
    return method.sample(config.seed, index, batch, space.grid(*batch.latents.shape[2:]))
