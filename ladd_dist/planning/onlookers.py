"""What a rank keeps beside the networks that train: what draws, judges and scores in a run, and what watches it."""

from collections import Counter
from contextlib import suppress

from torch import nn

from ladd_dist.config import Config
from ladd_dist.config.values import clip_folder
from ladd_dist.engines.ema import average_place
from ladd_dist.engines.ranges import watched
from ladd_dist.engines.registry import engine_entry
from ladd_dist.errors import MissingWeights
from ladd_dist.methods.base import STUDENT, Networks
from ladd_dist.methods.registry import method_of
from ladd_dist.models.clip import clip_on_meta, vision_on_meta
from ladd_dist.models.registry import family_of
from ladd_dist.planning.memory import StateBytes, residency, state_of

_FP32 = 4


def resident(config: Config, size: int, rank: int = 0) -> StateBytes:
    """All that rank ``rank`` out of ``size`` keeps, from configs and shapes alone. Rank 0 holds most."""
    networks = method_of(config).networks(config)
    return state_of(config, networks, size, rank) + onlookers(config, networks, size, rank)


def onlookers(config: Config, networks: Networks, size: int, rank: int = 0) -> StateBytes:
    """Of it, what is no network of the method's.

    ``vae``, a decoder for previews, which rank 0 alone decodes, and one for evaluations; ``judge`` and ``scorers`` of
    evaluations, but for those that are not there, without which they go on, and functions of a user's, which nobody
    can count; ``watched``, weights and average as they were a row ago.
    """
    state: StateBytes = Counter()
    evaluates = config.train.evaluate_every > 0
    decoders = (config.train.preview_every > 0 and rank == 0) + evaluates
    if decoders:
        family = family_of(config.teacher.path)
        state["device", "vae"] = decoders * _bytes(family.decoder_on_meta(config.teacher.path))
    if evaluates:
        state["device", "judge"] = _judge(config.evaluation.judge)
        state["device", "scorers"] = sum(map(_scorer, config.evaluation.scorers))
    count, masters = _watched(config, networks.trained[STUDENT], size, rank), residency(config).masters
    for place in (masters, average_place(config)):
        state[place, "watched"] += _FP32 * count
    return state


def _judge(name: str) -> int:
    if (folder := clip_folder(name)) is not None:
        with suppress(MissingWeights):
            return _bytes(vision_on_meta(folder))
    if name == "digits":
        from ladd_dist.digits.judge import FeatureNet  # late: it brings a whole library of classifiers

        return _bytes(FeatureNet())
    return 0


def _scorer(name: str) -> int:
    if (folder := clip_folder(name)) is not None:
        with suppress(MissingWeights):
            return _bytes(clip_on_meta(folder))
    return 0


def _watched(config: Config, student: nn.Module, size: int, rank: int) -> int:
    """How many weights of this rank's."""
    layout = engine_entry(config.engine).layout(config, size, rank)
    held = (layout(p.shape) for p in student.parameters() if p.requires_grad)
    return sum(len(watched(part.offset, part.held)) for part in held)


def _bytes(network: nn.Module) -> int:
    return sum(t.nbytes for tensors in (network.parameters(), network.buffers()) for t in tensors)
