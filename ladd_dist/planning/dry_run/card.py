"""The card that a dry run pretends to have: by name, as measurements and kernels are chosen by it."""

import re
from dataclasses import dataclass

from ladd_dist.errors import LaddError
from ladd_dist.planning import cards


@dataclass(frozen=True)
class FakeCard:
    """A GPU in name only.

    Attributes:
        name: as PyTorch calls it.
        capability: major and minor compute capability.
        gigabytes: nominal memory, 10^9 bytes.
    """

    name: str
    capability: tuple[int, int]
    gigabytes: int


_CAPABILITY = r"(?P<major>\d+)\.(?P<minor>\d)"
_OWN = re.compile(rf"(?P<name>[^:]+):{_CAPABILITY}:(?P<gigabytes>\d+)")

KNOWN = [name for name, known in cards.CARDS.items() if re.fullmatch(_CAPABILITY, known.capability)]
"""Of the planner's cards those that CUDA drives, as ``--gpu`` names them."""


def fake_card(text: str) -> FakeCard:
    """A known card, or one that is described as ``NAME:CAPABILITY:GB``, such as ``NVIDIA GH200:9.0:96``.

    Raises:
        LaddError: for any other text, listing the known ones.
    """
    if text in KNOWN:
        known = cards.CARDS[text]
        text = f"{known.device}:{known.capability}:{known.memory / 1e9:.0f}"
    found = _OWN.fullmatch(text)
    if found is None:
        raise LaddError(
            f"--gpu {text} is not known to a dry run: choose one of {', '.join(KNOWN)}, or describe yours as "
            "PyTorch's name, compute capability and GB, such as 'NVIDIA GH200 480GB:9.0:96'"
        )
    return FakeCard(found["name"], (int(found["major"]), int(found["minor"])), int(found["gigabytes"]))
