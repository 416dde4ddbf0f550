"""What is drawn is not drawn again: an evaluation that was ended goes on, and others find its teacher's sets."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ALONE, tiny_config
from launch import ROOT, environment, join, launch, start_ranks
from ranks import ranks
from recorded import wait_until

from ladd_dist.checkpoints.student import open_checkpoint
from ladd_dist.config import Config
from ladd_dist.distributed.world import World
from ladd_dist.drawing.pictures import save_png
from ladd_dist.errors import EXIT_REQUEUE, LaddError, Requeue
from ladd_dist.evaluation import evaluate as module
from ladd_dist.evaluation import on_disk, unfinished
from ladd_dist.evaluation.draw import Draw, pictures
from ladd_dist.evaluation.evaluate import evaluate
from ladd_dist.evaluation.gallery import Gallery
from ladd_dist.evaluation.identity import of_baselines, of_evaluation
from ladd_dist.evaluation.instruments import Instruments
from ladd_dist.evaluation.places import BASELINES, FOLDER, PICTURES, count_batches, drawn_folder, drawn_folders
from ladd_dist.evaluation.reference import list_reference
from ladd_dist.files.holder import Holder
from ladd_dist.models.lora import Lora
from ladd_dist.supervision.signals import Signals
from ladd_dist.training.trainer import Trainer

TEACHERS, STUDENTS, OF_SET = 7, 3, 5
"""Two sets of the guided teacher, five of the undistilled one; 12 pictures in three buckets."""
SETS = TEACHERS + STUDENTS
BATCHES, BASELINE_BATCHES = SETS * OF_SET, TEACHERS * OF_SET


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Config:
    """A run with a checkpoint, and a reference set."""
    settings = ["train.iterations=1", "train.checkpoint_every=1", "evaluation.samples=12", "evaluation.batch=3"]
    photos = tmp_path_factory.mktemp("photos")
    settings += ["evaluation.pictures=2", "evaluation.scorers=[stroke]", f"evaluation.reference={photos}"]
    for number in range(3):
        save_png(torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(number)), photos / f"{number}.png")
    config = tiny_config(tmp_path_factory.mktemp("run"), dataset, *settings)
    Trainer(config, ALONE).run()
    return config


@pytest.fixture
def config(trained: Config, tmp_path: Path) -> Config:
    """Of a copy of the run."""
    drawn = shutil.ignore_patterns("*evaluation*", BASELINES)
    copy = shutil.copytree(trained.run_dir, tmp_path / "run", ignore=drawn)
    return trained.model_copy(update={"run_dir": str(copy)})


@pytest.fixture(scope="module")
def undisturbed(trained: Config) -> dict[str, Any]:
    evaluate(trained, ALONE, None, "ema")
    return content(trained)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The pictures of every batch that is drawn."""
    found = list[int]()
    counted(monkeypatch, lambda: found.append(1))
    return found


def counted(patch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Act before each batch."""
    batch = Draw._batch

    def also(draw: Draw, *args: Any) -> Any:
        act()
        return batch(draw, *args)

    patch.setattr(Draw, "_batch", also)


def content(config: Config) -> dict[str, Any]:
    """Of a finished evaluation; times are never the same."""
    folder = Path(config.run_dir) / FOLDER
    found: dict[str, Any] = {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    results = json.loads(found.pop("results.json"))
    assert all(scored.pop("seconds_per_image") > 0 for scored in results["sets"])
    return {**found, "results": results}


def left(config: Config) -> list[str]:
    return sorted(path.name for path in Path(config.run_dir).glob("*evaluation*"))


def ended_before(config: Config, count: int) -> None:
    """An evaluation that ends before it draws one batch more."""
    with pytest.MonkeyPatch.context() as patch:
        numbers = iter(range(count))
        counted(patch, lambda: next(numbers))
        with pytest.raises(StopIteration):
            evaluate(config, ALONE, None, "ema")


@pytest.mark.parametrize("moments", [[0, 1, 5, 24, 11], [49]])
def test_no_batch_is_drawn_twice_wherever_it_is_ended(
    config: Config, undisturbed: dict[str, Any], drawn: list[int], moments: list[int]
) -> None:
    for count in moments:
        ended_before(config, count)
        assert left(config) == [drawn_folders(Path(config.run_dir))[0].name]
    assert count_batches(Path(config.run_dir)) == sum(moments)
    drawn.clear()
    evaluate(config, ALONE, None, "ema")
    assert len(drawn) == BATCHES - sum(moments)
    assert content(config) == undisturbed and left(config) == [FOLDER]


@pytest.mark.parametrize(
    ("owner", "name", "whole"),
    [(module, "measure", False), (Gallery, "write_index", False), (unfinished, "_empty", True)],
)
def test_nothing_is_drawn_again_when_it_ended_after_the_last_batch(
    config: Config, undisturbed: dict[str, Any], drawn: list[int], owner: object, name: str, whole: bool
) -> None:
    def end(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, end)
        with pytest.raises(KeyboardInterrupt):
            evaluate(config, ALONE, None, "ema")
    assert (Path(config.run_dir) / FOLDER).exists() == whole
    drawn.clear()
    looks = list[int]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "look_at_reference", lambda *_: looks.append(1))
        evaluate(config, ALONE, None, "ema")
    assert not drawn and not looks
    assert content(config) == undisturbed and left(config) == [FOLDER]


def _killed(world: World, config: Config, victim: int, count: int) -> None:
    """One rank dies as by SIGKILL before it draws one batch more; the other misses it."""
    numbers = iter(range(count))
    with pytest.MonkeyPatch.context() as patch:
        if world.rank == victim:
            counted(patch, lambda: next(numbers, None) is None and os.kill(os.getpid(), signal.SIGKILL))
        evaluate(config, world, None, "ema")


def _counts(world: World, config: Config) -> int:
    found = list[int]()
    with pytest.MonkeyPatch.context() as patch:
        counted(patch, lambda: found.append(1))
        evaluate(config, world, None, "ema")
    return len(found)


def test_it_goes_on_after_a_kill_with_another_number_of_ranks(
    config: Config, undisturbed: dict[str, Any], drawn: list[int]
) -> None:
    """One rank, killed; two, one of them killed; two; and again one, after two were killed."""
    assert join(start_ranks(_killed, config, 0, 7)) == [-signal.SIGKILL]
    assert count_batches(Path(config.run_dir)) == 7
    codes = join(start_ranks(_killed, config, 1, 5, size=2))
    assert codes[1] == -signal.SIGKILL and codes[0] != 0
    kept = count_batches(Path(config.run_dir))
    assert kept >= 7 + 5
    twice = ranks(2)(_counts, config)
    assert sum(twice) - (BATCHES - kept) in range(SETS), "one of a set's batches is repeated where shares are uneven"
    assert content(config) == undisturbed and left(config) == [FOLDER]

    join(start_ranks(_killed, config, 0, 4, size=2))
    kept = count_batches(Path(config.run_dir))
    assert BASELINE_BATCHES + 4 <= kept < BATCHES
    drawn.clear()
    evaluate(config, ALONE, None, "ema")
    assert len(drawn) == BATCHES - kept
    assert content(config) == undisturbed


def _stopped(world: World, config: Config, count: int) -> str:
    signals, numbers = Signals(), iter(range(count))
    with pytest.MonkeyPatch.context() as patch:
        if world.rank == world.size - 1:
            counted(patch, lambda: setattr(signals, "stop", next(numbers, None) is None))
        try:
            evaluate(config, world, None, "ema", signals=signals)
        except Requeue as stop:
            return str(stop)
    return ""


def test_a_signal_to_one_rank_stops_all_with_what_they_have_drawn(
    config: Config, undisturbed: dict[str, Any]
) -> None:
    assert set(ranks(2)(_stopped, config, 6)) == {
        "stopped by a signal: start the same command again, what is drawn is kept"
    }
    assert 7 <= (kept := count_batches(Path(config.run_dir))) < BATCHES
    assert _stopped(ALONE, config, 2) and count_batches(Path(config.run_dir)) == kept + 3
    evaluate(config, ALONE, None, "ema")
    assert content(config) == undisturbed


@pytest.mark.slow
def test_the_launcher_leaves_on_sigterm_with_a_code_that_requeues_and_goes_on(
    config: Config, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    config.save(tmp_path / "config.yaml")
    command = [sys.executable, "launchers/evaluate.py", "--config", str(tmp_path / "config.yaml")]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
    wait_until(lambda: process.poll() is not None or count_batches(Path(config.run_dir)) > 2)
    process.terminate()
    _, err = process.communicate(timeout=600)
    assert process.returncode == EXIT_REQUEUE, err
    assert "start the same command again, what is drawn is kept" in err
    assert 2 < (kept := count_batches(Path(config.run_dir))) < BATCHES
    again = launch(["evaluate.py", "--config", str(tmp_path / "config.yaml")])
    assert again.returncode == 0, again.stderr
    # Three pictures a batch where a bucket has them; others have less.
    (there,) = re.findall(r"(\d+) of 120 pictures are there from an evaluation before", again.stderr)
    assert kept <= int(there) <= 3 * kept
    assert content(config) == undisturbed


def test_a_batch_that_is_damaged_is_drawn_again(
    config: Config, undisturbed: dict[str, Any], drawn: list[int]
) -> None:
    ended_before(config, BASELINE_BATCHES + 9)
    (student,), (teacher,) = drawn_folders(Path(config.run_dir)), Path(config.run_dir).glob(f"{BASELINES}/*")
    for folder in (student, teacher):
        file = sorted(folder.glob("sets/*/*.safetensors"))[3]
        file.write_bytes(file.read_bytes()[:-8])
    drawn.clear()
    evaluate(config, ALONE, None, "ema")
    assert len(drawn) == BATCHES - BASELINE_BATCHES - 9 + 2
    assert content(config) == undisturbed


def test_batches_whose_pictures_are_gone_are_drawn_again(
    config: Config, undisturbed: dict[str, Any], drawn: list[int]
) -> None:
    """Two of a bucket's are shown, all of its first batch: three batches for each set that is shown."""
    evaluate(config, ALONE, None, "student")
    (teacher,) = Path(config.run_dir).glob(f"{BASELINES}/*")
    shutil.rmtree(teacher / PICTURES)
    drawn.clear()
    evaluate(config, ALONE, None, "ema")
    assert len(drawn) == BATCHES - BASELINE_BATCHES + 3 * (TEACHERS - 1)
    assert content(config) == undisturbed


def test_the_teachers_sets_are_drawn_once_for_all_students_and_runs(
    config: Config, undisturbed: dict[str, Any], drawn: list[int], tmp_path: Path
) -> None:
    """Another run has them by a link, as a study's runs do."""
    evaluate(config, ALONE, None, "student")
    of_student = content(config)
    drawn.clear()
    evaluate(config, ALONE, None, "ema")
    assert len(drawn) == BATCHES - BASELINE_BATCHES
    assert content(config) == undisturbed
    ignored = shutil.ignore_patterns("*evaluation*", BASELINES)
    other = Path(shutil.copytree(config.run_dir, tmp_path / "other", ignore=ignored))
    (other / BASELINES).symlink_to(f"../run/{BASELINES}")
    drawn.clear()
    another = config.model_copy(update={"run_dir": str(other)})
    evaluate(another, ALONE, None, "student")
    assert len(drawn) == BATCHES - BASELINE_BATCHES
    assert content(another) == of_student


def test_two_runs_may_draw_the_teachers_sets_at_once(
    config: Config, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    """The second draws all of them between two batches of the first."""
    other = Path(shutil.copytree(config.run_dir, tmp_path / "other"))
    for folder in (Path(config.run_dir), other):
        (folder / BASELINES).symlink_to(tmp_path)
    another, count = config.model_copy(update={"run_dir": str(other)}), itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        counted(patch, lambda: evaluate(another, ALONE, None, "ema") if next(count) == 8 else None)
        evaluate(config, ALONE, None, "ema")
    assert content(config) == content(another) == undisturbed


def test_a_full_disk_is_one_line_and_what_was_drawn_before_is_kept(
    config: Config, undisturbed: dict[str, Any], drawn: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        counted(patch, lambda: len(drawn) == 8 and patch.setattr(on_disk, "save_rows", full))
        with pytest.raises(LaddError, match=rf"{BASELINES}/\w+ cannot be written \(.*No space.*again to go on$"):
            evaluate(config, ALONE, None, "ema")
    drawn.clear()
    evaluate(config, ALONE, None, "ema")
    assert len(drawn) == BATCHES - 8
    assert content(config) == undisturbed


def test_what_others_have_left_is_not_used_and_goes_at_once(
    config: Config, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended_before(config.model_copy(update={"seed": config.seed + 1}), 9)
    there = set[int]()
    counted(monkeypatch, lambda: there.add(len(drawn_folders(Path(config.run_dir)))))
    evaluate(config, ALONE, None, "ema")
    assert content(config) == undisturbed and left(config) == [FOLDER] and there == {1}


@pytest.mark.parametrize("alive", [False, True])
def test_what_another_machines_job_has_left_goes_if_it_has_not_moved(
    config: Config, monkeypatch: pytest.MonkeyPatch, alive: bool
) -> None:
    """By a clock that stands at each look, each an hour after the one before."""
    folder = drawn_folder(Path(config.run_dir), "another")
    folder.mkdir()
    lock, holder = folder / ".lock-1", json.dumps(asdict(Holder("elsewhere", 7, "its own", "1", "")))
    lock.write_text(f"{holder}\n0\n0\n1\n")
    hours = itertools.count(0, 3600)
    monkeypatch.setattr(unfinished, "time", SimpleNamespace(monotonic=lambda: next(hours)))
    there = set[bool]()

    def meanwhile() -> None:
        there.add(folder.exists())
        if alive:
            lock.write_text(f"{holder}\n0\n0\n2\n")

    counted(monkeypatch, meanwhile)
    evaluate(config, ALONE, None, "ema")
    assert there == {True}
    assert left(config) == ([folder.name] if alive else []) + [FOLDER]


def test_of_two_at_once_the_second_is_refused(config: Config, undisturbed: dict[str, Any]) -> None:
    refused = list[str]()

    def again() -> None:
        if not refused:
            refused.append("")
            with pytest.raises(LaddError) as error:
                evaluate(config, ALONE, None, "ema")
            refused.append(str(error.value))

    with pytest.MonkeyPatch.context() as patch:
        counted(patch, again)
        evaluate(config, ALONE, None, "ema")
    assert "belongs to a job that is running" in refused[1] and "\n" not in refused[1]
    assert content(config) == undisturbed


def _variants(config: Config) -> Iterator[tuple[str, Config]]:
    yield "as it is", config
    yield "seed", config.model_copy(update={"seed": config.seed + 1})
    sections = {
        "evaluation": [{"samples": 9}, {"batch": 4}, {"pictures": 1}, {"judge": "teacher"}, {"scorers": []}],
        "synthesis": [{"steps": 3}, {"guidance": 2.0}],
        "teacher": [{"max_t5_tokens": 5}],
        "kernels": [{"attention": "efficient"}],
    }
    for section, changes in sections.items():
        for change in changes:
            yield str(change), config.model_copy(update={section: getattr(config, section).model_copy(update=change)})


def test_all_that_pictures_depend_on_makes_another_evaluation(trained: Config) -> None:
    def of(config: Config, weights: Any = "ema", up: float | None = None) -> str:
        down = torch.ones(1, 2)
        lora = (
            []
            if up is None
            else [(Lora("any", None, None, {"a": down}, {"a": torch.full((2, 1), up)}, {"a": 1.0}), 1.0)]
        )
        return of_evaluation(config, ALONE, baselines_of(config), open_checkpoint(config, ALONE), weights, lora)

    found = {name: of(variant) for name, variant in _variants(trained)}
    found |= {"weights": of(trained, "student"), "lora": of(trained, up=1), "other lora": of(trained, up=2)}
    found |= {"no features": baselines_of(trained, features=False), "features": baselines_of(trained)}
    assert len(set(found.values())) == len(found), found
    elsewhere = trained.train.model_copy(update={"iterations": 99})
    assert of(trained.model_copy(update={"train": elsewhere})) == found["as it is"]


def baselines_of(config: Config, features: bool = True) -> str:
    entries, listed = pictures(config, config.evaluation.samples), list_reference(config)
    return of_baselines(config, ALONE, entries, listed, Instruments.load(config, ALONE), features)


def test_a_scorer_whose_code_has_changed_is_another(
    trained: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    file, found = tmp_path / "own_score.py", list[str]()
    for number in (1, 2, 2):
        file.write_text(f"def score(prompts, pictures):\n    return pictures.mean((1, 2, 3)) * {number}\n")
        changed = trained.evaluation.model_copy(update={"scorers": ["own_score:score"]})
        found.append(baselines_of(trained.model_copy(update={"evaluation": changed})))
    assert found[0] != found[1] == found[2]
