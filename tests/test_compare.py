"""Two trainings held against each other: what counts as a difference, and the command on real runs and commits."""

import json
import math
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from checkpoints import newest
from conftest import ALONE, ROOT, TINY, tiny_config, tiny_overrides
from launch import environment

from ladd_dist.checkpoints.reader import Checkpoint
from ladd_dist.distributed import world as distributed
from ladd_dist.errors import LaddError
from ladd_dist.measuring.commits import checkout, commit_of
from ladd_dist.measuring.compare import Comparison, compare_runs, relative_parameters, relative_steps
from ladd_dist.measuring.compared import ComparedRun, split_overrides
from ladd_dist.methods.ladd.method import Ladd
from ladd_dist.training.tracking import read_metrics
from ladd_dist.training.trainer import Trainer

NAN, INF = math.nan, math.inf

# Differences


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ([[1.0], [2.0]], [[1.0], [2.0]], [0, 0]),
        ([[1.0], [4.0]], [[1.5], [4.0]], [0.125, 0]),
        ([[0.001], [-2.0]], [[-0.001], [-2.0]], [0.001, 0]),
        ([[1.0, 4.0]], [[1.0, 3.0]], [0.25]),
        ([[0.0]], [[0.0]], [0]),
        ([[NAN]], [[NAN]], [INF]),
        ([[NAN], [1.0]], [[1.0], [1.0]], [INF, 0]),
        ([[NAN], [4.0]], [[NAN], [3.0]], [INF, 0.25]),
        ([[INF], [4.0]], [[INF], [3.0]], [INF, 0.25]),
        ([[1.0, NAN]], [[1.0, NAN]], [INF]),
        ([[1.0], []], [[1.0], [1.0]], [0, INF]),
        ([[]], [[]], [INF]),
        ([[1.0, 2.0]], [[1.0]], [INF]),
    ],
)
def test_differences_are_relative_to_the_metrics_largest_magnitude_and_never_hidden(left, right, expected):
    assert relative_steps(left, right) == expected
    assert relative_steps(right, left) == expected


NETWORKS = ["student", "ema", "heads"]


def networks(**changes: torch.Tensor) -> SimpleNamespace:
    """Something with a checkpoint's tensors; a change names a network, and replaces its one weight."""
    weights = {name: torch.tensor([[3.0, 0.0], [0.0, 4.0]]) for name in NETWORKS} | changes
    tensors = {f"{name}/param/w": w for name, w in weights.items()}
    tensors["student/exp_avg/w"] = torch.rand(3)
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    return SimpleNamespace(shapes=shapes, read=lambda key, at, size: tensors[key].flatten()[at : at + size])


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (torch.tensor([[3.0, 0.0], [0.0, 4.0]]), 0),
        (torch.tensor([[3.0, 0.0], [0.0, 3.5]]), 0.1),
        (torch.zeros(2, 2), 1),
        (torch.tensor([[3.0, 0.0], [1e-42, 4.0]]), 1e-42 / 5),
        (torch.tensor([[3.0, NAN], [0.0, 4.0]]), INF),
        (torch.tensor([[3.0, INF], [0.0, 4.0]]), INF),
        (torch.tensor([3.0, 0.0, 0.0, 4.0]), INF),
    ],
)
@pytest.mark.parametrize("network", NETWORKS)
def test_parameters_differ_by_the_l2_norm_of_their_network(network, weight, expected):
    for pair in ((networks(), networks(**{network: weight})), (networks(**{network: weight}), networks())):
        found = relative_parameters(*pair, NETWORKS)
        assert found.pop(network) == pytest.approx(expected, rel=1e-3, abs=0)
        assert set(found.values()) == {0.0}


def test_a_network_of_nan_on_both_sides_is_not_the_same():
    broken = networks(ema=torch.full((2, 2), NAN))
    assert relative_parameters(broken, broken, NETWORKS) == {"student": 0, "ema": INF, "heads": 0}


# The table


def comparison(right: list[float], tolerance: float = 0.0, parameters: float = 0.0) -> Comparison:
    """A left run whose losses are 1, and a right one."""
    ours, theirs = ({name: [[v] for v in values] for name in Ladd.COMPARED} for values in ([1.0] * len(right), right))
    theirs |= {name: ours[name] for name in Ladd.COMPARED if name != "g_loss"}
    differences = {name: relative_steps(ours[name], theirs[name]) for name in Ladd.COMPARED}
    networks = {"student": parameters, "ema": 0.0, "heads": 0.0}
    return Comparison(list(range(1, len(right) + 1)), ours, theirs, differences, networks, tolerance)


def test_the_same_is_identical():
    same = comparison([1.0] * 3)
    assert same.accepted and same.first_beyond(0) is None
    assert "losses: identical\nparameters: identical" in same.table()
    assert "first difference" not in same.table()


def test_the_first_differing_step_is_marked():
    different = comparison([1.0, 1.0, 0.5, 1.0, 0.75])
    assert not different.accepted and different.first_beyond(0) == 3
    (marked,) = [line for line in different.table().splitlines() if "first difference" in line]
    assert marked.split()[:7] == ["3", "1", "1", "1", "0.5", "5.0e-01", "g_loss"]
    assert "g_loss              5.0e-01 at step 3\n" in different.table()
    assert "d_loss              0\n" in different.table()
    assert "losses: DIFFERENT from step 3 on\nparameters: identical" in different.table()


def test_a_tolerance_accepts_up_to_itself_and_says_that_it_is_not_identical():
    near = comparison([1.0, 0.75, 0.5], tolerance=0.5)
    assert near.accepted
    assert "losses: within the tolerance of 0.5, not identical\n" in near.table()
    far = comparison([1.0, 0.75, 0.5], tolerance=0.25)
    assert not far.accepted
    assert "losses: DIFFERENT, beyond the tolerance of 0.25 from step 3 on" in far.table()


@pytest.mark.parametrize("difference", [0.5, INF])
def test_parameters_alone_can_make_the_difference(difference):
    different = comparison([1.0, 1.0], tolerance=0.25, parameters=difference)
    assert not different.accepted
    assert f"student parameters  {difference:.1e}" in different.table()
    assert "losses: identical\nparameters: DIFFERENT, beyond the tolerance of 0.25" in different.table()


def test_of_many_steps_a_few_are_shown_and_always_the_first_differing_and_the_last():
    table = comparison([1.0] * 516 + [0.5] * 484).table()
    steps = [int(line.split()[0]) for line in table.splitlines() if re.match(r" *\d+ ", line)]
    assert len(steps) < 25 and {1, 517, 1000} <= set(steps) and steps == sorted(steps)


def test_numbers_are_shown_with_enough_digits_to_tell_fp32_apart():
    near = float(torch.nextafter(torch.tensor(1.0), torch.tensor(2.0)))
    line = comparison([near]).table().splitlines()[1].split()
    assert line[3] != line[4]


def test_columns_stay_apart_at_the_longest_numbers():
    longest = float(torch.tensor(-0.000676676631))
    both = replace(
        comparison([1.0]), left={n: [[longest]] for n in Ladd.COMPARED}, right={n: [[longest]] for n in Ladd.COMPARED}
    )
    assert both.table().splitlines()[1].split()[1:5] == [f"{longest:.9g}"] * 4


# Run folders


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    run_dir = tmp_path_factory.mktemp("trained")
    Trainer(tiny_config(run_dir, dataset, "train.iterations=2"), ALONE).run()
    return run_dir


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def rewrite(run_dir: Path, rows: list[dict]) -> None:
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_is_identical_to_its_copy(trained: Path, copied: Path):
    found = compare_runs(trained, copied, steps=2, tolerance=0)
    assert found.accepted and found.first_beyond(0) is None
    assert all(len(found.left[name][1]) == (4 if name.endswith("logit") else 1) for name in Ladd.COMPARED)


@pytest.mark.parametrize(
    "metric", ["d_loss", "g_loss", "r1", "student_grad_norm", "head_grad_norm", "real_logit", "fake_logit"]
)
def test_every_metric_of_a_step_counts(trained: Path, copied: Path, metric: str):
    rows = read_metrics(copied)
    value = rows[1][metric]
    rows[1][metric] = [*value[:-1], value[-1] + 1e-3] if isinstance(value, list) else value + 1e-3
    rewrite(copied, rows)
    found = compare_runs(trained, copied, steps=2, tolerance=0)
    assert found.first_beyond(0) == 2 and found.worst(1)[1] == metric and not found.accepted


def test_a_step_that_one_side_lacks_is_a_difference(trained: Path, copied: Path):
    rewrite(copied, read_metrics(copied)[:1])
    for sides in ((trained, copied), (copied, trained)):
        found = compare_runs(*sides, steps=2, tolerance=1)
        assert found.first_beyond(0) == 2 and not found.accepted and "missing" in found.table()
    assert not compare_runs(copied, copied, steps=2, tolerance=1).accepted, "missing on both sides is not the same"


def test_nan_on_both_sides_is_a_difference_and_hides_none(trained: Path, copied: Path):
    rewrite(copied, [row | {"d_loss": NAN} for row in read_metrics(copied)])
    found = compare_runs(copied, copied, steps=2, tolerance=1)
    assert found.first_beyond(0) == 1 and not found.accepted and "nan" in found.table()


def test_a_run_without_a_checkpoint_is_named(trained: Path, copied: Path):
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(LaddError, match=f"no checkpoint at {copied}/checkpoints"):
        compare_runs(trained, copied, steps=2, tolerance=0)


# Commits


def git(root: Path, *args: str) -> str:
    command = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@example.org", *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of this project's code: HEAD~1 as it is, HEAD with another hinge margin."""
    root = tmp_path_factory.mktemp("scratch")
    for folder in ("ladd_dist", "kernels", "launchers"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    git(root, "init", "--quiet", "--initial-branch=main")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "-m", "as it is")
    hinge = root / "ladd_dist/methods/ladd/losses.py"
    changed = hinge.read_text().replace("relu(1 - m", "relu(1.001 - m")
    assert changed != hinge.read_text()
    hinge.write_text(changed)
    git(root, "commit", "--quiet", "--all", "-m", "another margin")
    return root


def trees(root: Path) -> list[str]:
    return git(root, "worktree", "list").splitlines()


def test_a_commit_is_checked_out_beside_the_working_tree_and_removed(scratch: Path):
    (scratch / "untracked").touch()
    with checkout(scratch, "HEAD~1") as old, checkout(scratch, "main") as new, checkout(scratch, None) as working:
        assert "torch.relu(1 - m)" in (old / "ladd_dist/methods/ladd/losses.py").read_text()
        assert "torch.relu(1.001 - m)" in (new / "ladd_dist/methods/ladd/losses.py").read_text()
        assert working == scratch and not (new / "untracked").exists()
        assert len(trees(scratch)) == 3
    assert len(trees(scratch)) == 1 and not old.exists() and not new.exists()


def test_a_commit_is_told_by_its_hash_and_whether_code_differs(tmp_path: Path):
    root = tmp_path / "root"
    code, result = root / "code.py", root / "docs/benchmarks/step.json"
    result.parent.mkdir(parents=True)
    code.touch()
    result.touch()
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    assert commit_of(root, "docs/benchmarks") is None, "a repository further up is another's"
    git(root, "init", "--quiet")
    assert commit_of(root, "docs/benchmarks") is None, "nothing is committed"
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "-m", "first")
    clean = git(root, "rev-parse", "HEAD")[:12]
    result.write_text("[]")
    (root / "notes").touch()
    assert commit_of(root, "docs/benchmarks") == clean
    code.write_text("changed = True")
    assert commit_of(root, "docs/benchmarks") == f"{clean}-dirty"


def test_a_checkout_is_removed_after_a_failure_too(scratch: Path):
    with pytest.raises(RuntimeError), checkout(scratch, "main"):
        raise RuntimeError
    assert len(trees(scratch)) == 1


@pytest.mark.parametrize(
    "ref", ["-x", "--detach", "nope", "HEAD:launchers", "", "main; touch owned", "$(touch owned)"]
)
def test_what_is_no_commit_is_refused(scratch: Path, ref: str):
    with pytest.raises(LaddError) as refused, checkout(scratch, ref):
        pass
    assert ref in str(refused.value) and "\n" not in str(refused.value)
    assert not Path("owned").exists() and not (scratch / "owned").exists()


def test_outside_a_repository_there_are_no_commits(tmp_path: Path):
    with (
        pytest.raises(LaddError, match="cannot be checked out of .*not a git repository"),
        checkout(tmp_path, "main"),
    ):
        pass


# Sides


def fake_run(tree: Path, program: str) -> ComparedRun:
    """A run whose train.py is a program of the test's."""
    (tree / "launchers").mkdir(parents=True, exist_ok=True)
    (tree / "launchers/train.py").write_text(program)
    return ComparedRun("right", None, tree, TINY, ["seed=1"], 1)


LOCAL = {"engine": "local", "device": "cpu"}


def test_a_side_runs_its_own_tree_and_its_output_comes_through_by_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MASTER_ADDR", "elsewhere")
    (tmp_path / "ladd_dist.py").write_text("NAME = 'of the tree'")
    program = (
        "import os, sys, ladd_dist\n"
        "print(ladd_dist.NAME, sys.argv[1:], os.environ.get('MASTER_ADDR'), os.environ['DS_ACCELERATOR'])\n"
        "print('10%\\r20%\\r\\n\\n', end='', file=sys.stderr)\n"
    )
    fake_run(tmp_path, program).train(LOCAL)
    assert capfd.readouterr().err.splitlines() == [
        f"right | of the tree ['--config', '{TINY}', 'seed=1'] None cpu",
        "right | 10%",
        "right | 20%",
    ]


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import sys; print('error: no room', file=sys.stderr); sys.exit(2)", "right ended with code 2: no room"),
        ("1 / 0", "right ended with code 1: see its last lines above"),
        ("import os; os.kill(os.getpid(), 9)", "right ended with code -9: see its last lines above"),
    ],
)
def test_a_failure_names_the_side_and_its_reason(
    tmp_path: Path, program: str, message: str, capfd: pytest.CaptureFixture[str]
):
    with pytest.raises(LaddError) as failed:
        fake_run(tmp_path, program).train(LOCAL)
    assert str(failed.value) == message
    assert ("right | ZeroDivisionError: division by zero" in capfd.readouterr().err) == (program == "1 / 0")


def own_config(tree: Path, dataset: Path, engine: str) -> None:
    """Give a run's tree a package of its own."""
    (tree / "ladd_dist").mkdir()
    (tree / "ladd_dist/__init__.py").touch()
    (tree / "ladd_dist/errors.py").write_text("class LaddError(Exception): pass\n")
    (tree / "ladd_dist/config.py").write_text(
        "import json\n"
        "from types import SimpleNamespace\n"
        "def load(path, overrides):\n"
        f"    tree = {{'engine': {engine!r}, 'data': {{'path': {str(dataset)!r}}}, 'given': [path, *overrides]}}\n"
        "    return SimpleNamespace(model_dump_json=lambda: json.dumps(tree))\n"
    )


def test_a_sides_own_code_says_which_keys_there_are(tmp_path: Path, dataset: Path):
    own_config(tmp_path, dataset, "local")
    assert fake_run(tmp_path, "").check()["given"] == [TINY, "seed=1"]


@pytest.mark.parametrize(
    ("engine", "ranks", "message"),
    [
        ("zero9", 1, "right: engine=zero9 is not known: set engine to local, fsdp2, zero3"),
        ("local", 2, "right: engine=local runs in one process: set --right-ranks 1"),
    ],
)
def test_an_engine_that_cannot_be_started_is_named(
    tmp_path: Path, dataset: Path, engine: str, ranks: int, message: str
):
    own_config(tmp_path, dataset, engine)
    with pytest.raises(LaddError, match=message):
        replace(fake_run(tmp_path, ""), ranks=ranks).check()


def test_overrides_of_a_side_are_split_without_a_shell():
    text = "engine=fsdp2  student.path='a b' method.student_times=[1,0.5] run=$(date);ls"
    expected = ["engine=fsdp2", "student.path=a b", "method.student_times=[1,0.5]", "run=$(date);ls"]
    assert split_overrides("left", text, {"run_dir"}) == expected


# The command


@dataclass
class Result:
    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def compare(
    tmp_path: Path, dataset: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Run the launcher in this process, on the tiny configuration at two steps; its trainings are real processes."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    terminated = signal.getsignal(signal.SIGTERM)

    def run(*args: str, root: Path = ROOT) -> Result:
        common = ["--config", TINY, *tiny_overrides(tmp_path / "unused", dataset), "--steps", "2"]
        monkeypatch.setattr(sys, "argv", ["launchers/compare.py", *common, *args])
        code = 0
        try:
            runpy.run_path(str(root / "launchers/compare.py"), run_name="__main__")
        except SystemExit as left:
            code = int(left.code or 0)
        finally:
            signal.signal(signal.SIGTERM, terminated)
        return Result(code, *capfd.readouterr())

    return run


def test_the_same_settings_twice_are_identical(compare: Command, tmp_path: Path):
    loop = ["train.log_every=5", "train.checkpoint_every=5", "train.preview_every=1", "tracking.wandb=offline"]
    loop += ["tracking.page_every=1e-9"]
    done = compare("--keep", str(tmp_path / "kept"), *loop)
    assert done.code == 0, done.err
    assert "losses: identical\nparameters: identical\n" in done.out
    assert "left: working tree, 1 rank" in done.err and "right: working tree, 1 rank" in done.err
    assert " left | " in done.err and "right | " in done.err
    for name in ("left", "right"):
        assert [row["iteration"] for row in read_metrics(tmp_path / "kept" / name)] == [1, 2]
        assert newest(tmp_path / "kept" / name) == tmp_path / "kept" / name / "checkpoints/step-00000002"
        assert not list((tmp_path / "kept" / name).glob("[wpr]*")), "no W&B run, no previews, no page"
    assert not (tmp_path / "unused").exists()


def test_two_commits_that_compute_something_else_differ(compare: Command, scratch: Path):
    done = compare("--left-commit", "HEAD~1", root=scratch)
    assert done.code == 1, done.err
    assert "left: commit HEAD~1, 1 rank" in done.err and "right: working tree, 1 rank" in done.err
    assert "losses: DIFFERENT from step 1 on\nparameters: DIFFERENT" in done.out
    (marked,) = [line for line in done.out.splitlines() if "first difference" in line]
    step, left, right, *_ = marked.split()
    assert step == "1" and 0 < float(right) - float(left) < 2.01e-3  # of both terms' margins
    assert len(trees(scratch)) == 1


@pytest.fixture
def near(random_teacher: Path, random_dataset: Path) -> list[str]:
    """Settings under which rounding stays rounding: as in test_launch.py, and each rank's share of the batch."""
    exact = ["student_optimizer.eps=1e-4", "head_optimizer.eps=1e-4", "train.micro_batch=null"]
    return ["--tolerance", "1e-4", f"teacher.path={random_teacher}", f"data.path={random_dataset}", *exact]


def test_two_ranks_agree_within_a_tolerance_but_not_bit_for_bit(compare: Command, near: list[str], tmp_path: Path):
    kept = tmp_path / "kept"
    done = compare("--right", "engine=fsdp2", "--right-ranks", "2", "--keep", str(kept), *near)
    assert done.code == 0, done.err
    assert [Checkpoint(newest(kept / name), ALONE).state.world_size for name in ("left", "right")] == [1, 2]
    assert "right: working tree, 2 ranks" in done.err
    assert "losses: within the tolerance of 0.0001, not identical\n" in done.out
    assert "parameters: within the tolerance of 0.0001, not identical\n" in done.out


@pytest.mark.slow
def test_zero3_is_started_by_deepspeed(compare: Command, near: list[str]):
    done = compare("--right", "engine=zero3", "--right-ranks", "2", *near)
    assert done.code == 0, done.err
    assert "deepspeed.launcher" in done.err and "parameters: within the tolerance of 0.0001" in done.out


def test_a_training_that_fails_ends_the_comparison(compare: Command, tmp_path: Path):
    fake_run(tmp_path / "tree", "import sys\nprint('loading')\nsys.exit('error: no room')\n")
    shutil.copy(ROOT / "launchers/compare.py", tmp_path / "tree/launchers")
    done = compare(root=tmp_path / "tree")
    assert (done.code, done.out) == (2, "")
    started, *lines = done.err.splitlines()
    assert started.endswith("left: working tree, 1 rank")
    assert lines == [" left | loading", " left | error: no room", "error: left ended with code 1: no room"]


_BAD = [
    (["--left-commit", "nope"], "error: commit nope cannot be checked out of"),
    (["--right-commit=-x"], "error: '-x' is not a commit: give a hash, branch or tag"),
    (
        ["data.path=/nowhere"],
        "error: left: no dataset at data.path=/nowhere (manifest.json is missing): run launchers/",
    ),
    (["--right", "data.path=/nowhere"], "error: right: no dataset at data.path=/nowhere"),
    (["train.iteration=5"], f"error: {TINY}: unknown key 'train.iteration': did you mean 'iterations'?"),
    (["--right", "sed=5"], f"error: right: {TINY}: unknown key 'sed': did you mean 'seed'?"),
    (["--left=--help"], "error: left: override '--help' is not of the form key.sub=value"),
    (["--left", "train.iterations=5"], "error: --left has 'train.iterations=5', which the comparison sets itself"),
    (["--left", "run='a"], "error: --left 'run='a' cannot be split into overrides: No closing quotation"),
    (
        ["--right", "method='{name: flow_matching}' head_optimizer=null discriminator={}"],
        "error: left trains by method.name=ladd, right by flow_matching: their numbers have nothing in common",
    ),
    (["--keep", "configs"], "error: --keep configs exists and is not an empty folder"),
    (["--keep", TINY], f"error: --keep {TINY} exists and is not an empty folder"),
]


@pytest.mark.parametrize(("args", "message"), _BAD, ids=[" ".join(args) for args, _ in _BAD])
def test_bad_input_is_one_line_before_anything_is_trained(compare: Command, args: list[str], message: str):
    done = compare(*args)
    (line,) = done.err.splitlines()
    assert line.startswith(message)
    assert (done.code, done.out) == (2, "")


@pytest.mark.parametrize(
    "args",
    [
        ["--steps", "0"],
        ["--steps", "many"],
        ["--tolerance", "nan"],
        ["--tolerance", "inf"],
        ["--tolerance", "-1"],
        ["--left-ranks", "0"],
    ],
    ids=" ".join,
)
def test_impossible_numbers_are_refused(compare: Command, args: list[str]):
    done = compare(*args)
    assert done.code == 2 and f"argument {args[0]}: " in done.err.splitlines()[-1]


def test_ranks_are_not_started_around_it(compare: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(distributed, "start", lambda *_: replace(ALONE, size=2))
    done = compare()
    assert done.code == 2
    assert done.err.startswith("error: compare.py starts the ranks itself: run it with plain python")


def test_a_terminated_comparison_leaves_no_process_and_no_tree(tmp_path: Path, dataset: Path):
    root = tmp_path / "repository"
    fake_run(root, "import os, time\nprint('pid', os.getpid(), flush=True)\ntime.sleep(100)\n")
    shutil.copy(ROOT / "launchers/compare.py", root / "launchers")
    git(root, "init", "--quiet", "--initial-branch=main")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "-m", "one that never ends")
    common = ["--config", TINY, *tiny_overrides(tmp_path, dataset), "--left-commit", "main"]
    command = [sys.executable, str(root / "launchers/compare.py"), *common]
    env = environment({"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)})
    with subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        started = next(line for line in process.stderr if line.startswith(" left | pid"))
        process.terminate()
        assert process.wait(timeout=300) == 128 + signal.SIGTERM, process.stderr.read()
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.split()[-1]), 0)
    assert len(trees(root)) == 1 and not list(tmp_path.glob("ladd-*"))
