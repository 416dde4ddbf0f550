"""Versions of what is installed, for records and tables."""

from importlib.metadata import PackageNotFoundError, version


def version_of(package: str) -> str:
    """Its version, or ``not installed``: code is importable from a checkout, too."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
