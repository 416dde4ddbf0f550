"""The engines by name. Whoever adds one calls `register` and touches nothing else."""

from ladd_dist.engines.builtin import BUILTIN
from ladd_dist.engines.entry import EngineEntry
from ladd_dist.errors import LaddError

_ENTRIES: dict[str, EngineEntry] = dict(BUILTIN)


def register(name: str, entry: EngineEntry) -> None:
    """Make ``engine=name`` an engine.

    Raises:
        ValueError: if there is one of that name.
    """
    if name in _ENTRIES:
        raise ValueError(f"an engine {name} is registered already")
    _ENTRIES[name] = entry


def engines() -> dict[str, EngineEntry]:
    """All that are registered."""
    return dict(_ENTRIES)


def engine_entry(name: str) -> EngineEntry:
    """An engine by name.

    Raises:
        LaddError: listing the known ones.
    """
    if name not in _ENTRIES:
        raise LaddError(f"engine={name} is not known: set engine to {', '.join(_ENTRIES)}")
    return _ENTRIES[name]
