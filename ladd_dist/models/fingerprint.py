"""Which teacher it was: of what a dataset or a checkpoint was made."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ladd_dist.models.folder import component, components, networks, weight_files

_BYTES = 1 << 20


def fingerprint(folder: str | Path) -> str:
    """Identify a teacher by all the weights that its pipeline reads and the transformer's config.

    SHA-256 over the config and, of each component's safetensors files, header, size and first and last MiB of
    data: seconds for 30 GB, and different for any two trained networks. Not all data are read.

    Raises:
        LaddError: naming the file that is missing or not whole.
    """
    read = components(folder)
    return _digest(folder, [file for name in networks(folder) if name in read for file in weight_files(folder, name)])


def is_of(folder: str | Path, recorded: str) -> bool:
    """Whether a recorded fingerprint is this folder's, by the definition of today or the earlier one.

    That one counted every ``*/*.safetensors``, also what the pipeline does not read. It tells nothing about a
    folder with a text encoder that is read no more: what was recorded then was drawn with it.
    """
    if recorded == fingerprint(folder):
        return True
    files = list(Path(folder).glob("*/*.safetensors"))
    if {file.parent.name for file in files} & set(networks(folder)) - set(components(folder)):
        return False
    try:
        return recorded == _digest(folder, files)
    except (OSError, SafetensorError):  # a file that the pipeline does not read is damaged
        return False


def of_weights(files: Iterable[Path]) -> str:
    """Identify safetensors files by header, size and first and last MiB of data.

    Raises:
        OSError, SafetensorError: for one that is missing or not whole.
    """
    return _with_weights(hashlib.sha256(), files)


def _digest(folder: str | Path, files: Iterable[Path]) -> str:
    return _with_weights(hashlib.sha256((component(folder, "transformer") / "config.json").read_bytes()), files)


def _with_weights(digest: "hashlib._Hash", files: Iterable[Path]) -> str:
    for file in sorted(files):
        with safe_open(file, "pt") as header:
            digest.update(repr(sorted(header.keys())).encode())
        with file.open("rb") as data:
            size = data.seek(0, 2)
            digest.update(f"{file.parent.name}/{file.name}:{size}".encode())
            for offset in (0, max(0, size - _BYTES)):
                data.seek(offset)
                digest.update(data.read(_BYTES))
    return digest.hexdigest()[:16]
