"""The record of a build of the digits teacher: how it was made, how long it took, what it scores."""

import argparse
import json
import platform
import time
from typing import Any

from ladd_dist.errors import LaddError
from ladd_dist.versions import version_of

LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "scikit-learn")


class Record:
    """Scores and times of the run, gathered under the names that ``build.json`` has."""

    def __init__(self, args: argparse.Namespace) -> None:
        flags = {key: value for key, value in vars(args).items() if key not in ("out", "scores_only", "judge_only")}
        self._path = args.out / "build.json"
        self.content: dict[str, Any] = {
            "command": "python -m ladd_dist.digits.build",
            "settings": flags,
            "versions": {name: version_of(name) for name in LIBRARIES},
            "python": platform.python_version(),
            "seconds": {},
        }
        self._since = time.monotonic()

    def lap(self, name: str) -> None:
        """Book the time since the last lap under ``name``."""
        now = time.monotonic()
        self.content["seconds"][name] = round(now - self._since, 1)
        self._since = now

    def resume(self) -> None:
        """Take over what an earlier run recorded, to score its result again.

        Raises:
            LaddError: if nothing was recorded.
        """
        if not self._path.is_file():
            raise LaddError(f"{self._path} is missing: build the teacher before scoring it")
        images = self.content["settings"]["images"]
        self.content = json.loads(self._path.read_text(encoding="utf-8"))
        self.content["settings"]["images"] = images

    def write(self) -> None:
        """Write the record, floats rounded to 5 digits so that diffs stay readable."""
        rounded = json.loads(json.dumps(self.content), parse_float=lambda text: round(float(text), 5))
        self._path.write_text(json.dumps(rounded, indent=1) + "\n", encoding="utf-8")
