"""A study as a file: variants of a configuration, several seeds of each, and what is read from their evaluations."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from ladd_dist.config.loading import validate
from ladd_dist.config.section import Section
from ladd_dist.config.values import EachOnce, Seed
from ladd_dist.config.yaml import read_yaml

_Overrides = list[Annotated[str, Field(pattern=r"^[^=]+=")]]


class Study(Section):
    """What ``configs/studies/*.yaml`` hold."""

    claim: str
    """What is tried, in a sentence."""
    overrides: _Overrides = Field(default=[])
    """``key.sub=value`` of every run."""
    seeds: Annotated[list[Seed], Field(min_length=1), EachOnce]
    """Of training, one run each. The latents are drawn once, with the configuration's own seed."""
    variants: Annotated[dict[str, _Overrides], Field(min_length=1)]
    """Name -> what it changes. Variants that change nothing in ``synthesis`` or ``teacher`` share their latents;
    those that set ``data.path`` have their own, which must be there."""
    measures: Annotated[dict[str, str], Field(min_length=1)]
    """Name -> where it is in ``evaluation/results.json``: a set's name and keys, such as
    ``student_4.measures.judge.excess.value``."""

    @model_validator(mode="after")
    def _folders(self) -> "Study":
        folders = [folder_of(name) for name in self.variants]
        for name, folder in zip(self.variants, folders, strict=True):
            if not folder or folders.count(folder) > 1:
                raise ValueError(f"variants: '{name}' makes no folder's name of its own ('{folder}'): rename it")
        return self


def folder_of(name: str) -> str:
    """A variant's name as a file's."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", name).strip(".-")


def read_study(path: Path) -> Study:
    """Read a study's file.

    Raises:
        LaddError: naming the file, and the key at fault.
    """
    return validate(Study, read_yaml(path, "study", "configs/studies/renoising.yaml"), path)
