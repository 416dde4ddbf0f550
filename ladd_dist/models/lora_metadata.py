"""What diffusers' metadata in a file of adapters says of their scales, by the rules of peft, whose settings it holds.

Some settings make the scale, others say how adapters came about. Any other that is set has peft compute something
else than ``scale * up @ down``, and is refused: a file is merged as it was trained, or not at all.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ladd_dist.errors import LaddError

METADATA = "lora_adapter_metadata"
_SCALES = {"lora_alpha", "r", "use_rslora", "alpha_pattern", "rank_pattern"}
_OF_NO_EFFECT = {
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),  # the tensors' names say it
    *("lora_dropout", "ensure_weight_tying", "megatron_core", "qalora_group_size"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),  # of `init_lora_weights`
    "fan_in_fan_out",  # peft itself takes it for false in linear layers
}
_HARMLESS = {"peft_type": ("LORA",), "init_lora_weights": (True, "gaussian", "eva", "orthogonal", "mica")}
"""Values of settings that have others, too: other first values, such as PiSSA's, are taken off the base's weights."""
_OFF: tuple[Any, ...] = (None, False, "none", {}, [])


@dataclass(frozen=True)
class Scaling:
    """What the products of a file's adapters are multiplied by.

    Attributes:
        file: for errors.
        alpha: of layers that no pattern matches; None is the rank. ``rank`` is what it should be, if that is said.
        alphas: by patterns of layers' names, of which the first that matches counts. ``ranks`` likewise.
        rooted: whether alpha is divided by the rank's root, and not by the rank.
    """

    file: Path
    alpha: float | None = None
    rank: int | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)
    rooted: bool = False

    @classmethod
    def of(cls, file: Path, text: str, component: str) -> "Scaling":
        """Read a file's metadata.

        Args:
            text: JSON. Keys of other components than ``component`` are left out, if any is of that.

        Raises:
            LaddError: naming a setting that is none of peft's, or that changes what is computed but for the scale.
        """
        settings = _settings(file, text, component)
        for key in sorted(settings.keys() - _SCALES - _OF_NO_EFFECT):
            if settings[key] not in (*_OFF, *_HARMLESS.get(key, ())):
                raise LaddError(
                    f"{file}: its {METADATA} sets {key}, with which adapters are more than scale * up @ down: merge "
                    "them into their base by the tool that trained them"
                )
        rooted = settings.get("use_rslora", False)
        if not isinstance(rooted, bool):
            raise _unreadable(file, "use_rslora", rooted)
        return cls(
            file,
            _alpha(file, "lora_alpha", settings["lora_alpha"]) if "lora_alpha" in settings else None,
            _rank(file, "r", settings["r"]) if "r" in settings else None,
            {key: _alpha(file, f"alpha_pattern {key}", v) for key, v in _patterns(file, settings, "alpha_pattern")},
            {key: _rank(file, f"rank_pattern {key}", v) for key, v in _patterns(file, settings, "rank_pattern")},
            rooted,
        )

    def scale(self, layer: str, rank: int) -> float:
        """A layer's, by its name in the network.

        Args:
            rank: of its matrices.

        Raises:
            LaddError: if they should have another.
        """
        said = self.ranks.get(_matching(self.ranks, layer), self.rank)
        if said is not None and said != rank:
            raise LaddError(
                f"{self.file}: {layer} is of rank {rank}, and of {said} by its {METADATA}: save it again by diffusers"
            )
        alpha = self.alphas.get(_matching(self.alphas, layer), self.alpha)
        return 1.0 if alpha is None else alpha / (math.sqrt(rank) if self.rooted else rank)


def _settings(file: Path, text: str, component: str) -> dict[str, Any]:
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict):
        raise LaddError(f"{file} has metadata {METADATA} that cannot be read: save it again by diffusers")
    prefix = f"{component}."
    return {key.removeprefix(prefix): value for key, value in tree.items() if key.startswith(prefix)} or tree


def _patterns(file: Path, settings: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    patterns = settings.get(key, {})
    if not isinstance(patterns, dict):
        raise _unreadable(file, key, patterns)
    for pattern in patterns:
        try:
            _ending(pattern)
        except re.error:
            raise _unreadable(file, key, pattern) from None
    return list(patterns.items())


def _matching(patterns: Mapping[str, object], layer: str) -> str:
    """The first pattern that matches a layer's last parts, as peft's ``get_pattern_key`` finds it, or the layer."""
    return next((pattern for pattern in patterns if _ending(pattern).match(layer)), layer)


def _ending(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({pattern})$")


def _alpha(file: Path, key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _unreadable(file, key, value)
    return value


def _rank(file: Path, key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _unreadable(file, key, value)
    return value


def _unreadable(file: Path, key: str, value: object) -> LaddError:
    return LaddError(f"{file}: its {METADATA} has {key}={value!r}, which peft cannot have meant: save it again")
