"""The card that a dry run pretends to have: by name, as measurements and kernels are chosen by it."""

import re
from dataclasses import dataclass

from ladd_dist.errors import LaddError


@dataclass(frozen=True)
class Card:
    """A GPU.

    Attributes:
        name: as PyTorch calls it.
        capability: major and minor compute capability.
        gigabytes: nominal memory, 10^9 bytes.
    """

    name: str
    capability: tuple[int, int]
    gigabytes: int


CARDS = {
    "A100": Card("NVIDIA A100-SXM4-80GB", (8, 0), 80),
    "L40S": Card("NVIDIA L40S", (8, 9), 48),
    "H100": Card("NVIDIA H100 80GB HBM3", (9, 0), 80),
    "H200": Card("NVIDIA H200", (9, 0), 141),
    "B200": Card("NVIDIA B200", (10, 0), 180),
}
"""By the names that ``--card`` knows; memory by NVIDIA's data sheets."""

_OWN = re.compile(r"(?P<name>[^:]+):(?P<major>\d+)\.(?P<minor>\d):(?P<gigabytes>\d+)")


def card(text: str) -> Card:
    """A known card, or one that is described as ``NAME:CAPABILITY:GB``, such as ``NVIDIA GH200:9.0:96``.

    Raises:
        LaddError: for any other text, listing the known ones.
    """
    if found := _OWN.fullmatch(text):
        capability = int(found["major"]), int(found["minor"])
        return Card(found["name"], capability, int(found["gigabytes"]))
    if text not in CARDS:
        raise LaddError(
            f"--card {text} is not known: choose one of {', '.join(CARDS)}, or describe yours as PyTorch's name, "
            "compute capability and GB, such as 'NVIDIA GH200 480GB:9.0:96'"
        )
    return CARDS[text]
