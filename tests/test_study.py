"""Studies: their files, their runs side by side and resumed, and what comes of them."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TEACHER, TINY, tiny_overrides
from latents import damage
from launch import environment, launch
from matplotlib.figure import Figure
from PIL import Image

from ladd_dist.config import load
from ladd_dist.config.yaml import write_yaml
from ladd_dist.errors import LaddError
from ladd_dist.evaluation.places import BASELINES
from ladd_dist.studies.outcome import Outcome, draw
from ladd_dist.studies.plan import Run, Task, plan
from ladd_dist.studies.processes import run_tasks
from ladd_dist.studies.study import Study, read_study

EXCESS = "measures.judge.excess.value"
STUDIES = sorted((ROOT / "configs/studies").glob("*.yaml"))


def tree(**changed: Any) -> dict[str, Any]:
    return {
        "claim": "As it is.",
        "overrides": ["train.iterations=2", "train.log_every=1"],
        "seeds": [0, 1],
        "variants": {"fast, as it is": []},
        "measures": {"excess": f"student_4.{EXCESS}", "read": "student_1.measures.read.value"},
    } | changed


def study_in(folder: Path, **changed: Any) -> Path:
    write_yaml(folder / "rates.yaml", tree(**changed))
    return folder / "rates.yaml"


# Files


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_studies_that_come_along_can_be_run(path: Path, tmp_path: Path) -> None:
    study = read_study(path)
    runs = plan(study, Path(TINY), [f"run_dir={tmp_path}"], tmp_path / path.stem, ROOT / "launchers")
    assert len(runs) == len({run.folder for run in runs}) == len(study.seeds) * len(study.variants) > 2
    assert len(study.seeds) >= 3


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"variant": {}}, "unknown key 'variant': did you mean 'variants'?"),
        ({"variants": {}}, "variants: dictionary should have at least 1 item"),
        ({"variants": {"a": ["train.iterations"]}}, "variants.a.0: string should match pattern"),
        ({"variants": {"a b": [], "a-b": []}}, "'a b' makes no folder's name of its own ('a-b'): rename it"),
        ({"seeds": [0, 0]}, "seeds: must have each entry once, but has 0 twice"),
        ({"variants": {"a": ["train.iteration=5"]}}, "variant 'a': .*unknown key 'train.iteration': did you mean"),
    ],
)
def test_a_study_that_cannot_be_run_is_one_line(tmp_path: Path, changed: dict[str, Any], told: str) -> None:
    with pytest.raises(LaddError) as error:
        plan(read_study(study_in(tmp_path, **changed)), Path(TINY), [], tmp_path / "out", ROOT / "launchers")
    assert re.search(told.replace("(", r"\(").replace(")", r"\)").replace("?", r"\?"), str(error.value))


def test_variants_share_latents_unless_they_change_them(tmp_path: Path) -> None:
    study = Study.model_validate(
        tree(variants={"a": [], "b": ["seed=5"], "c": ["synthesis.guidance=1"]}, seeds=[0, 1])
    )
    runs = plan(study, Path(TINY), ["train.iterations=3"], tmp_path / "out", ROOT / "launchers")
    needs = [run.task.needs for run in runs]
    assert needs[:3] == needs[3:] and len(set(needs)) == 3
    for run in runs:
        train, evaluate = run.task.commands
        assert f"seed={run.seed}" in train and train[2:] == evaluate[2:] and train[-1].startswith("run_dir=")
        assert train.index("train.iterations=3") > train.index("train.iterations=2")


def test_a_variant_may_bring_its_own_latents(tmp_path: Path) -> None:
    study = Study.model_validate(tree(variants={"drawn": [], "real": ["data.path=real"]}, seeds=[0]))
    drawn, real = plan(study, Path(TINY), [], tmp_path / "out", ROOT / "launchers")
    assert drawn.task.needs is not None and drawn.task.needs.done.parent.parent == tmp_path
    assert real.task.needs is None and "data.path=real" in real.task.commands[0]
    paths = [[word for word in run.task.commands[0] if word.startswith("data.path=")][-1] for run in (drawn, real)]
    assert paths == [f"data.path={json.dumps(str(drawn.task.needs.done.parent))}", "data.path=real"]


@pytest.mark.parametrize(("overrides", "given"), [(["data.path=mine"], []), ([], ["seed=1", "data.path=mine"])])
def test_latents_of_all_runs_are_the_studys_own(tmp_path: Path, overrides: list[str], given: list[str]) -> None:
    study = Study.model_validate(tree(overrides=overrides))
    with pytest.raises(LaddError, match="data.path=mine would hold for every run, .*: set it in variants, or leave"):
        plan(study, Path(TINY), given, tmp_path / "out", ROOT / "launchers")


def test_what_was_made_of_other_prompts_or_of_another_teacher_is_not_used_again(tmp_path: Path) -> None:
    files = {key: tmp_path / f"{key}.txt" for key in ("synthesis", "evaluation")}
    teacher = tmp_path / "teacher"
    shutil.copytree(TEACHER, teacher)
    given = [f"teacher.path={teacher}", *(f"{key}.prompts={file}" for key, file in files.items())]
    study = Study.model_validate(tree(variants={"drawn": [], "real": ["data.path=real"]}, seeds=[0]))

    def planned() -> tuple[Path, Path, Path]:
        """Folders of the latents, of the run on them, and of that on others."""
        drawn, real = plan(study, Path(TINY), given, tmp_path / "out", ROOT / "launchers")
        assert drawn.task.needs is not None
        return drawn.task.needs.done, drawn.folder, real.folder

    for file in files.values():
        file.write_text("a four")
    latents, run, real = planned()
    assert planned() == (latents, run, real)
    files["evaluation"].write_text("a five")
    assert planned()[0] == latents and run != planned()[1] and real != planned()[2]
    files["evaluation"].write_text("a four")
    files["synthesis"].write_text("a five")
    assert latents != planned()[0] and run != planned()[1] and real == planned()[2]
    files["synthesis"].write_text("a four")
    assert planned() == (latents, run, real)
    damage(teacher / "vae/diffusion_pytorch_model.safetensors", "flip", 0.9)
    assert not {latents, run, real} & {*planned()}
    files["synthesis"].unlink()
    with pytest.raises(LaddError, match=r"synthesis\.txt cannot be read \(No such file or directory\)"):
        planned()


def test_studies_share_the_runs_that_have_the_same_settings(tmp_path: Path) -> None:
    """Whatever they call them, however they set them, and wherever all of it lies."""

    def planned(name: str, variants: dict[str, list[str]], *given: str, root: Path = tmp_path) -> list[Run]:
        study = Study.model_validate(tree(variants=variants, seeds=[0, 1]))
        return plan(study, Path(TINY), [f"run_dir={root}", *given], root / name, ROOT / "launchers")

    default = load(TINY).method.r1_weight
    base = planned("a", {"as it is": []})
    same, other = planned("b", {"R1": [f"method.r1_weight={default}"], "none": ["method.r1_weight=0.5"]})[:2]
    assert same.folder == base[0].folder != other.folder
    assert same.link != base[0].link and base[0].folder != base[1].folder
    real = planned("c", {"real": ["data.path=x"], "drawn elsewhere": ["synthesis.guidance=1"]})[:2]
    wide = planned("a", {"as it is": []}, "train.global_batch=16")[0]
    assert len({one.folder for one in [base[0], other, *real, wide]}) == 5
    moved = planned("a", {"as it is": []}, root=tmp_path / "elsewhere")
    assert [one.folder.name for one in moved] == [one.folder.name for one in base]
    with pytest.raises(LaddError, match="variants 'a' and 'b' have the same settings: drop one"):
        planned("a", {"a": [], "b": [f"method.r1_weight={default}"]})


def test_a_run_is_seen_under_its_name_in_each_of_its_studies(tmp_path: Path) -> None:
    (run, *_) = plan(Study.model_validate(tree()), Path(TINY), [], tmp_path / "out", ROOT / "launchers")
    run.show()
    run.show()
    assert run.link.name == "fast-as-it-is-seed0" and run.link.resolve() == run.folder
    assert (run.folder / BASELINES).resolve() == tmp_path / BASELINES and (run.folder / BASELINES).is_dir()
    (tmp_path / "out").rename(tmp_path / "in the way")
    run.link.mkdir(parents=True)
    with pytest.raises(LaddError, match="seed0 is in the way of a link to .*: move it away, or set run_dir"):
        run.show()


# Processes


def task(folder: Path, name: str, code: str, needs: Task | None = None) -> Task:
    command = (sys.executable, "-c", code)
    return Task(name, (command,), folder / name, folder / f"{name}.log", needs)


def writes(path: Path) -> str:
    return f"open({str(path)!r}, 'w').write('done')"


def test_what_fails_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    bad = task(tmp_path, "bad", "import sys; print('bar\\rerror: no such file', file=sys.stderr); sys.exit(2)")
    mute = task(tmp_path, "mute", "import sys; sys.exit(7)")
    idle = task(tmp_path, "idle", "pass")
    good = task(tmp_path, "good", writes(tmp_path / "good"))
    after = task(tmp_path, "after", writes(tmp_path / "after"), needs=good)
    never = task(tmp_path, "never", writes(tmp_path / "never"), needs=bad)
    told: dict[str, str] = {}
    run_tasks([never, mute, idle, after], 2, lambda one, why: told.update({one.name: why}))
    assert told.pop("mute").startswith("code 7, see ") and "idle is missing, see " in told.pop("idle")
    assert told == {"bad": "no such file", "never": "no such file", "good": "", "after": ""}
    assert not (tmp_path / "never").exists()


def test_a_failure_is_not_blamed_on_an_earlier_attempt(tmp_path: Path) -> None:
    told: list[str] = []
    full = "import sys; print('error: no space left on device', file=sys.stderr); sys.exit(2)"
    for code in (full, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"):
        run_tasks([task(tmp_path, "one", code)], 1, lambda _, why: told.append(why))
    assert told == ["no space left on device", f"code -9, see {tmp_path / 'one.log'}"]
    assert "error: no space left on device" in (tmp_path / "one.log").read_text()


def test_no_more_processes_than_cores(tmp_path: Path) -> None:
    """Each counts who is there with it."""
    code = """
import pathlib, sys, time
here = pathlib.Path({folder!r}); mine = here / 'alive-{name}'; mine.touch()
time.sleep(0.3)
(here / '{name}').write_text(str(len(list(here.glob('alive-*'))))); mine.unlink()
"""
    names = "abcde"
    tasks = [task(tmp_path, name, code.format(folder=str(tmp_path), name=name)) for name in names]
    run_tasks(tasks, 2, lambda *_: None)
    assert all(1 <= int((tmp_path / name).read_text()) <= 2 for name in names)


def test_whoever_leaves_stops_what_is_running_and_waits_for_it(tmp_path: Path) -> None:
    long = task(
        tmp_path,
        "long",
        f"""
import pathlib, signal, sys, time
def stop(*_):
    time.sleep(0.5)
    pathlib.Path({str(tmp_path / "saved")!r}).touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
pathlib.Path({str(tmp_path / "ready")!r}).touch()
time.sleep(1000)
""",
    )
    short = task(tmp_path, "short", f"import os\nwhile not os.path.exists({str(tmp_path / 'ready')!r}): pass")

    def leave(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tasks([long, short, task(tmp_path, "later", writes(tmp_path / "later"))], 2, leave)
    assert (tmp_path / "saved").exists() and not (tmp_path / "later").exists()


# A whole one


@pytest.mark.slow
def test_a_study_goes_on_after_a_kill_and_ends_in_a_table_and_a_figure(tmp_path: Path, dataset: Path) -> None:
    theirs = ("train.iterations=", "data.path=")  # the study's
    own = [setting for setting in tiny_overrides(tmp_path / "base", dataset) if not setting.startswith(theirs)]
    args = ["study.py", "--config", TINY, "--study", str(study_in(tmp_path)), "--cores", "2", *own]
    folder = tmp_path / "base/studies/rates"
    runs = folder.parent / "runs"
    process = subprocess.Popen([sys.executable, f"launchers/{args[0]}", *args[1:]], cwd=ROOT, env=environment())
    while not list(runs.glob("*/metrics.jsonl")):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.wait()
    ended = {log: log.read_text() for log in runs.glob("*.log")}
    assert ended and not (folder / "study.png").exists()
    done = launch(args)
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "study.json").read_text())
    assert found["failed"] == {} and f"python launchers/study.py --config {TINY}" in found["made"]
    values = found["values"]["fast, as it is"]
    assert values.keys() == {"excess", "read"} and values["excess"].keys() == {"0", "1"}
    assert min(Image.open(folder / "study.png").size) > 150
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [row[0].strip("| ") for row in rows] == ["variant", "---", "fast, as it is"]
    assert all(" to " in cell for row in rows[2:] for cell in row[1:])
    links = {link.name: link.resolve() for link in folder.iterdir() if link.is_symlink()}
    assert links.keys() == {f"fast-as-it-is-seed{seed}" for seed in (0, 1)}
    assert set(links.values()) == {run for run in runs.iterdir() if run.is_dir()}
    before = {log: log.stat().st_mtime_ns for log in runs.glob("*.log")}
    assert launch(args).returncode == 0
    assert {log: log.stat().st_mtime_ns for log in runs.glob("*.log")} == before, "nothing is run twice"


def test_a_measure_that_is_not_there_is_named_with_what_is(tmp_path: Path) -> None:
    study = Study.model_validate(tree(measures={"x": "student_4.fid"}))
    (run, *_) = plan(study, Path(TINY), [], tmp_path / "out", ROOT / "launchers")
    run.task.done.parent.mkdir(parents=True)
    run.task.done.write_text(json.dumps({"sets": [{"name": "student_4", "fd": 1.0}]}))
    with pytest.raises(LaddError, match=r"measures: 'student_4.fid' is not in .*results.json.*no 'fid'.*: name, fd"):
        Outcome(study, "").add(run)


def test_what_an_evaluation_has_not_measured_is_left_out(tmp_path: Path) -> None:
    """Such as a ratio over a base that is not positive, of one run among many."""
    (run, *_) = plan(Study.model_validate(tree()), Path(TINY), [], tmp_path / "out", ROOT / "launchers")
    run.task.done.parent.mkdir(parents=True)
    sets = [{"name": f"student_{steps}", "measures": {"judge": None, "read": {"value": 0.5}}} for steps in (4, 1)]
    run.task.done.write_text(json.dumps({"sets": sets}))
    outcome = Outcome(Study.model_validate(tree()), "")
    outcome.add(run)
    assert outcome.values == {run.variant: {"read": {run.seed: 0.5}}}


def test_panels_of_one_measure_have_one_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = list[Figure]()
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: drawn.append(figure))
    measures = {
        "four": f"student_4.{EXCESS}",
        "one": f"student_1.{EXCESS}",
        "read": "student_4.measures.read.value",
    }
    study = Study.model_validate(tree(measures=measures, variants={"a": [], "b": []}))
    values = {"a": {"four": {0: 3.0}, "one": {0: 5.0}, "read": {0: 0.9}}, "b": {"four": {0: 1.0}, "one": {0: 9.0}}}
    draw(study, values, tmp_path / "study.png")
    four, one, read = (panel.get_xlim() for panel in drawn[0].axes)
    assert four == one and four[0] < 1 and four[1] > 9
    assert read[1] < 1
