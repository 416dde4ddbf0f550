"""A dry run in words."""

from collections.abc import Iterator

from ladd_dist.planning.dry_run.card import FakeCard
from ladd_dist.planning.dry_run.run import DryRun
from ladd_dist.planning.memory import describe


def summary(seen: DryRun, card: FakeCard, bucket: str, size: int) -> str:
    """What was counted, a line each; GB are 10^9 bytes."""
    return "\n".join(_lines(seen, card, bucket, size))


def _lines(seen: DryRun, card: FakeCard, bucket: str, size: int) -> Iterator[str]:
    ran = f"{seen.micro_batches} of {seen.accumulation} micro-batches" if seen.accumulation > 1 else "one micro-batch"
    yield f"dry run: rank 0 of {size}, {card.name}, an iteration of {ran} of {bucket}"
    yield "networks: " + ", ".join(f"{name} {count / 1e9:.3f}B" for name, count in seen.parameters.items())
    yield f"state by formula: {describe(seen.state)}"
    yield f"on the device before the first iteration: {seen.resident / 1e9:.2f} GB"
    yield "most on the device by phase, in GB, without libraries' workspaces and communication buffers:"
    for phase, peak in seen.peaks.items():
        over = f"  more than the card's {card.gigabytes} GB" if peak > card.gigabytes * 1e9 else ""
        yield f"  {phase:<18} {peak / 1e9:7.2f}{over}"
    if seen.micro_batches < seen.accumulation:
        yield "  the micro-batches that were left out are like the second: they add to traffic and not to these"
    for kind, sent in sorted(seen.traffic.items()):
        yield f"{kind}: {sent.calls} calls, {sent.bytes / 1e9:.2f} GB of whole tensors"
    if not seen.waits:
        yield "the host waits for the device nowhere"
        return
    yield f"the host waits for the device {len(seen.waits)} times:"
    yield from (f"  {wait}" for wait in dict.fromkeys(map(str, seen.waits)))
