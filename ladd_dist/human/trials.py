"""What raters are asked, and the key that says who drew which side: it stays with whoever made the page."""

import hashlib
import json
import random
import secrets
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ladd_dist.errors import LaddError
from ladd_dist.human.sets import PictureSet

KEY = "key.json"
Question = Literal["quality", "alignment"]
QUESTIONS: tuple[Question, ...] = ("quality", "alignment")
Side = Literal["left", "right"]


class Trial(BaseModel):
    """One question about two pictures of one request, each known by its model; ``id`` says nothing of them."""

    model_config = ConfigDict(strict=True, extra="forbid")

    id: str
    question: Question
    request: str
    prompt: str | None
    left: str
    right: str


class Key(BaseModel):
    """``key.json``: all trials in the page's order, and the secret that their ids and sides come from."""

    model_config = ConfigDict(strict=True, extra="forbid")

    version: Literal[1] = 1
    secret: str
    sets: dict[str, str]
    pairs: list[list[str]]
    """A model and its rival each, in the order of results."""
    trials: list[Trial]

    @property
    def page(self) -> str:
        """The page's id: answers carry it, and it tells nothing of the key without the secret."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def picture(self, model: str, request: str) -> str:
        """A picture's name in the page, which tells nothing of the model."""
        return opaque(self.secret, "picture", model, request)


def opaque(secret: str, *parts: str) -> str:
    """A name that only who knows the secret can make or explain."""
    return hashlib.sha256(json.dumps([secret, *parts]).encode()).hexdigest()[:16]


def read_key(path: Path) -> Key:
    """Read a page's key.

    Raises:
        LaddError: if it is missing or damaged.
    """
    try:
        return Key.model_validate_json(path.read_bytes())
    except OSError as error:
        raise LaddError(
            f"key {path} cannot be read ({error.strerror}): it lies beside the page it belongs to"
        ) from None
    except ValueError:
        raise LaddError(
            f"key {path} is cut short or is none: take the {KEY} that was written with the page"
        ) from None


def pairs_of(sets: Sequence[PictureSet], against: str | None) -> list[tuple[PictureSet, PictureSet]]:
    """Every two models, or every other model and the one that all are held against.

    Raises:
        LaddError: if there is no such model.
    """
    if against is None:
        return list(combinations(sets, 2))
    baseline = next((pictures for pictures in sets if pictures.name == against), None)
    if baseline is None:
        raise LaddError(f"--against {against} is no --set: give one of {', '.join(s.name for s in sets)}")
    return [(pictures, baseline) for pictures in sets if pictures is not baseline]


def plan(
    sets: Sequence[PictureSet], pairs: Sequence[tuple[PictureSet, PictureSet]], secret: str | None = None
) -> Key:
    """Ask both questions about every request that both models of a pair have drawn: first all of one, then the other.

    Each model of a pair is as often left as right (of an odd number, once more on one side), at random, as is the
    order of a question's trials; and a question has sides and an order of its own. Alignment is not asked where no
    file says the prompt.

    Args:
        secret: of an earlier key, to plan the same again; None makes a new one.

    Raises:
        LaddError: if a pair has no request in common.
    """
    secret = secret or secrets.token_hex(16)
    trials: list[Trial] = []
    for question in QUESTIONS:
        draw = random.Random(f"{secret} {question}")  # noqa: S311 -- 128 bits of secret seed it
        asked = [trial for pair in pairs for trial in _trials(secret, question, *pair, draw)]
        draw.shuffle(asked)
        trials += asked
    names = [[model.name, rival.name] for model, rival in pairs]
    return Key(secret=secret, sets={s.name: s.place for s in sets}, pairs=names, trials=trials)


def _trials(
    secret: str, question: Question, model: PictureSet, rival: PictureSet, draw: random.Random
) -> list[Trial]:
    common = [request for request in model.pictures if request in rival.pictures]
    if not common:
        raise LaddError(
            f"no picture of {model.name} belongs to one of {rival.name}: draw both with the same --prompts, --size "
            "and --seed, or give the files the same names"
        )
    prompts = {request: model.pictures[request].prompt or rival.pictures[request].prompt for request in common}
    if question == "alignment":
        common = [request for request in common if prompts[request]]
    draw.shuffle(common)
    first, trials = draw.randrange(2), []
    for number, request in enumerate(common):
        left, right = (model.name, rival.name) if (number + first) % 2 else (rival.name, model.name)
        name = opaque(secret, question, model.name, rival.name, request)
        trials.append(
            Trial(id=name, question=question, request=request, prompt=prompts[request], left=left, right=right)
        )
    return trials


def unmatched(model: PictureSet, rival: PictureSet) -> tuple[int, int]:
    """How many pictures of each have no counterpart."""
    mine, theirs = model.pictures.keys(), rival.pictures.keys()
    return len(mine - theirs), len(theirs - mine)
