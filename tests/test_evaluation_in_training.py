"""Evaluations while a run trains: their record, what they are held against, and the same numbers on sharded ranks."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ALONE, tiny_config
from ranks import ranks
from torch import Tensor

from ladd_dist.config import Config
from ladd_dist.distributed.world import World
from ladd_dist.drawing.pipeline import load_backbone
from ladd_dist.errors import LaddError, Requeue
from ladd_dist.evaluation import in_training
from ladd_dist.evaluation.draw import Draw
from ladd_dist.evaluation.evaluate import evaluate
from ladd_dist.evaluation.in_training import InTraining
from ladd_dist.evaluation.places import BASELINES
from ladd_dist.evaluation.results import Evaluated
from ladd_dist.evaluation.table import columns
from ladd_dist.report.evaluations import draw_evaluations
from ladd_dist.supervision.signals import Signals
from ladd_dist.training.evaluation import EVALUATIONS, read_evaluations, record
from ladd_dist.training.tracking import Tracker
from ladd_dist.training.trainer import Trainer

SETTINGS = ["train.iterations=4", "train.evaluate_every=2", "train.checkpoint_every=4", "evaluation.batch=7"]
SETTINGS += ["evaluation.samples_in_training=24", "evaluation.samples=24", "evaluation.scorers=[stroke]"]

MIRRORED: list[tuple[int, dict[str, float]]] = []


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Config:
    return tiny_config(tmp_path_factory.mktemp("in_training"), dataset, *SETTINGS)


@pytest.fixture(scope="module")
def run(config: Config) -> list[Evaluated]:
    """A run to its end."""
    trainer = Trainer(config, ALONE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tracker, "mirror", lambda _, iteration, numbers: MIRRORED.append((iteration, numbers)))
        trainer.run()
    return read_evaluations(config.run_dir)


def values(row: Evaluated) -> dict[str, float]:
    found = {f"{name} {key}": n for name, of in row.overall.items() for key, n in columns(of).items()}
    return {name: number.value for name, number in found.items() if number is not None}


def test_a_run_records_its_averaged_weights_as_the_launcher_measures_them(
    config: Config, run: list[Evaluated]
) -> None:
    assert [row.iteration for row in run] == [2, 4]
    assert len(list((Path(config.run_dir) / BASELINES).iterdir())) == 1
    later = {s.name: s.measures for s in evaluate(config, ALONE, None, "ema").sets}
    assert later == {name: found for name, found in run[-1].overall.items()}
    assert all(sorted(of) == ["student_1", "student_2", "student_4"] for of in run[-1].by_bucket.values())
    assert len(list((Path(config.run_dir) / BASELINES).iterdir())) == 1, "the same pictures"
    assert values(run[0]) != values(run[1])
    assert run[0].overall["teacher_4"] == run[1].overall["teacher_4"]


def test_the_students_numbers_are_mirrored(run: list[Evaluated]) -> None:
    assert [iteration for iteration, _ in MIRRORED] == [2, 4]
    numbers, student = MIRRORED[-1][1], run[-1].overall["student_4"]
    assert numbers["evaluation/student_4/excess"] == student.main.excess.value
    assert numbers["evaluation/student_1/32x64/KID"] == run[-1].by_bucket["32x64"]["student_1"].main.kid.value
    assert numbers["evaluation/student_2/stroke"] > 0
    assert not any("teacher_" in name for name in numbers)


def test_a_run_that_goes_on_draws_no_baselines_again_and_its_record_has_each_iteration_once(
    config: Config, run: list[Evaluated], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It was killed at iteration 6, after its last checkpoint at 4."""
    monkeypatch.setattr(in_training, "load_backbone", lambda *_: pytest.fail("the teacher is loaded again"))
    folder = Path(shutil.copytree(config.run_dir, tmp_path / "run"))
    killed = run[-1].model_copy(update={"iteration": 6})
    record(folder, killed)
    with (folder / EVALUATIONS).open("a") as file:
        file.write('{"iteration": 7, "judge')  # cut short
    assert [row.iteration for row in read_evaluations(folder)] == [2, 4, 6]
    longer = config.train.model_copy(update={"iterations": 7})
    Trainer(config.model_copy(update={"train": longer, "run_dir": str(folder)}), ALONE).run()
    again = read_evaluations(folder)
    assert [row.iteration for row in again] == [2, 4, 6, 7] and again[:2] == run and again[2] != killed


def test_baselines_of_other_settings_are_drawn_again_and_go_on_where_they_were_ended(
    config: Config, run: list[Evaluated], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal comes while the tenth batch is drawn."""
    folder, drawn, signals = tmp_path / "run", list[int](), Signals()
    shutil.copytree(Path(config.run_dir) / BASELINES, folder / BASELINES)
    batch = Draw._batch

    def also(*args: Any) -> Any:
        drawn.append(1)
        signals.stop = len(drawn) == 10
        return batch(*args)

    monkeypatch.setattr(Draw, "_batch", also)
    there = config.model_copy(update={"run_dir": str(folder)})
    InTraining(there, ALONE, signals, blocks=99)
    assert not drawn
    other = there.model_copy(update={"seed": 1})
    with pytest.raises(Requeue, match="what is drawn is kept"):
        InTraining(other, ALONE, signals, blocks=99)
    assert len(drawn) == 10
    InTraining(other, ALONE, Signals(), blocks=99)
    assert len(drawn) == len(list(folder.glob(f"{BASELINES}/*/sets/*/*"))) / 2 > 20
    assert len(list((folder / BASELINES).iterdir())) == 2


def _drawn(world: World, config: Config) -> int:
    """The batches that a rank draws of the baselines."""
    drawn, batch = list[int](), Draw._batch

    def also(*args: Any) -> Any:
        drawn.append(1)
        return batch(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Draw, "_batch", also)
        InTraining(config, world, Signals(), blocks=99)
    return len(drawn)


@pytest.mark.parametrize(("there", "drawn"), [(1, 14), (4, 7)])
def test_two_ranks_go_on_with_baselines_of_which_they_draw_each_others_batches(
    config: Config, run: list[Evaluated], tmp_path: Path, there: int, drawn: int
) -> None:
    """Of 7 sets of 5 batches each: a rank's next is one of the other's numbers, or it repeats the other's last."""
    shutil.copytree(Path(config.run_dir) / BASELINES, tmp_path / BASELINES)
    whole = sorted(tmp_path.glob(f"{BASELINES}/*/sets/*/*"))
    for file in whole:
        if int(file.stem) >= there:
            file.unlink()
    assert ranks(2)(_drawn, config.model_copy(update={"run_dir": str(tmp_path)})) == [drawn, drawn]
    assert sorted(tmp_path.glob(f"{BASELINES}/*/sets/*/*")) == whole


def _rows(world: World, config: Config) -> list[Evaluated]:
    Trainer(config, world).run()
    return read_evaluations(config.run_dir)


@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_two_ranks_with_sharded_networks_measure_what_one_process_does(
    tmp_path: Path, random_dataset: Path, random_teacher: Path, engine: str
) -> None:
    """Before the first update there is no difference in training: the learning rate is all but 0."""
    still = [
        "train.iterations=1",
        "train.checkpoint_every=1",
        f"teacher.path={random_teacher}",
        "train.precision=fp32",
    ]
    still += [
        "student_optimizer.lr=1e-12",
        "teacher.placement=shard",
        "evaluation.judge=teacher",
        "train.micro_batch=null",
    ]
    one, two = (
        tiny_config(tmp_path / name, random_dataset, *SETTINGS, *still, f"engine={name}")
        for name in ("local", engine)
    )
    (alone,), (shared, others) = _rows(ALONE, one), ranks(2)(_rows, two)
    assert shared == others
    found, wanted = values(shared[0]), values(alone)
    assert found.keys() == wanted.keys() and len(found) > 30
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("velocity", [torch.nan, -1e30])
def test_a_student_that_has_diverged_is_counted_and_ends_nothing(
    config: Config, run: list[Evaluated], velocity: float
) -> None:
    def diverged(x_t: Tensor, *_: object) -> Tensor:
        return torch.full_like(x_t, velocity)

    evaluation = InTraining(config, ALONE, Signals(), blocks=99)
    teacher = load_backbone(config.teacher.path, torch.float32, ALONE.device)
    found = evaluation.measure(evaluation.draw(diverged, teacher, 1), 1)
    assert {name: of.broken for name, of in found.overall.items() if of.broken} == {
        f"student_{n}": 24 for n in (4, 2, 1)
    }
    assert found.overall["student_4"].main.kid.value > 2 * found.overall["teacher_4"].main.kid.value


def test_without_a_judge_and_the_teacher_there_is_nothing_to_measure_by(config: Config) -> None:
    judge = config.evaluation.model_copy(update={"judge": "teacher"})
    with pytest.raises(LaddError, match="train.evaluate_every=2 has nothing to measure distances by"):
        InTraining(config.model_copy(update={"evaluation": judge}), ALONE, Signals(), blocks=0)


def test_the_prompts_are_looked_at_before_anything_is_loaded(config: Config, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    empty = config.evaluation.model_copy(update={"prompts": str(tmp_path / "empty.txt")})
    with pytest.raises(LaddError, match=r"empty\.txt holds no prompts"):
        InTraining(config.model_copy(update={"evaluation": empty, "teacher": None}), ALONE, Signals(), blocks=99)


def test_evaluations_are_drawn_for_the_report(run: list[Evaluated], tmp_path: Path) -> None:
    for name, rows in (("one", run[:1]), ("all", run)):
        (tmp_path / name).mkdir()
        (figure,) = draw_evaluations(rows, tmp_path / name)
        assert figure.stat().st_size > 10_000


def test_the_record_holds_plain_json(config: Config, run: list[Evaluated]) -> None:
    lines = (Path(config.run_dir) / EVALUATIONS).read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [2, 4]


def test_lines_that_are_none_are_left_out_of_the_record_with_a_warning(
    run: list[Evaluated], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record(tmp_path, run[0])
    assert not caplog.records
    with (tmp_path / EVALUATIONS).open("a") as file:
        file.write('quux\n{"iteration": 3, "distance": 7}\n')
    assert read_evaluations(tmp_path) == run[:1]
    assert "evaluations.jsonl has 2 lines that are damaged or of another version" in caplog.text


def test_lines_that_are_none_are_set_aside_before_the_record_is_written_again(
    run: list[Evaluated], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Twice: what was set aside before stays. A last line that a kill cut short goes."""
    strange = ['{"iteration": 3, "distance": 7}', "quux"]
    rows = [run[0].model_copy(update={"iteration": at}) for at in (2, 4, 6)]
    for row, line in zip(rows, [*strange, '{"iteration": 7, "judge'], strict=True):
        record(tmp_path, row)
        with (tmp_path / EVALUATIONS).open("a") as file:
            file.write(line if line.endswith("judge") else f"{line}\n")
    assert (tmp_path / f"{EVALUATIONS}.damaged").read_text().splitlines() == strange
    assert "evaluations.jsonl has 1 lines that are damaged or of another version: they are in" in caplog.text
    caplog.clear()
    record(tmp_path, rows[2])
    assert read_evaluations(tmp_path) == rows and not caplog.records
    assert (tmp_path / f"{EVALUATIONS}.damaged").read_text().splitlines() == strange
