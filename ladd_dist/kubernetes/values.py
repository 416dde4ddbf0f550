"""What names, paths and quantities of Kubernetes may be."""

from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, Field

from ladd_dist.config.values import form
from ladd_dist.jobs.cluster import Line

LONGEST_NAME = 63
"""Of a host."""
_NAME = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"


def _mount_path(text: str) -> str:
    path = PurePosixPath(text)
    if not path.is_absolute() or ".." in path.parts or path == PurePosixPath("/"):
        raise ValueError("must be an absolute path below /, without ..")
    return str(path)


_ALNUM = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
ServiceName = Annotated[
    str,
    form("[a-z]([-a-z0-9]{0,61}[a-z0-9])?", "a name of at most 63 lower-case letters, digits and -, a letter first"),
]
"""Of a headless service and, with a number behind it, of hosts."""
ObjectName = Annotated[
    str, Field(max_length=253), form(rf"{_NAME}(\.{_NAME})*", "a name of lower-case letters, digits, - and .")
]
LabelKey = Annotated[
    str, form(rf"({_NAME}(\.{_NAME})*/)?{_ALNUM}", "a key such as topology.kubernetes.io/zone, without spaces")
]
LabelValue = Annotated[str, form(f"({_ALNUM})?", "a label's value: at most 63 letters, digits, -, _ and .")]
ResourceName = Annotated[
    str, form(rf"{_NAME}(\.{_NAME})*/{_ALNUM}|hugepages-[0-9]+[MG]i", "a resource such as nvidia.com/gpu")
]
"""Of what a device plugin hands out; the others have keys of their own."""
SecretKey = Annotated[
    str, Field(max_length=253), form("[-._a-zA-Z0-9]+", "a key of a Secret: letters, digits, -, _ and .")
]
Bytes = Annotated[str, form("[1-9][0-9]{0,7}[KMGT]i", "a number with Ki, Mi, Gi or Ti behind it, such as 64Gi")]
Amount = Annotated[int, Field(gt=0, lt=2**63)]
"""Of a resource, which may be counted in bytes."""
UserId = Annotated[int, Field(gt=0, lt=2**31)]
"""Of a user or a group."""
MountPath = Annotated[Line, form("[^:]+", "a path without :"), AfterValidator(_mount_path)]
Image = Annotated[str, form("[A-Za-z0-9][A-Za-z0-9._/:@-]*", "an image such as REGISTRY/NAME:TAG")]


def size_of(quantity: str) -> int:
    """Bytes."""
    return int(quantity[:-2]) << 10 * (1 + ["Ki", "Mi", "Gi", "Ti"].index(quantity[-2:]))
