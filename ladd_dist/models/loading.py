"""Components of a diffusers folder in memory, by the libraries' own loaders."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ladd_dist.errors import LaddError
from ladd_dist.models.folder import component, component_files, weight_files

_FAULTS = (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, SafetensorError)

_COUNTED = "position_ids"
"""0, 1, 2, ...: older versions of the libraries wrote them beside the weights."""


def load_model(kind: type, folder: str | Path, name: str, **options: Any) -> Any:
    """A component with weights, of class ``kind``, on the CPU.

    Args:
        options: for the library's ``from_pretrained``, such as the dtype.

    Raises:
        LaddError: if a file is missing or not whole, or weights and config.json do not belong together.
    """
    weight_files(folder, name)
    path = component(folder, name)
    model, report = _loaded(kind, path, use_safetensors=True, output_loading_info=True, **options)
    if missing := sorted(report["missing_keys"]):  # which the libraries would fill with random numbers
        raise LaddError(f"{path} has no tensor {missing[0]}: its weights do not belong to its config.json")
    if extra := sorted(key for key in report["unexpected_keys"] if not key.endswith(_COUNTED)):
        raise LaddError(f"{path} has a tensor {extra[0]}, for which its config.json has no place")
    return model


def load_tokenizer(kind: type, folder: str | Path, name: str) -> Any:
    """A tokenizer of class ``kind``.

    Raises:
        LaddError: if a file is missing or damaged.
    """
    component_files(folder, name)
    return _loaded(kind, component(folder, name))


def _loaded(kind: Any, path: Path, **options: Any) -> Any:
    try:
        return kind.from_pretrained(path, **options)
    except _FAULTS as error:
        reason = " ".join(str(error).split())
        raise LaddError(f"{path} cannot be loaded ({reason}): download the teacher again") from None
