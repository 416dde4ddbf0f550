"""YAML files, overrides and flags: what they mean, and what is refused."""

import argparse
import re
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
import yaml
from conftest import ROOT, TINY, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from ladd_dist.config import Config, load
from ladd_dist.config.arguments import as_count, as_path, as_seed, as_text
from ladd_dist.config.section import Section
from ladd_dist.config.values import MAX_COUNT, MAX_SEED
from ladd_dist.config.yaml import override, read_yaml, write_yaml
from ladd_dist.data.mds import Manifest
from ladd_dist.data.reader import LatentReader
from ladd_dist.errors import LaddError
from ladd_dist.kubernetes import cluster as kubernetes
from ladd_dist.slurm import cluster as slurm

TEXT = (ROOT / TINY).read_text(encoding="utf-8")


def value(text: str) -> Any:
    tree: dict[str, Any] = {}
    override(tree, f"a={text}")
    return tree["a"]


# What a value means: https://yaml.org/spec/1.2.2/#1032-tag-resolution


@pytest.mark.parametrize(
    "text",
    [
        *["on", "off", "yes", "no", "y", "n", "On", "OFF", "1_000", "1:30"],
        *["190:20:30", "2026-01-02", "64x32", "0b11", "=", "1e", "0o8"],
    ],
)
def test_what_only_yaml_1_1_takes_for_something_else_is_text(text: str) -> None:
    assert value(text) == text


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        *[(text, None) for text in ("", "~", "null", "Null", "NULL")],
        *[(text, True) for text in ("true", "True", "TRUE")],
        *[(text, False) for text in ("false", "False", "FALSE")],
        *[("010", 10), ("0o10", 8), ("0x1F", 31), ("+12", 12), ("-3", -3)],
        *[(".5", 0.5), ("5.", 5.0), ("1e-6", 1e-6), ("1.E+3", 1000.0), ("-.5e1", -5.0), ("-.Inf", float("-inf"))],
    ],
)
def test_scalars_are_those_of_the_core_schema(text: str, meaning: object) -> None:
    assert value(text) == meaning and type(value(text)) is type(meaning)


def test_the_documented_switch_of_tracking_works_bare() -> None:
    assert load(TINY, ["tracking.wandb=off"]).tracking.wandb == "off"
    assert load(TINY, ["tracking.wandb='off'"]).tracking.wandb == "off"


_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
_TRAPS = st.from_regex(r"\A[-+]?[0-9_.:xobeE]{1,6}\Z|\A(on|off|yes|no|null|true|~|=|<<)\Z")
_SCALAR = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXT | _TRAPS


@settings(deadline=None)
@given(st.dictionaries(_TEXT | _TRAPS, _SCALAR | st.lists(_SCALAR, max_size=3), max_size=4))
def test_what_is_written_reads_back_equal(tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "tree.yaml"
    write_yaml(path, tree)
    assert read_yaml(path) == tree


@settings(deadline=None)
@given(st.dictionaries(st.text("abc", min_size=1), _TEXT | _TRAPS, max_size=4))
def test_older_commits_read_what_is_written(tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "old.yaml"
    write_yaml(path, tree)
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == tree


# Keys


def refused(tmp_path: Path, text: str) -> str:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(LaddError) as error:
        load(path)
    (line,) = str(error.value).splitlines()
    assert str(path) in line
    return line


def test_a_key_given_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    lines = TEXT.splitlines()
    first = lines.index("  lr: 5.0e-4") + 1
    line = refused(tmp_path, TEXT.replace("  lr: 5.0e-4\n", "  lr: 5.0e-4\n  'lr': 1.0e-4\n"))
    assert f"'lr' is given in line {first} and again in line {first + 1}, keep one" in line


def test_a_section_given_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    line = refused(tmp_path, f"{TEXT}\nsampling:\n  batch: 8\n")
    first, second = (TEXT.splitlines().index("sampling:") + 1, len(TEXT.splitlines()) + 2)
    assert f"'sampling' is given in line {first} and again in line {second}" in line


def test_a_key_given_twice_in_an_override_is_refused() -> None:
    with pytest.raises(LaddError, match=r"override 'train=.*'iterations' is given in line 1 and again in line 1"):
        load(TINY, ["train={iterations: 1, iterations: 2}"])


def test_of_two_overrides_the_later_wins() -> None:
    assert load(TINY, ["seed=1", "seed=2"]).seed == 2


_SHARED = TEXT.replace("student_optimizer:", "student_optimizer: &adamw").replace(
    "head_optimizer:\n  lr: 1.0e-3\n  decay: cosine\n", "{}"
)


def test_an_override_of_a_section_leaves_its_alias_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(_SHARED.format("head_optimizer: *adamw\n"), encoding="utf-8")
    config = load(path, ["student_optimizer.lr=1.0"])
    assert (config.student_optimizer.lr, config.head_optimizer.lr) == (1.0, 5e-4)


def test_a_merged_section_takes_its_own_key(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(_SHARED.format("head_optimizer:\n  <<: *adamw\n  lr: 1.0\n"), encoding="utf-8")
    config = load(path)
    assert (config.head_optimizer.lr, config.head_optimizer.decay) == (1.0, "cosine")
    again = _SHARED.format("head_optimizer:\n  <<: *adamw\n  <<: *adamw\n")
    assert "'<<' is given in line" in refused(tmp_path, again)


@pytest.mark.parametrize(
    "text",
    [
        *["a: !!timestamp x", "a: !!python/name:os.system", "a: !!bool maybe", "a: !!int x", f"a: {'9' * 5000}"],
        *["[" * 1500, "? [a]\n: 1", "a: 1\n---\nb: 2", "a: *b", "a: \0", 'a: "\\ud800"', "\ta: 1"],
    ],
    ids=lambda text: repr(text[:20]),
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, text: str) -> None:
    assert "is not valid YAML: " in refused(tmp_path, text)


# Numbers and seeds


def fields(model: type[BaseModel], prefix: str = "") -> list[tuple[str, Any]]:
    """Every key, of a section that may be absent too; of one of several kinds, those of the first, LADD's."""
    found = []
    for name, field in model.model_fields.items():
        sections = [
            kind for kind in kinds(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)
        ]
        found += fields(sections[0], f"{prefix}{name}.") if sections else [(prefix + name, field.annotation)]
    return found


def kinds(annotation: Any) -> list[Any]:
    """What a value may be, in order, below optional, union and annotated types."""
    inner = get_args(annotation) if get_origin(annotation) in (Union, UnionType, Annotated) else ()
    return [kind for part in inner for kind in kinds(part)] or [annotation]


def leaves(annotation: Any) -> set[Any]:
    return set().union(*map(leaves, get_args(annotation))) if get_args(annotation) else {annotation}


FLOATS = [(key, "[{},{}]" if "list" in str(kind) else "{}") for key, kind in fields(Config) if float in leaves(kind)]


@pytest.mark.parametrize("number", [".inf", "-.inf", ".nan", "1e400"])
def test_no_number_is_infinite(number: str) -> None:
    assert len(FLOATS) > 15
    for key, form in FLOATS:
        with pytest.raises(LaddError, match=re.escape(key)):
            load(TINY, [f"{key}={form.format(number, number)}"])


def sections(model: type[Section]) -> dict[str, type[Section]]:
    """A section and all that can be within it, of every kind."""
    inner = set().union(*(leaves(field.annotation) for field in model.model_fields.values()))
    below = [sections(kind) for kind in inner if isinstance(kind, type) and issubclass(kind, Section)]
    return {k: v for found in below for k, v in found.items()} | {f"{model.__module__}.{model.__name__}": model}


SECTIONS = sections(Config) | sections(slurm.Cluster) | sections(kubernetes.Cluster)
NUMBERS = {
    f"{section}.{name}": field
    for section, model in SECTIONS.items()
    for name, field in model.model_fields.items()
    if {int, float} & leaves(field.annotation)
}


def is_refused(field: FieldInfo, number: int, how: str) -> bool:
    """Whether a key says on which side of its bound a number is: alone, in a list or in a mapping."""
    value = {list: [number, number], dict: {"a": number}}.get(get_origin(kinds(field.annotation)[0]), number)
    try:
        TypeAdapter(Annotated[field.annotation, field], config=ConfigDict(strict=True)).validate_python(value)
    except ValidationError as error:
        return any(problem["type"].startswith(how) for problem in error.errors())
    return False


@pytest.mark.parametrize(("number", "how"), [(10**40, "less_than"), (-(10**40), "greater_than")])
def test_every_number_has_bounds(number: int, how: str) -> None:
    """A new key takes one of the kinds in `config.values`, or brings bounds of its own."""
    assert len(NUMBERS) > 70
    assert not [key for key, field in NUMBERS.items() if not is_refused(field, number, how)]


_BEYOND = [
    ("train.iterations=100000000", "input should be less than or equal to 99999999, not 100000000"),
    ("train.hang_timeout=1e300", "input should be less than or equal to 1000000000, not 1e+300"),
    ("student_optimizer.lr=1e39", "input should be less than or equal to 1000000000000, not 1e+39"),
    ("student_optimizer.eps=1e-300", "input should be greater than or equal to 0.00000000000000000001, not 1e-300"),
    ("synthesis.buckets=[32x32,32x64,32x32]", "must have each entry once, but has 32x32 twice"),
    ("synthesis.buckets=[999999x32]", "string should match pattern"),
    ("discriminator.blocks=[1,3,1]", "must have each entry once, but has 1 twice"),
]


@pytest.mark.parametrize(("override", "said"), _BEYOND)
def test_what_is_beyond_reason_is_refused_with_its_bound(override: str, said: str) -> None:
    with pytest.raises(LaddError, match=rf"{override.partition('=')[0]}(\.\d)?: {re.escape(said)}"):
        load(TINY, [override])


@pytest.mark.parametrize("key", ["seed", "data.shuffle_seed"])
def test_seeds_have_63_bits(key: str) -> None:
    assert [key for key, _ in fields(Config) if key.endswith("seed")] == ["seed", "data.shuffle_seed"]
    load(TINY, [f"{key}={MAX_SEED}"])
    for bad in (-1, MAX_SEED + 1):
        with pytest.raises(LaddError, match=rf"{key}: input should be .* equal to .*, not {bad}"):
            load(TINY, [f"{key}={bad}"])


def test_the_largest_seeds_work(dataset: Path) -> None:
    from conftest import ALONE

    from ladd_dist.diffusion.noise import step_draws
    from ladd_dist.methods.ladd.method import make_heads

    config = tiny_config(dataset, dataset, f"seed={MAX_SEED}", f"data.shuffle_seed={MAX_SEED}")
    make_heads(config, ALONE.device)
    step_draws(config.seed, 1, [0], (1, 2, 2), ALONE.device)
    reader = LatentReader(config, Manifest.read(dataset), ALONE)
    batches = [batch for _, batch in zip(range(20), reader, strict=False)]
    assert len(batches) == 20 and reader.state_dict()["epoch"] > 1


@pytest.mark.parametrize("argument", ["-1", str(MAX_SEED + 1), "x", "1.5", "9" * 5000])
def test_a_seed_flag_is_held_to_the_same(argument: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"must be an integer from 0 to {MAX_SEED}, not {argument}"):
        as_seed(argument)
    assert as_seed(str(MAX_SEED)) == MAX_SEED


@pytest.mark.parametrize("argument", ["-1", "0", str(MAX_COUNT + 1), "x", "1.5", "9" * 5000])
def test_a_flag_that_counts_is_held_to_the_same(argument: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"must be an integer from 1 to {MAX_COUNT}, not {argument}"):
        as_count(argument)
    assert as_count(str(MAX_COUNT)) == MAX_COUNT


# Paths

PATHS = ["run_dir", "teacher.path", "student.path", "data.path", "synthesis.prompts", "evaluation.prompts"]


def test_a_home_folder_is_expanded_in_every_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    config = load(TINY, [*(f"{key}=~/{key}" for key in PATHS), "evaluation.judge=clip:~/clip"])
    tree = config.model_dump()
    for key in PATHS:
        section, _, name = key.rpartition(".")
        assert (tree[section] if section else tree)[name] == f"/home/someone/{key}"
    assert config.evaluation.judge == "clip:/home/someone/clip"
    arguments = {"~/x": "/home/someone/x", "a/~/$HOME": "a/~/$HOME", "./~": "~"}
    assert {text: str(as_path(text)) for text in arguments} == arguments
    config.save(tmp_path / "config.yaml")
    assert load(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("''", "run_dir: must be a path (. is the current folder), not ''"),
        (
            "~no-such-user/x",
            "a user's who has a home folder (./~ is a name that begins with ~), not '~no-such-user/x'",
        ),
        (r'"a\0b"', "run_dir: must be a path, without NUL"),
    ],
)
def test_what_no_file_can_be_called_is_refused(name: str, message: str) -> None:
    with pytest.raises(LaddError, match=re.escape(message)):
        load(TINY, [f"run_dir={name}"])


def test_flags_are_utf_8() -> None:
    assert as_text("schön") == "schön"
    for flag in (as_text, as_path):
        with pytest.raises(argparse.ArgumentTypeError, match="is not UTF-8 text"):
            flag("caf\udce9")
    with pytest.raises(argparse.ArgumentTypeError, match=r"must be a path \(. is the current folder\), not ''"):
        as_path("")
