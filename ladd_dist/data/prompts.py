"""Prompt lists, and the dealing of every picture to a bucket."""

import json
from dataclasses import dataclass
from pathlib import Path

from ladd_dist.data.buckets import Bucket
from ladd_dist.errors import LaddError


@dataclass(frozen=True)
class Request:
    """One picture to draw. ``id`` is its number in the whole list and seeds its noise."""

    id: int
    prompt: str
    bucket: Bucket


def read_requests(path: str | Path, buckets: list[str], images_per_prompt: int = 1) -> list[Request]:
    """Read a prompt file and number its pictures.

    ``.jsonl`` lines are objects with ``prompt`` and optionally ``bucket``; ``.txt`` lines are prompts. A prompt
    without a bucket takes the next of ``buckets`` in turn, so every aspect ratio gets its share.

    Raises:
        LaddError: naming the file and line that cannot be used.
    """
    path = Path(path)
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise LaddError(f"prompt file {path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise LaddError(f"prompt file {path} is not UTF-8 text") from None
    requests: list[Request] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        prompt, name = _parse(line, path, number)
        if name is not None and name not in buckets:
            raise LaddError(f"{path}:{number}: bucket '{name}' is not one of the configured {', '.join(buckets)}")
        for _ in range(images_per_prompt):
            chosen = name or buckets[len(requests) % len(buckets)]
            requests.append(Request(len(requests), prompt, Bucket.parse(chosen)))
    if not requests:
        raise LaddError(f"prompt file {path} holds no prompts")
    return requests


def _parse(line: str, path: Path, number: int) -> tuple[str, str | None]:
    if path.suffix == ".txt":
        return line.strip(), None
    try:
        entry = json.loads(line)
        prompt, bucket = entry["prompt"], entry.get("bucket")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise LaddError(f'{path}:{number}: expected {{"prompt": "...", "bucket": "HxW"}}') from None
    if not isinstance(prompt, str) or not isinstance(bucket, str | None):
        raise LaddError(f"{path}:{number}: 'prompt' and 'bucket' must be text")
    return prompt, bucket


def first_of_each_bucket(requests: list[Request], count: int) -> list[list[Request]]:
    """Up to ``count`` requests of every bucket, buckets in order of first appearance."""
    chosen: dict[str, list[Request]] = {}
    for request in requests:
        rows = chosen.setdefault(request.bucket.name, [])
        if len(rows) < count:
            rows.append(request)
    return list(chosen.values())
