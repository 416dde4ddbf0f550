"""Raters' answers: files that the page exports, read, merged by rater, and turned into votes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ladd_dist.errors import LaddError
from ladd_dist.human.trials import Key, Question, Trial
from ladd_dist.log import warn

Choice = Literal["left", "right", "tie"]
WON, TIED, LOST = 1.0, 0.5, 0.0


class Answers(BaseModel):
    """A file of the page: one rater's choices by trial, all of them or some."""

    model_config = ConfigDict(strict=True, extra="forbid")

    format: Literal["picture comparison answers"]
    version: Literal[1]
    page: str
    rater: str = Field(min_length=1)
    answers: dict[str, Choice]


@dataclass(frozen=True)
class Vote:
    """One rater's answer to one trial: 1 for the pair's first model, 0 for its rival, 0.5 for neither."""

    rater: str
    question: Question
    model: str
    rival: str
    request: str
    group: str
    """The prompt, which several requests may have, or the request where none is known."""
    score: float


@dataclass(frozen=True)
class Votes:
    """All usable answers, and how many trials have none because one rater has answered them differently."""

    votes: list[Vote]
    files: list[Path]
    contradictions: int


def read_votes(key: Key, paths: Sequence[Path]) -> Votes:
    """Read answers to a key's page; a file that cannot be used is named in a warning, and the others count.

    Raises:
        LaddError: if none holds an answer.
    """
    chosen: dict[tuple[str, str], set[Choice]] = {}
    files = []
    for path in paths:
        try:
            answers = _read(key, path)
        except LaddError as error:
            warn(f"{error}; it is left out")
            continue
        files.append(path)
        for name, choice in answers.answers.items():
            chosen.setdefault((answers.rater.strip(), name), set()).add(choice)
    trials = {trial.id: trial for trial in key.trials}
    first = {frozenset(pair): pair[0] for pair in key.pairs}
    votes = []
    for (rater, name), choices in chosen.items():
        if len(choices) == 1:
            trial = trials[name]
            votes.append(_vote(rater, trial, first[frozenset((trial.left, trial.right))], *choices))
    if not votes:
        raise LaddError(f"no answers in {', '.join(map(str, paths))}: pass files that raters saved with the page")
    return Votes(votes, files, sum(len(choices) > 1 for choices in chosen.values()))


def _read(key: Key, path: Path) -> Answers:
    try:
        answers = Answers.model_validate_json(path.read_text(encoding="utf-8-sig"))  # editors of copied text mark it
    except OSError as error:
        raise LaddError(f"answers {path} cannot be read ({error.strerror})") from None
    except ValueError:
        raise LaddError(f"answers {path} are cut short or no file of the page: save or send them again") from None
    if answers.page != key.page:
        raise LaddError(f"answers {path} are of another page ({answers.page}, and the key is of {key.page})")
    if strangers := answers.answers.keys() - {trial.id for trial in key.trials}:
        raise LaddError(f"answers {path} were changed: the page does not ask {min(strangers)}")
    return answers


def _vote(rater: str, trial: Trial, model: str, choice: Choice) -> Vote:
    rival = trial.right if trial.left == model else trial.left
    score = TIED if choice == "tie" else WON if (choice == "left") == (trial.left == model) else LOST
    return Vote(rater, trial.question, model, rival, trial.request, trial.prompt or trial.request, score)
