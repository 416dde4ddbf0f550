"""GPU types: what their makers say that they reach, and what was measured here."""

from dataclasses import dataclass

from ladd_dist.errors import LaddError

_TERA, _GIGA = 1e12, 1e9


UNKNOWN = "unknown"
"""Capability of a card that is given by its ceilings."""


@dataclass(frozen=True)
class Card:
    """One type. Peaks are ceilings: dense, and of the whole device.

    Attributes:
        name: as a command line gives it.
        device: as PyTorch calls it.
        memory: bytes.
        bf16: FLOP/s of matrix products in bf16 with fp32 accumulation, without sparsity.
        bandwidth: bytes/s of its memory.
        link: bytes/s to the other GPUs of a node, in each direction.
        capability: CUDA's compute capability, or AMD's architecture.
        source: where these are from.
    """

    name: str
    device: str
    memory: float
    bf16: float
    bandwidth: float
    link: float
    capability: str
    source: str

    @property
    def arch(self) -> int | None:
        """Ten times CUDA's compute capability, 0 of other makers' cards; None if it is not known."""
        number = self.capability.replace(".", "")
        return int(number) if number.isdecimal() else None if self.capability == UNKNOWN else 0


@dataclass(frozen=True)
class Reached:
    """Shares of a card's peaks that programs reach.

    Attributes:
        matmul: of ``bf16``, by matrix products.
        attention: of ``bf16``, by attention's own, forward and backward together.
        heads: of ``bf16``, by all of the discriminator heads' passes, everything included.
        operators: of ``bandwidth``, by a backbone's other operators, launched one by one.
        casts: of ``bandwidth``, by what engines do with weights and gradients: casts, copies, sums.
        memory: of ``bandwidth``, by plain copies and the update.
        link: of a link's bytes/s, by collectives of large messages.
    """

    matmul: float = 0.686
    attention: float = 0.35
    heads: float = 0.18
    operators: float = 0.25
    casts: float = 0.75
    memory: float = 0.89
    link: float = 0.8


FLOAT8_SPEED = 2
"""Times ``bf16``: the ceiling of products in 8 bits with fp32 accumulation on all of the below that have them, by the
same sheets. That the same share of it is reached is an assumption."""

REACHED = Reached()
"""Measured on one H200 (docs/benchmarks): 679 TFLOP/s in matrix products and 4,271 GB/s in copies, of 989 and 4,800;
347 TFLOP/s in attention and about 180 in heads, by this repository's kernels. By the profiler all other operators of
a sample of SD3.5 Large took 0.27 s. The student's weights to bf16 in three passes, 145 GB, are 0.04 of them, and as
many bytes of its gradients' casts and sums as much if they are as fast; then the rest reaches 227 GB in 0.19 s. Links
are an assumption (0.8): no machine of several GPUs was at hand. On every other card all of them are assumptions."""

HOST_SECONDS = 42e-6
"""That the one host measured, 16 cores of a virtual machine, took for an operator of a step that is not compiled:
40 to 44 us in all four passes of the backbones by PyTorch's kernels, in three of which the GPU was faster by plan.
What a call of this repository's kernels takes beyond an operator is not counted."""

HOST_AVERAGE = 32.2e9 / 1.65
"""Bytes/s of an average that the same host moved in its memory, the weights' way there included; of another host an
assumption."""


def _card(
    name: str, device: str, gigabytes: float, bf16: float, bandwidth: float, link: float, capability: str, source: str
) -> Card:
    return Card(name, device, gigabytes * _GIGA, bf16 * _TERA, bandwidth * _GIGA, link * _GIGA, capability, source)


_CARDS = [
    _card(
        "A100-40GB", "NVIDIA A100-SXM4-40GB", 40, 312, 1555, 300, "8.0", "NVIDIA A100 Tensor Core GPU datasheet (SXM)"
    ),
    _card(
        "A100-80GB", "NVIDIA A100-SXM4-80GB", 80, 312, 2039, 300, "8.0", "NVIDIA A100 Tensor Core GPU datasheet (SXM)"
    ),
    _card(
        "H100", "NVIDIA H100 80GB HBM3", 80, 989.4, 3350, 450, "9.0", "NVIDIA H100 Tensor Core GPU datasheet (SXM)"
    ),
    _card(
        "H100-PCIe",
        "NVIDIA H100 PCIe",
        80,
        756,
        2000,
        64,
        "9.0",
        "NVIDIA H100 Tensor Core GPU datasheet (PCIe, without bridge)",
    ),
    _card("H200", "NVIDIA H200", 141, 989.4, 4800, 450, "9.0", "NVIDIA H200 Tensor Core GPU datasheet (SXM)"),
    _card("B200", "NVIDIA B200", 180, 2250, 7700, 900, "10.0", "NVIDIA HGX B200 datasheet"),
    _card("GB200", "NVIDIA GB200", 186, 2500, 8000, 900, "10.0", "NVIDIA GB200 NVL72 datasheet"),
    _card(
        "MI300X",
        "AMD Instinct MI300X",
        192,
        1307.4,
        5300,
        448,
        "gfx942",
        "AMD Instinct MI300X accelerator data sheet",
    ),
    _card("L40S", "NVIDIA L40S", 48, 362.05, 864, 32, "8.9", "NVIDIA L40S datasheet"),
    _card(
        "RTX-4090", "NVIDIA GeForce RTX 4090", 24, 165.2, 1008, 32, "8.9", "NVIDIA Ada GPU architecture whitepaper"
    ),
    _card(
        "RTX-5090",
        "NVIDIA GeForce RTX 5090",
        32,
        209.5,
        1792,
        64,
        "12.0",
        "NVIDIA RTX Blackwell GPU architecture whitepaper",
    ),
]
CARDS = {card.name: card for card in _CARDS}
"""By name."""


def card_of(name: str) -> Card:
    """A known type, whatever its letters' case.

    Raises:
        LaddError: listing the known ones, and how to give another one's ceilings.
    """
    known = {card.lower(): card for card in CARDS}
    if name.lower() not in known:
        raise LaddError(
            f"--gpu {name} is not known: take {', '.join(CARDS)}, or give its ceilings by "
            "--gpu NAME:memory_GB,bf16_TFLOPs,memory_GBps,link_GBps"
        )
    return CARDS[known[name.lower()]]


def read_card(text: str) -> Card:
    """A name, or ``NAME:memory,bf16,bandwidth,link`` in GB, TFLOP/s, GB/s and GB/s.

    Raises:
        LaddError: if it is neither.
    """
    name, colon, numbers = text.partition(":")
    if not colon:
        return card_of(name)
    try:
        memory, bf16, bandwidth, link = (float(number) for number in numbers.split(","))
    except ValueError:
        raise LaddError(f"--gpu {text}: after the colon go memory_GB,bf16_TFLOPs,memory_GBps,link_GBps") from None
    if not all(0 < number < 1e9 for number in (memory, bf16, bandwidth, link)):
        raise LaddError(f"--gpu {text}: every ceiling must be a number above 0")
    return _card(name, name, memory, bf16, bandwidth, link, UNKNOWN, "given on the command line")
