"""Are all ranks of one mind: configuration, code, what they read, software and devices."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

import kernels
import ladd_dist
from ladd_dist.config import Config
from ladd_dist.distributed.world import World
from ladd_dist.errors import LaddError
from ladd_dist.preflight.findings import Finding, RankPlace, and_more, hosts_of, odd_one
from ladd_dist.versions import version_of

_DRIVER = Path("/proc/driver/nvidia/version")
_MAY_DIFFER = {"driver", "GPU"}
"""It runs, at the pace of the slowest; NCCL asks for equal versions of itself alone."""


@dataclass(frozen=True)
class Identity:
    """What a rank is made of.

    Attributes:
        settings: the configuration's, by dotted key, as text.
        inputs: of what it reads, by name, a digest.
        device: the GPU's own number, empty on a CPU.
        problem: why the inputs cannot be used, as an error's line; empty if they can.
    """

    settings: dict[str, str]
    code: str
    inputs: dict[str, str]
    versions: dict[str, str]
    device: str
    problem: str


def identity(
    config: Config, check: Callable[[], object], inputs: Mapping[str, Callable[[], str]], world: World
) -> Identity:
    """This rank's.

    Args:
        check: whether the configuration can be used; may raise LaddError.
        inputs: what makes the digest of each; may raise LaddError.
    """
    digests, problem = {}, ""
    try:
        check()
        digests = {name: digest() for name, digest in inputs.items()}
    except LaddError as error:
        problem = str(error)
    uuid = str(torch.cuda.get_device_properties(world.device).uuid) if world.device.type == "cuda" else ""
    return Identity(_flat(config.model_dump()), code_digest(), digests, _versions(world), uuid, problem)


@cache
def code_digest() -> str:
    """Of the source files that this process may import."""
    digest = hashlib.sha256()
    for package in (ladd_dist, kernels):
        root = Path(str(package.__file__)).parent
        for file in sorted(root.rglob("*.py")):
            digest.update(f"{package.__name__}/{file.relative_to(root)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": str(value)}
    return flat


def _versions(world: World) -> dict[str, str]:
    found = {name: version_of(name) for name in ("ladd_dist", "torch")}
    if world.device.type == "cuda":
        found["CUDA"] = str(torch.version.cuda)
        found["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
        found["driver"] = _driver()
        found["GPU"] = torch.cuda.get_device_name(world.device)
    return found


def _driver() -> str:
    """Such as 580.65.06; containers may hide it."""
    words = _DRIVER.read_text(encoding="utf-8").split() if _DRIVER.is_file() else []
    return next((word for word in words if word[0].isdigit()), "unknown")


def judge(ranks: Sequence[Identity], places: Sequence[RankPlace]) -> list[Finding]:
    """Everything in which all ranks have to be alike."""
    digests = [hashlib.sha256(str(sorted(rank.settings.items())).encode()).hexdigest()[:12] for rank in ranks]
    return [
        _settings(ranks, places, digests[0]),
        _alike("code", [f"{rank.versions['ladd_dist']}, sources {rank.code}" for rank in ranks], places),
        *_inputs(ranks, places),
        _software(ranks, places),
        *_devices(ranks, places),
    ]


def _settings(ranks: Sequence[Identity], places: Sequence[RankPlace], digest: str) -> Finding:
    odd = odd_one([tuple(sorted(rank.settings.items())) for rank in ranks])
    if odd is None:
        return Finding("config", "ok", f"{digest}, the same on every rank")
    mine, usual = ranks[odd.rank].settings, ranks[odd.usual].settings
    key = next(key for key in [*usual, *mine] if mine.get(key) != usual.get(key))
    who = and_more(f"{places[odd.rank]} has {key}={mine.get(key)}", odd.ranks)
    return Finding("config", "failed", f"{who}, most have {usual.get(key)}: start every rank with the same command")


def _alike(check: str, values: Sequence[str], places: Sequence[RankPlace]) -> Finding:
    odd = odd_one(values)
    if odd is None:
        return Finding(check, "ok", f"{values[0]}, the same on every rank")
    who = and_more(f"{places[odd.rank]} has {values[odd.rank]}", odd.ranks)
    remedy = "give every node the same, best from one file system"
    return Finding(check, "failed", f"{check} differs: {who}, most have {values[odd.usual]}: {remedy}")


def _inputs(ranks: Sequence[Identity], places: Sequence[RankPlace]) -> list[Finding]:
    """A problem that all have is no rank's own."""
    bad = [place for rank, place in zip(ranks, places, strict=True) if rank.problem]
    if bad:
        text = ranks[bad[0].rank].problem
        who = "" if len(bad) == len(ranks) else f"{and_more(str(bad[0]), len(bad))}, not on every rank: "
        return [Finding("inputs", "failed", who + text, hosts_of(bad, places))]
    return [_alike(name, [rank.inputs[name] for rank in ranks], places) for name in ranks[0].inputs]


def _software(ranks: Sequence[Identity], places: Sequence[RankPlace]) -> Finding:
    for name in [name for name in ranks[0].versions if name != "ladd_dist"]:
        values = [rank.versions.get(name, "none") for rank in ranks]
        if odd := odd_one(values):
            who = and_more(f"{places[odd.rank]} has {name} {values[odd.rank]}", odd.ranks)
            text = f"{who}, most have {values[odd.usual]}"
            if name in _MAY_DIFFER:
                return Finding("software", "warning", f"{text}: the slowest sets the pace")
            return Finding("software", "failed", f"{text}: install the same on every node")
    return Finding("software", "ok", ", ".join(f"{name} {found}" for name, found in ranks[0].versions.items()))


def _devices(ranks: Sequence[Identity], places: Sequence[RankPlace]) -> list[Finding]:
    """Two ranks on one GPU wait for each other for ever."""
    if not ranks[0].device:
        return []
    first: dict[str, RankPlace] = {}
    for rank, place in zip(ranks, places, strict=True):
        if (other := first.setdefault(rank.device, place)) is not place:
            remedy = "start as many ranks on a node as it has GPUs, and let each see them all or its own"
            return [Finding("devices", "failed", f"{place} and {other} have the same GPU: {remedy}")]
    return [Finding("devices", "ok", f"{len(ranks)} GPUs, one for each rank")]
