"""Scorers: which of several pictures of a prompt is preferred, by name.

Named as judges are: a word, ``clip:FOLDER``, or ``MODULE:FUNCTION``. Whoever adds one calls `register`, or names a
function of a module.
"""

from collections.abc import Callable
from importlib import import_module

from torch import Tensor

from ladd_dist.config.values import clip_folder
from ladd_dist.errors import LaddError

Scorer = Callable[[list[str], Tensor], Tensor]
"""``score(prompts, pictures)``: of pictures ``(B, 3, H, W)`` in [0, 1], fp32 on the teacher's device, and their ``B``
prompts to ``(B,)`` finite numbers; higher is preferred. Each of its own picture and prompt alone, and the same again
for the same: a dataset is drawn in any number of pieces."""

_BUILTIN = {"stroke": "ladd_dist.digits.stroke:stroke"}
"""Imported on first use."""

_SCORERS: dict[str, Scorer] = {}


def register(name: str, scorer: Scorer) -> None:
    """Make a scorer known.

    Raises:
        ValueError: if there is one of that name, or if the name has a colon, as functions of modules have.
    """
    if name in known() or ":" in name:
        raise ValueError(f"a scorer cannot be registered as {name}")
    _SCORERS[name] = scorer


def known() -> list[str]:
    """The names."""
    return [*_BUILTIN, *_SCORERS]


def scorer_of(name: str) -> Scorer:
    """The scorer of a name, of a CLIP's folder, or a function as ``MODULE:FUNCTION`` from where Python finds modules.

    Raises:
        MissingWeights: if CLIP's cannot be used.
        LaddError: if there is none, listing the known.
    """
    if name in _SCORERS:
        return _SCORERS[name]
    if (folder := clip_folder(name)) is not None:
        from ladd_dist.drawing.clip_score import ClipScore

        return ClipScore(folder)
    module, colon, function = _BUILTIN.get(name, name).partition(":")
    if not (module and colon and function):
        raise LaddError(f"scorer {name} is unknown: use {', '.join(known())}, clip:FOLDER or MODULE:FUNCTION")
    try:
        found = getattr(import_module(module), function, None)
    except ModuleNotFoundError as error:
        raise LaddError(
            f"scorer {name}: there is no module {error.name}, add its folder to PYTHONPATH or install it"
        ) from None
    except Exception as error:
        raise LaddError(f"scorer {name}: {module} cannot be imported ({type(error).__name__}: {error})") from None
    if not callable(found):
        raise LaddError(f"scorer {name}: {module} has no function {function}")
    scorer: Scorer = found
    return scorer


def score(name: str, scorer: Scorer, prompts: list[str], pictures: Tensor) -> Tensor:
    """What a scorer says of pictures ``(B, 3, H, W)``: ``(B,)`` on the CPU.

    Raises:
        LaddError: if that is no finite number for each.
    """
    scores = scorer(prompts, pictures)
    if not isinstance(scores, Tensor) or scores.shape != (len(pictures),):
        found = f"a tensor of shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise LaddError(f"scorer {name} gave {found} for {len(pictures)} pictures: it must give a number for each")
    if not scores.isfinite().all():
        raise LaddError(f"scorer {name} gave numbers that are not finite: it must give a finite one for each picture")
    return scores.detach().cpu()
