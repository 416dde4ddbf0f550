"""A dry run in words."""

from collections.abc import Iterator

from ladd_dist.config import Config
from ladd_dist.engines.build import check_launch
from ladd_dist.methods.base import STUDENT
from ladd_dist.methods.registry import method_of
from ladd_dist.planning.dry_run.card import FakeCard
from ladd_dist.planning.dry_run.run import DryRun, ranks
from ladd_dist.planning.memory import describe, expected_state

_PER_NODE = 8
"""GPUs of a node, for DeepSpeed's estimate of a node's memory."""


def summary(config: Config, seen: DryRun, card: FakeCard, bucket: str, size: int) -> str:
    """What was counted, a line each; GB are 10^9 bytes."""
    return "\n".join(_lines(config, seen, card, bucket, size))


def offloaded(config: Config, size: int) -> str:
    """What is known of a ZeRO-3 run with state in host memory, which is real here: no iteration is run.

    Raises:
        LaddError: for what would have failed before the networks are built.
    """
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs  # late, for it is slow

    with ranks(config, size) as world:
        check_launch(config, world)
    student = method_of(config).networks(config).trained[STUDENT]
    per_node = min(size, _PER_NODE)
    host, device, _ = estimate_zero3_model_states_mem_needs(
        total_params=sum(p.numel() for p in student.parameters()),
        largest_layer_params=max(sum(p.numel() for p in m.parameters(recurse=False)) for m in student.modules()),
        num_gpus_per_node=per_node,
        num_nodes=-(-size // per_node),
        cpu_offload_params=config.zero3.offload == "all",
    )
    return "\n".join(
        (
            f"dry run: rank 0 of {size}; no iteration: zero3.offload={config.zero3.offload} keeps state in this "
            "machine's own memory",
            f"state by formula: {describe(expected_state(config, size))}",
            f"the student alone by DeepSpeed's estimate, on nodes of {per_node}: {device / 1e9:.3g} GB of a GPU, "
            f"{host / 1e9:.3g} GB of a node's memory, without activations, teacher, heads and average",
        )
    )


def _lines(config: Config, seen: DryRun, card: FakeCard, bucket: str, size: int) -> Iterator[str]:
    ran = f"{seen.micro_batches} of {seen.accumulation} micro-batches" if seen.accumulation > 1 else "one micro-batch"
    yield f"dry run: rank 0 of {size}, {card.name}, an iteration of {ran} of {bucket}"
    if seen.kernels:
        count, name = sum(seen.kernels.values()), "{}.{}".format(*card.capability)
        yield f"compiled for capability {name}: {len(seen.kernels)} programs of {count} kernels"
    yield "networks: " + ", ".join(f"{name} {count / 1e9:.3f}B" for name, count in seen.parameters.items())
    yield f"state by formula: {describe(seen.state)}"
    yield f"on the device before the first iteration: {seen.resident / 1e9:.2f} GB"
    yield "by phase: most on the device in GB, without libraries' workspaces and communication buffers; launches:"
    if seen.kernels:
        yield "  and the GB that compiled kernels read and write"
    for phase, peak in seen.peaks.items():
        over = f"  more than the card's {card.gigabytes} GB" if peak > card.gigabytes * 1e9 else ""
        by_kernels = f" {seen.moved.get(phase, 0) / 1e9:7.1f}" if seen.kernels else ""
        yield f"  {phase:<18} {peak / 1e9:7.2f} {seen.launches.get(phase, 0):7,}{by_kernels}{over}"
    if seen.micro_batches < seen.accumulation:
        yield "  the micro-batches that were left out are like the second: they add to launches and traffic alone"
    for kind, sent in sorted(seen.traffic.items()):
        yield f"{kind}: {sent.calls} calls, {sent.bytes / 1e9:.2f} GB of whole tensors"
    if not seen.waits:
        yield "the host waits for the device nowhere"
        return
    yield f"the host waits for the device {len(seen.waits)} times:"
    yield from (f"  {wait}" for wait in dict.fromkeys(map(str, seen.waits)))
