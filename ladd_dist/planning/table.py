"""A plan as lines of text, and as values for JSON."""

import json
from collections.abc import Mapping
from typing import Any

from ladd_dist.planning.advice import Advice
from ladd_dist.planning.cards import HOST_SECONDS, REACHED
from ladd_dist.planning.plan import Plan, Synthesis

PREDICTED = "Predicted from shapes and ceilings: nothing below was measured on these GPUs."


def assumptions(plan: Plan) -> list[str]:
    """What the prediction stands on."""
    card, reached = plan.cluster.card, REACHED
    shares = (
        f"{reached.matmul:.0%} in matrix products, {reached.attention:.0%} in attention, {reached.heads:.0%} in heads"
    )
    here = "" if card.name == "H200" else f", assumed of a {card.name}"
    return [
        PREDICTED,
        f"{card.name}: {card.memory / 1e9:g} GB, {card.bf16 / 1e12:g} TFLOP/s bf16 dense, {card.bandwidth / 1e9:g} "
        f"GB/s ({card.source}); {card.link / 1e9:g} GB/s to GPUs of its node, {plan.cluster.nic / 1e9:g} to others",
        f"of these are reached: {shares}, {reached.memory:.0%} of memory in copies, {reached.casts:.0%} in casts and "
        f"{reached.operators:.0%} in other operators (measured on one H200{here}); {reached.link:.0%} of links "
        "(assumed). Operators as without compilation.",
        f"a host launches an operator in {plan.cluster.host * 1e6:.3g} us"
        + (" (measured on one; --host sets it)" if plan.cluster.host == HOST_SECONDS else ""),
    ]


def table(plan: Plan, made: Synthesis | None, checkpoint: int) -> list[str]:
    """Memory, arithmetic, time, cost.

    Args:
        made: the dataset's making, if it is known how many pictures.
        checkpoint: bytes of one.
    """
    time, train = plan.time, plan.config.train
    kept = checkpoint * plan.config.most_checkpoints
    data = f"data {_seconds(time.data)}, " if plan.cluster.storage else ""
    rows = [
        *_memory(plan)[1:],
        *_parts("arithmetic of a sample, TFLOP", plan.flops, 1e12, "without what is recomputed"),
        *_parts("bytes that a GPU sends in an iteration, GB", _links(plan), 1e9),
        "",
        f"an iteration: {_seconds(time.seconds)}, bound by {time.bound} (arithmetic {_seconds(time.arithmetic)}, "
        f"memory {_seconds(time.memory)}, waiting for the host {_seconds(time.waiting)}; beside them network "
        f"{_seconds(time.network)}, {data}an average on the host {_seconds(time.average)}; alone "
        f"{_seconds(time.alone)})",
        f"a GPU's host launches {time.launches:,.0f} operators in {_seconds(time.host)}; larger micro-batches and "
        "student.compile take fewer",
        f"MFU {plan.mfu:.0%}, {plan.samples_per_second:.4g} samples/s; {train.iterations:,} iterations: "
        f"{plan.hours:.4g} hours, {plan.gpu_hours:.5g} GPU-hours",
        f"checkpoints: {checkpoint / 1e9:.4g} GB each, {kept / 1e9:.4g} GB at the most",
    ]
    if made:
        rows.append(
            f"dataset of {made.images:,} pictures: {made.gpu_hours:.4g} GPU-hours to draw, {made.bytes / 1e9:.4g} GB "
            "(text encoders and VAE not counted)"
        )
    return rows


def advised(advice: Advice, given: Plan | None) -> list[str]:
    """What to set, and what comes of it."""
    plan = advice.plan
    settings = " ".join(f"{key}={value}" for key, value in advice.overrides.items())
    rows = [f"Nothing fits as it is. The least that would: {advice.remedy}"] if advice.remedy else []
    rows.append(f"recommended: {settings or 'what is configured'}")
    faster = f", {given.time.seconds / plan.time.seconds:.2f}x as fast" if given and given.fits else ""
    rows.append(
        f"  {plan.micro_batches} micro-batches of {plan.samples}, {plan.needs.total / 1e9:.4g} GB of "
        f"{plan.cluster.card.memory / 1e9:g}, {_seconds(plan.time.seconds)} an iteration{faster}, "
        f"{plan.gpu_hours:.5g} GPU-hours on {plan.cluster.gpus} GPUs"
    )
    return rows


def _memory(plan: Plan) -> list[str]:
    room, needed = plan.cluster.card.memory, plan.needs.total
    word = "fits" if plan.fits else "DOES NOT FIT"
    note = f"{word}: {needed / 1e9:.4g} of {room / 1e9:g}; most in {plan.needs.worst.during}"
    device = _parts("memory of a GPU, GB", plan.needs.device, 1e9, note)
    return [*device, *_parts("host memory of a rank, GB", plan.needs.host, 1e9)]


def _parts(title: str, parts: Mapping[str, float], unit: float, note: str = "") -> list[str]:
    """A heading with its sum, and a row for each part."""
    head = f"{title:<44}{sum(parts.values()) / unit:>10.4g}  {note}".rstrip()
    return ["", head, *(f"  {name:<42}{value / unit:>10.4g}" for name, value in parts.items())]


def _links(plan: Plan) -> dict[str, float]:
    return {"to GPUs of its node": plan.time.sent.inside, "to other nodes": plan.time.sent.between}


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def values(plan: Plan) -> dict[str, Any]:
    """For JSON: bytes, FLOP, seconds."""
    time = plan.time
    return {
        "predicted": True,
        "gpu": plan.cluster.card.name,
        "gpus_per_node": plan.cluster.per_node,
        "nodes": plan.cluster.nodes,
        "assumptions": assumptions(plan),
        "micro_batch": plan.samples,
        "micro_batches": plan.micro_batches,
        "fits": plan.fits,
        "device_bytes": plan.needs.device,
        "host_bytes": plan.needs.host,
        "flops_per_sample": plan.flops,
        "sent_bytes": _links(plan),
        "step_seconds": {
            "total": time.seconds,
            "arithmetic": time.arithmetic,
            "memory": time.memory,
            "waiting": time.waiting,
            "network": time.network,
            "alone": time.alone,
            "data": time.data,
            "average": time.average,
        },
        "bound": time.bound,
        "launches": time.launches,
        "host_seconds": time.host,
        "mfu": plan.mfu,
        "samples_per_second": plan.samples_per_second,
        "hours": plan.hours,
        "gpu_hours": plan.gpu_hours,
    }


def as_json(given: Plan | None, advice: Advice, made: Synthesis | None, checkpoint: int) -> str:
    """All of it."""
    recommended = {"overrides": advice.overrides, "remedy": advice.remedy, **values(advice.plan)}
    content = {
        "configured": values(given) if given else None,
        "recommended": recommended,
        "synthesis": vars(made) if made else None,
        "checkpoint_bytes": checkpoint,
    }
    return json.dumps(content, indent=1) + "\n"
