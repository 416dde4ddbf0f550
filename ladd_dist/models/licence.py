"""The licence of a teacher, as its folder states it: a student's weights are derived from the teacher's."""

from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub.repocard import metadata_load
from yaml import YAMLError

_KEYS = ("license", "license_name", "license_link")
"""What the hub reads at the top of a README.md."""
_FILES = ("LICENSE", "LICENCE", "NOTICE")
"""How the files begin that have to be passed on, whatever their ending."""


@dataclass(frozen=True)
class Licence:
    """What a folder states.

    Attributes:
        keys: the hub's keys that are in its README.md, such as ``license: other``.
        files: texts that have to be passed on with the weights.
    """

    keys: dict[str, str] = field(default_factory=dict)
    files: tuple[Path, ...] = ()

    @classmethod
    def of(cls, folder: str | Path) -> "Licence":
        """Read it; a folder without a README.md, or with one that cannot be read, has no keys."""
        readme = Path(folder) / "README.md"
        try:
            found = (metadata_load(readme) if readme.is_file() else None) or {}
        except (OSError, ValueError, YAMLError):
            found = {}
        keys = {key: found[key] for key in _KEYS if isinstance(found.get(key), str)}
        files = (path for path in sorted(Path(folder).iterdir()) if path.name.upper().startswith(_FILES))
        return cls(keys, tuple(path for path in files if path.is_file()))

    @property
    def name(self) -> str | None:
        """What it is called; None if that is nowhere said."""
        return self.keys.get("license_name") or self.keys.get("license")
