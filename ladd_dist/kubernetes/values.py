"""What names, paths and quantities of Kubernetes may be."""

from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, Field

from ladd_dist.jobs.cluster import Line

LONGEST_NAME = 63
"""Of a host, and of a label's value."""
_NAME = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_KEY = rf"({_NAME}(\.{_NAME})*/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"


def _mount_path(text: str) -> str:
    path = PurePosixPath(text)
    if not path.is_absolute() or ".." in path.parts or path == PurePosixPath("/"):
        raise ValueError("must be an absolute path below /, without ..")
    return str(path)


ServiceName = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")]
"""Of a headless service and, with a number behind it, of hosts: lower-case letters, digits and -."""
ObjectName = Annotated[str, Field(pattern=rf"^{_NAME}(\.{_NAME})*$", max_length=253)]
LabelKey = Annotated[str, Field(pattern=f"^{_KEY}$")]
LabelValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", max_length=LONGEST_NAME)]
SecretKey = Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)]
Bytes = Annotated[str, Field(pattern="^[1-9][0-9]{0,7}(Ki|Mi|Gi|Ti)$")]
"""Such as 64Gi."""
Amount = Annotated[int, Field(gt=0, lt=2**63)]
"""Of a resource, which may be counted in bytes."""
UserId = Annotated[int, Field(gt=0, lt=2**31)]
"""Of a user or a group."""
MountPath = Annotated[Line, Field(pattern="^[^:]+$"), AfterValidator(_mount_path)]
Image = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:@-]*$")]


def size_of(quantity: str) -> int:
    """Bytes."""
    return int(quantity[:-2]) << 10 * (1 + ["Ki", "Mi", "Gi", "Ti"].index(quantity[-2:]))
