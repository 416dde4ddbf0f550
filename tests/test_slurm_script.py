"""The batch script without a Slurm: what is rendered, that no text becomes a command, and what it decides.

Slurm's commands are shell functions here; tests/test_slurm.py has the real ones.
"""

import json
import os
import runpy
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ladd_dist.config import load
from ladd_dist.config.yaml import write_yaml
from ladd_dist.distributed.tasks import group_variables
from ladd_dist.errors import LaddError
from ladd_dist.jobs.cluster import JOBS, JobName
from ladd_dist.slurm import attempts, submission
from ladd_dist.slurm.cluster import load_clusters, seconds
from ladd_dist.slurm.script import Job, render
from ladd_dist.slurm.submission import submit
from ladd_dist.supervision import exits

ROOT = Path(__file__).parent.parent
TEMPLATE = ROOT / "launchers/slurm/job.sbatch"
SMALL = {"nodes": 2, "gpus_per_node": 0, "time": "10", "signal_seconds": 60}
TINY = ROOT / "configs/tiny_cpu.yaml"

WORDS = {"encode": ("--pictures", "a b.jsonl"), "pairs": ("rank", "--scorer", "clip:a $b", "--pictures", "2")}
STUBS = """\
cd() { printf '%s\\0' "$PWD" "$@" > "$OUT/cd"; }
module() { printf '%s\\0' "$@" >> "$OUT/module"; }
python() { case " $* " in
    *" begin "*) echo "$OUT/exits";;
    *) printf '%s\\0' "$@" > "$OUT/end"; echo "$VERDICT"; return "$CODE";; esac; }
apptainer() { python "$@"; }
srun() { case "$*" in
    *attempt.py*) python "$@";;
    *) env -0 > "$OUT/env"; printf '%s\\0' "$@" > "$OUT/srun"; eval "$STEP";; esac; }
scancel() { echo "scancel $*" >> "$OUT/calls"; }
scontrol() { [ "$1" = show ] && echo n1 || echo "scontrol $*" >> "$OUT/calls"; }
squeue() { echo "$STATE"; }
sleep() { command sleep 0.02; }
export SLURM_JOB_ID=42 SLURM_JOB_NODELIST='n[1-2]' SLURM_JOB_NUM_NODES=2
. "$OUT/job.sbatch"
"""


def write_cluster(folder: Path, **keys: Any) -> Path:
    path = folder / "cluster.yaml"
    write_yaml(path, SMALL | keys)
    return path


def job_of(folder: Path, name: JobName = "train", overrides: tuple[str, ...] = (), **keys: Any) -> Job:
    clusters = load_clusters(write_cluster(folder, **keys))
    return Job(name, load(TINY, list(overrides)), TINY, overrides, clusters[name], folder, WORDS.get(name, ()))


def options_of(script: str) -> list[str]:
    """Words of the #SBATCH lines, where a backslash and a comment mean what they mean to a shell."""
    lines = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]
    words = [shlex.split(line, comments=True) for line in lines]
    assert all(len(word) == 1 for word in words), words
    return [word[0] for word in words]


def act(folder: Path, script: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script with Slurm's commands acted; what they were given lies in the folder."""
    (folder / "job.sbatch").write_text(script)
    for file in ("calls", "module"):
        (folder / file).unlink(missing_ok=True)
    acted = {"OUT": str(folder), "STATE": "RUNNING", "STEP": "return 0", "VERDICT": "end", "CODE": "0"}
    return subprocess.run(
        ["bash", "-c", STUBS], env=os.environ | acted | env, capture_output=True, text=True, timeout=60, cwd=folder
    )


def words_of(path: Path) -> list[str]:
    return path.read_text().split("\0")[:-1]


def calls(folder: Path) -> list[str]:
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []


# What is rendered


@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_srun_starts_every_rank_itself(tmp_path: Path, engine: str) -> None:
    keys = {"gpus_per_node": 8, "ranks_per_node": None, "cpus_per_rank": 6}
    script = render(job_of(tmp_path, overrides=("train.global_batch=48", f"engine={engine}"), **keys), TEMPLATE)
    assert {"--ntasks-per-node=8", "--cpus-per-task=6", "--gpus-per-node=8"} < set(options_of(script))
    assert act(tmp_path, script).returncode == 0
    words = words_of(tmp_path / "srun")
    assert "--cpus-per-task=6" in words and words[words.index("task") :][:2] == ["task", "python"]
    assert not any(word.startswith("RANK=") for word in words_of(tmp_path / "env"))


def test_an_only_rank_of_an_engine_that_needs_a_group_has_one(tmp_path: Path) -> None:
    for engine, numbered in (("zero3", True), ("local", False)):
        script = render(job_of(tmp_path, overrides=(f"engine={engine}",), nodes=1), TEMPLATE)
        assert act(tmp_path, script).returncode == 0
        variables = dict(word.partition("=")[::2] for word in words_of(tmp_path / "env"))
        assert ("RANK" in variables) is numbered
        if numbered:
            assert group_variables(variables) == {} and variables["MASTER_PORT"] == "20042"


def test_a_job_has_its_own_limits_and_export_is_one_process(tmp_path: Path) -> None:
    limits = {"synthesize": {"nodes": 4, "time": "1-0"}, "export": {"time": "5"}}
    clusters = load_clusters(write_cluster(tmp_path, gpus_per_node=8, jobs=limits))
    seen = {name: (c.nodes, c.ranks, c.gpus_per_node, c.time) for name, c in clusters.items()}
    assert seen == {
        "synthesize": (4, 8, 8, "1-0"),
        "encode": (2, 8, 8, "10"),
        "pairs": (2, 8, 8, "10"),
        "train": (2, 8, 8, "10"),
        "evaluate": (2, 8, 8, "10"),
        "export": (1, 1, 1, "5"),
    }


def test_no_option_of_the_script_is_given_twice(tmp_path: Path) -> None:
    keys = {
        "account": "a",
        "partition": "b",
        "qos": "c",
        "constraint": "d",
        "exclude": ["e"],
        "memory": 0,
        "time": 10,
    }
    script = render(job_of(tmp_path, overrides=("engine=fsdp2",), gpus_per_node=1, cpus_per_rank=1, **keys), TEMPLATE)
    options = [option.partition("=")[0] for option in options_of(script)]
    assert len(options) == 16 == len(set(options))
    for option in options:
        with pytest.raises(LaddError, match=f"sbatch: {option} "):
            load_clusters(write_cluster(tmp_path, sbatch=[f"{option}=1"]))
    load_clusters(write_cluster(tmp_path, sbatch=["--exclusive", "--reservation=a", "--nodelist=n1", "--time-min=1"]))


def test_no_rank_takes_its_place_from_the_shell_that_submits(tmp_path: Path) -> None:
    script = render(job_of(tmp_path, overrides=("engine=zero3",), environment={"MASTER_PORT": 29_555}), TEMPLATE)
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "here"}
    assert act(tmp_path, script, **alone).returncode == 0
    variables = dict(word.partition("=")[::2] for word in words_of(tmp_path / "env"))
    assert not alone.keys() & variables.keys() and variables["MASTER_PORT"] == "29555"
    assert variables["PET_SHUTDOWN_TIMEOUT"] == "60", "the preflight goes by it"


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("10", 600), ("1:30", 90), ("2:00:00", 7200), ("1-0", 86_400), ("1-2:03", 93_780), ("1-0:0:1", 86_401)],
)
def test_a_time_limit_is_read_as_sbatch_reads_it(limit: str, expected: int) -> None:
    assert seconds(limit) == expected


def test_the_example_fits_the_large_configuration() -> None:
    clusters = load_clusters(ROOT / "launchers/slurm/cluster.yaml")
    path = ROOT / "configs/sd35_large.yaml"
    for name in JOBS:
        Job(name, load(path), path, (), clusters[name], ROOT, WORDS.get(name, ())).check()


# No text becomes a command

CHARACTERS = st.sampled_from("'\"\\$`;&|<>(){}[]*?!~# =%,") | st.characters(categories=["L", "N", "P", "S"])
LINES = st.text(CHARACTERS, min_size=1)


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(LINES, min_size=8, max_size=8), container=st.sampled_from([None, "apptainer", "pyxis"]))
def test_hostile_text_reaches_every_program_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], container: str | None
) -> None:
    out = tmp_path_factory.mktemp("out")
    project, account, partition, value, image, mount, option, place = texts
    override = f"tracking.project={json.dumps(project, ensure_ascii=False)}"
    run_dir = "r" + place.replace("\\", "/")
    overrides = (override, f"run_dir={json.dumps(run_dir, ensure_ascii=False)}", "engine=zero3")
    image = "i" + image
    inside = {"container": {"runtime": container, "image": image, "mounts": [mount]}} if container else {}
    job = job_of(
        out, overrides=overrides, account=account, partition=partition, environment={"HOSTILE": value},
        modules=["cuda/12.8"], sbatch=[f"--comment={option}"], **inside,
    )  # fmt: skip
    job.check()
    script = render(job, TEMPLATE)
    (out / "job.sbatch").write_text(script)
    assert subprocess.run(["bash", "-n", out / "job.sbatch"], capture_output=True).stderr == b""
    expected = {f"--account={account}", f"--partition={partition}", f"--comment={option}"}
    assert expected < set(options_of(script))
    done = act(out, script)
    assert (done.returncode, done.stderr) == (0, ""), script
    assert words_of(out / "cd")[1:] == [str(out)]
    assert words_of(out / "module") == ["load", "cuda/12.8"]
    assert f"HOSTILE={value}" in words_of(out / "env")
    step = words_of(out / "srun")
    if container == "pyxis":
        assert {f"--container-image={image}", f"--container-mounts={mount}"} < set(step)
    if container == "apptainer":
        first = step.index("apptainer")
        assert step[first + 5 : first + 8] == ["--bind", mount, image]
    assert step[-6:] == [str(ROOT / "launchers/train.py"), "--config", str(TINY), *overrides]
    places = ["--run-dir", str(job.run_dir), "--data", str(job.folder / job.config.data.path)]
    assert words_of(out / "end")[-6:] == [*places, "--job", "train"]


REFUSED = {
    "a line break in a variable": ({"environment": {"A": "b\nc"}}, "environment.A"),
    "a variable that is none": ({"environment": {"A B": "c"}}, "environment.A B"),
    "a line break in a name": ({"environment": {"A\nB": "c"}}, r"environment.A\nB"),
    "a module that is a command": ({"modules": ["cuda; rm -rf /"]}, "modules.0"),
    "an option that is none": ({"sbatch": ["exclusive"]}, "sbatch.0"),
    "a node list that is none": ({"exclude": ["n1 n2"]}, "exclude.0"),
    "a limit without an end": ({"time": "9" * 5000}, "time: must be minutes, MM:SS,"),
    "a limit in other digits": ({"time": "\u0661\u0660"}, "time: must be minutes, MM:SS,"),
    "a limit that is none": (
        {"time": "a day"},
        "time: must be minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS",
    ),
    "memory that is none": ({"memory": "lots"}, "memory: must be a number with K, M, G or T behind it, or 0"),
    "an image that is an option": (
        {"container": {"runtime": "apptainer", "image": "-x"}},
        "container.image: must be an image, which begins with no -",
    ),
    "a rank's place": ({"environment": {"RANK": "0"}}, "environment: RANK is set by whatever starts the ranks"),
    "torchrun's": ({"environment": {"PET_NNODES": "1"}}, "environment: PET_NNODES is set by whatever starts"),
    "an option with a key": ({"sbatch": ["--nodes=3"]}, "sbatch: --nodes is the script's own: set nodes"),
    "one that sbatch completes": (
        {"sbatch": ["--ntasks-per=3"]},
        "sbatch: --ntasks-per is the script's own: set ranks",
    ),
    "many jobs in one": (
        {"sbatch": ["--array=1-3"]},
        "sbatch: --array does not suit a job that is requeued: drop it",
    ),
    "a mistyped key": ({"partitoin": "gpu"}, "unknown key 'partitoin': did you mean 'partition'?"),
    "a mistyped key of a job": (
        {"jobs": {"train": {"node": 2}}},
        "unknown key 'jobs.train.node': did you mean 'nodes'?",
    ),
    "nodes for one process": ({"jobs": {"export": {"nodes": 2}}}, "unknown key 'jobs.export.nodes'"),
    "more ranks than GPUs": ({"gpus_per_node": 4, "ranks_per_node": 8}, "ranks_per_node=8 is more than"),
    "no time before the signal": (
        {"time": "5", "signal_seconds": 300},
        "time=5 is not longer than signal_seconds=300",
    ),
    "no time for one job": ({"jobs": {"train": {"time": "1"}}}, "jobs.train: time=1 is not longer than"),
}


@pytest.mark.parametrize(("keys", "said"), REFUSED.values(), ids=REFUSED)
def test_what_no_script_can_hold_is_refused_by_key(tmp_path: Path, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(LaddError) as error:
        load_clusters(write_cluster(tmp_path, **keys))
    assert said in str(error.value) and str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)


UNFIT = {
    "more ranks than samples": (
        ("engine=fsdp2",),
        {"nodes": 7, "gpus_per_node": 8},
        "global_batch=48 is not a multiple",
    ),
    "many ranks of one process": ((), {}, "engine=local runs in one process, but 2 were started"),
    "copies that ranks cannot share": (
        ("engine=fsdp2", "fsdp2.replicas=3"),
        {},
        "fsdp2.replicas=3 does not divide 2",
    ),
    "a line break": (("engine=fsdp2", 'tracking.project="a\nb"'), {}, "has a line break"),
    "a backslash": (("engine=fsdp2", "run_dir='a\\b'"), {}, "rename it"),
    "no environment": (("engine=fsdp2",), {"venv": "none"}, "venv=none has no bin/python: name an environment"),
}


@pytest.mark.parametrize(("overrides", "keys", "said"), UNFIT.values(), ids=UNFIT)
def test_what_the_run_cannot_use_is_refused_before_it_waits_in_the_queue(
    tmp_path: Path, overrides: tuple[str, ...], keys: dict[str, Any], said: str
) -> None:
    with pytest.raises(LaddError, match=said):
        job_of(tmp_path, overrides=overrides, **keys).check()


def test_an_evaluation_takes_no_more_ranks_than_it_has_batches(tmp_path: Path) -> None:
    overrides = ("evaluation.samples=100", "evaluation.batch=50")  # of three buckets: from 2 batches to 5
    job_of(tmp_path, "evaluate", overrides, nodes=5).check()
    with pytest.raises(LaddError, match=r"samples=100 are at most 5 batches of .*batch=50, and 6 ranks would share"):
        job_of(tmp_path, "evaluate", overrides, nodes=6).check()


def test_a_synthesis_takes_no_more_ranks_than_it_has_parts(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("one\n\ntwo\nthree\n")
    overrides = (
        "synthesis.prompts=prompts.txt", "synthesis.images_per_prompt=4", "synthesis.part_samples=5",
    )  # fmt: skip
    job_of(tmp_path, "synthesize", overrides, nodes=5).check()  # of three buckets: from 3 parts to 5
    with pytest.raises(LaddError, match=r"makes 12 pictures, at most 5 parts of .*part_samples=5, and 6 ranks would"):
        job_of(tmp_path, "synthesize", overrides, nodes=6).check()
    job_of(tmp_path, "synthesize", ("synthesis.prompts=elsewhere.txt",), nodes=6).check()


def test_latents_are_not_drawn_for_a_method_that_needs_pairs(tmp_path: Path) -> None:
    config = load(ROOT / "configs/tiny_dpo.yaml", ["engine=fsdp2"])
    replace(job_of(tmp_path, "train"), config=config).check()
    for name in ("synthesize", "encode"):
        with pytest.raises(LaddError, match=r"method.name=dpo needs .*: make pairs with launchers/pairs.py"):
            replace(job_of(tmp_path, name), config=config).check()


@pytest.mark.parametrize("name", WORDS)
def test_a_job_that_makes_another_dataset_is_told_of_what(tmp_path: Path, name: JobName) -> None:
    """As its launcher reads it; overrides come after."""
    job = job_of(tmp_path, name, ("engine=fsdp2", "seed=3"))
    job.check()
    assert act(tmp_path, render(job, TEMPLATE)).returncode == 0
    words = words_of(tmp_path / "srun")
    (place,) = (index for index, word in enumerate(words) if word.endswith(f"launchers/{name}.py"))
    args = runpy.run_path(words[place])["command_line"]().parse_intermixed_args(words[place + 1 :])
    assert (args.config, args.overrides) == (TINY, ["engine=fsdp2", "seed=3"])
    if name == "pairs":
        assert (args.kind, args.scorer, args.pictures) == ("rank", "clip:a $b", 2)
    else:
        assert args.pictures == Path("a b.jsonl")


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("train", ("rank",), "--arguments are for encode and pairs: leave them out of train"),
        ("encode", (), "--arguments of encode: the following arguments are required: --pictures"),
        ("encode", ("--pictures", "a", "seed=3"), "--arguments of encode: unrecognized arguments: seed=3"),
        ("pairs", (), "--arguments of pairs: the following arguments are required: kind"),
        ("pairs", ("best",), "--arguments of pairs: argument kind: invalid choice: 'best'"),
        ("pairs", ("table", "--scorer", "stroke"), "--scorer is for 'rank': leave it out of 'table'"),
        ("pairs", ("rank",), "'rank' needs --scorer"),
        ("pairs", ("rank", "--scorer", "a", "--pictures", "0"), "--arguments of pairs: argument --pictures: "),
        ("pairs", ("rank", "--scorer", "a\nb"), "cannot stand in a batch script"),
    ],
)
def test_what_a_launcher_cannot_be_told_is_refused(
    tmp_path: Path, name: JobName, words: tuple[str, ...], said: str
) -> None:
    with pytest.raises(LaddError) as error:
        replace(job_of(tmp_path, name, ("engine=fsdp2",)), arguments=words).check()
    assert said in str(error.value)


# What the script decides

REQUEUED = ["scontrol requeue 42"]
DECISIONS = {
    "done": ("end", 0, "RUNNING", [], []),
    "bad input": ("end", 2, "RUNNING", [], []),
    "saved": ("requeue", 75, "RUNNING", [], REQUEUED),
    "lost a rank": ("requeue", 76, "RUNNING", [], REQUEUED),
    "a node failed twice": ("requeue n2", 76, "RUNNING", [], [*REQUEUED, "scontrol update JobId=42 ExcNodeList=n2"]),
    "another one, too": (
        "requeue n2", 76, "RUNNING", ["n7", "n[8-9]"],
        [*REQUEUED, "scontrol update JobId=42 ExcNodeList=n7,n[8-9],n2"],
    ),
    "cancelled": ("requeue", 75, "COMPLETING", [], []),
    "no controller": ("requeue", 75, "", [], []),
}  # fmt: skip


@pytest.mark.parametrize(("decision", "code", "state", "exclude", "expected"), DECISIONS.values(), ids=DECISIONS)
def test_a_job_is_requeued_unless_slurm_is_ending_it(
    tmp_path: Path, decision: str, code: int, state: str, exclude: list[str], expected: list[str]
) -> None:
    script = render(job_of(tmp_path, overrides=("engine=fsdp2",), exclude=exclude), TEMPLATE)
    done = act(tmp_path, script, VERDICT=decision, CODE=str(code), STATE=state, STEP=f"return {code}")
    assert (done.returncode, calls(tmp_path), done.stderr) == (code, expected, "")
    assert words_of(tmp_path / "end")[2:6] == ["--exits", str(tmp_path / "exits"), "--step-code", str(code)]


def test_usr1_goes_to_the_ranks_until_they_are_gone_and_term_waits_for_them(tmp_path: Path) -> None:
    script = render(job_of(tmp_path, overrides=("engine=fsdp2",)), TEMPLATE)
    saved = 'until [ "$(grep -cs USR1 "$OUT/calls")" = 3 ]; do command sleep 0.01; done; return 75'
    done = act(tmp_path, script, STEP=f"kill -TERM $$; kill -USR1 $$; {saved}", VERDICT="requeue", CODE="75")
    assert done.returncode == 75
    assert calls(tmp_path)[:3] == ["scancel --quiet --signal=USR1 42"] * 3 and calls(tmp_path)[-1:] == REQUEUED
    assert "Slurm ends the job" in done.stdout


# What becomes of an attempt


def exit_of(node: str, code: int | None, *blamed: str) -> exits.Exit:
    return exits.Exit(node, f"{node}.cluster", 1, code, "" if code in (0, None) else f"why {code}", blamed)


CODES = {
    "all done": ([0, 0], 0, 0),
    "all saved": ([75, 75], 75, 75),
    "under torchrun": ([75, 75], 1, 75),
    "one was killed": ([76, None], 137, 76),
    "one failed by itself": ([76, 1], 76, 76),
    "bad input on one": ([2, 76], 76, 2),
    "all failed": ([1, 1], 1, 1),
    "killed alone": ([None], 137, 137),
    "the network's error ended all": ([None, None], 134, 76),
    "one was killed at the end": ([0, None], 137, 76),
    "one failed, one was killed": ([1, None], 137, 1),
    "it never started": ([], 127, 127),
    "the step was killed after the end": ([0, 0], 0, 0),
    "one crashed after the end": ([0, 0], 139, 0),
}


@pytest.mark.parametrize(("said", "step", "expected"), CODES.values(), ids=CODES)
def test_the_code_of_a_job_is_what_its_ranks_say(said: list[int | None], step: int, expected: int) -> None:
    assert exits.exit_code([exit_of(f"n{i}", code) for i, code in enumerate(said)], step) == expected


def test_nodes_at_fault_are_those_that_the_ranks_name_or_else_those_that_fell_silent() -> None:
    assert attempts.failed_nodes([exit_of("n1", 76, "n2.cluster"), exit_of("n2", 76, "n2.cluster")]) == ["n2"]
    assert attempts.failed_nodes([exit_of("n1", 76), exit_of("n2", None)]) == ["n2"]
    assert attempts.failed_nodes([exit_of("n1", 75), exit_of("n2", None)]) == ["n2"]
    assert attempts.failed_nodes([exit_of("n1", None), exit_of("n2", None)]) == []
    assert attempts.failed_nodes([exit_of("n1", 75), exit_of("n2", 75)]) == []


def test_a_file_that_a_lost_node_left_empty_says_that_its_process_did_not_end_by_itself(tmp_path: Path) -> None:
    (tmp_path / "a-node.cluster-17.exit").touch()
    assert exits.read(tmp_path) == [exits.Exit("a-node.cluster", "a-node.cluster", 17)]


SAVES = {"train": "checkpoints/step-{:08d}", "synthesize": "latents/32x32/part-{:05d}"}
SAVES["pairs"] = SAVES["synthesize"]
SAVES["evaluate"] = ".evaluation.drawn-0123/sets/student_4/{:06d}.safetensors"


def attempt(
    run_dir: Path,
    restart: int,
    saved: int,
    *ends: exits.Exit,
    step: int = 1,
    number: int = 42,
    job: str = "train",
) -> attempts.Decision:
    env = {"SLURM_JOB_ID": str(number), "SLURM_RESTART_COUNT": str(restart), "SLURM_JOB_NODELIST": "n[1-2]"}
    folder = attempts.begin(run_dir, run_dir / "latents", job, env)
    for i, end in enumerate(ends):
        (folder / f"{i}.exit").write_text(json.dumps(vars(end)))
    (run_dir / SAVES[job].format(saved)).mkdir(parents=True, exist_ok=True)
    return attempts.end(run_dir, run_dir / "latents", folder, step)


def test_each_attempt_is_a_line_of_the_record(tmp_path: Path) -> None:
    assert attempt(tmp_path, 0, 20, exit_of("n1", 75), exit_of("n2", 75)) == attempts.Decision(75, True, ())
    assert attempt(tmp_path, 1, 50, exit_of("n1", 0), step=0) == attempts.Decision(0, False, ())
    keys = ("job", "number", "restart", "nodes", "saved_before", "saved", "exit_code", "reason")
    rows = [tuple(row[key] for key in keys) for row in attempts.attempts(tmp_path)]
    assert rows == [
        ("train", "42", 0, "n[1-2]", 0, 20, 75, "why 75"), ("train", "42", 1, "n[1-2]", 20, 50, 0, "")
    ]  # fmt: skip
    assert not list((tmp_path / "slurm/running").iterdir())


def test_an_attempt_whose_script_was_killed_is_recorded_by_the_next(tmp_path: Path) -> None:
    env = {"SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "n[1-2]"}
    attempts.begin(tmp_path, tmp_path / "latents", "train", env)
    (tmp_path / "slurm/train-42.out").touch()
    attempts.begin(tmp_path, tmp_path / "latents", "train", env | {"SLURM_JOB_ID": "43"})
    attempt(tmp_path, 1, 10, exit_of("n1", 0), step=0)
    rows = [(row["number"], row["restart"], row["exit_code"], row["reason"]) for row in attempts.attempts(tmp_path)]
    assert rows == [("42", 0, None, "the batch script was killed"), ("42", 1, 0, "")]
    assert (tmp_path / "slurm/running/train-43.0").is_dir(), "another job may still be running"


def test_what_a_lost_node_has_cut_off_does_not_end_the_job(tmp_path: Path) -> None:
    attempt(tmp_path, 0, 10, exit_of("n1", 75))
    record = tmp_path / "slurm" / attempts.RECORD
    record.write_text(record.read_text() + '{"job": "train", "nu')
    (tmp_path / "slurm/running/.train-42/half removed").mkdir(parents=True)
    env = {"SLURM_JOB_ID": "42", "SLURM_RESTART_COUNT": "1", "SLURM_JOB_NODELIST": "n[1-2]"}
    (attempts.begin(tmp_path, tmp_path / "latents", "train", env) / "a-node.cluster-17.exit").touch()
    assert attempt(tmp_path, 2, 20, exit_of("n1", 75)).requeue
    assert [row["restart"] for row in attempts.attempts(tmp_path)] == [0, 1, 2]
    assert not list((tmp_path / "slurm/running").iterdir())


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["slurm/attempt.py", "begin"], "SLURM_JOB_ID is not set, so this is no Slurm job: start the script with s"),
        (["slurm/attempt.py", "end"], "the following arguments are required: --exits, --step-code"),
        (["kubernetes/pod.py"], "PET_MASTER_ADDR is not set, so this is no pod of "),
    ],
)  # fmt: skip
def test_what_a_scheduler_starts_says_so_when_a_person_does(tmp_path: Path, command: list[str], said: str) -> None:
    places = ["--run-dir", str(tmp_path), "--data", str(tmp_path), "--job", "train"]
    words = [sys.executable, f"launchers/{command[0]}", *command[1:], *places]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "PET_"))}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("error: ")) == (2, 1) and f"error: {said}" in done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())


def test_a_node_that_failed_twice_is_excluded(tmp_path: Path) -> None:
    lost = exit_of("n1", 76, "n2.cluster"), exit_of("n2", None)
    assert attempt(tmp_path, 0, 10, *lost).exclude == ()
    assert attempt(tmp_path, 1, 20, exit_of("n1", None), exit_of("n2", 76)).exclude == ()
    assert attempt(tmp_path, 2, 30, *lost).exclude == ("n2",)


def test_nodes_that_fell_silent_together_are_not_excluded(tmp_path: Path) -> None:
    lost = exit_of("n1", 76, "n2.cluster", "n3.cluster"), exit_of("n2", None), exit_of("n3", None)
    assert [attempt(tmp_path, restart, 10 * restart + 10, *lost).exclude for restart in (0, 1)] == [(), ()]
    assert attempts.attempts(tmp_path)[0]["failed_nodes"] == ["n2", "n3"]


@pytest.mark.parametrize("job", ["train", "synthesize", "pairs", "evaluate"])
def test_a_job_that_loses_ranks_and_gets_nowhere_ends(tmp_path: Path, job: str) -> None:
    lost = exit_of("n1", 76, "n2.cluster"), exit_of("n2", 1)
    decisions = [
        attempt(tmp_path, restart, saved, *lost, job=job) for restart, saved in enumerate([10, 20, 20, 20, 20])
    ]
    assert [decision.requeue for decision in decisions] == [True, True, True, True, False]
    assert {decision.code for decision in decisions} == {76}
    assert attempt(tmp_path, 0, 20, *lost, number=43, job=job).requeue, "who submits it again has seen to it"


def test_bad_input_is_never_requeued(tmp_path: Path) -> None:
    assert not attempt(tmp_path, 0, 0, exit_of("n1", 2), exit_of("n2", 76)).requeue


# What a process says of its end


def test_a_process_says_that_it_runs_and_how_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exits.enter()
    exits.leave(1)
    monkeypatch.setenv("LADD_EXITS", str(tmp_path))
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    exits.enter()
    (running,) = exits.read(tmp_path)
    assert (running.node, running.pid, running.code) == ("n1", os.getpid(), None)
    exits.leave(76, "rank 1\nis gone", ("h2",))
    (ended,) = exits.read(tmp_path)
    assert (ended.code, ended.reason, ended.blamed) == (76, "rank 1 is gone", ("h2",))
    monkeypatch.setenv("LADD_EXITS", str(tmp_path / "gone"))
    exits.leave(75)
    with pytest.raises(LaddError, match="LADD_EXITS=.*gone cannot be written"):
        exits.enter()


# Handing it over

SBATCH = """\
#!/bin/sh
echo "sbatch $*" >> "$CALLS"
case "$*" in *"$REFUSE"*)
    echo "sbatch: ${WHY:-error: Batch job submission failed: Invalid partition name specified}" >&2
    exit 1;;
esac
case "$1" in --parsable) echo "${SAY:-$(wc -l < "$CALLS")}";; esac
"""
SCANCEL = """\
#!/bin/sh
echo "scancel $*" >> "$CALLS"
exit ${LEFT:-0}
"""


@pytest.fixture
def slurm_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in {"sbatch": SBATCH, "scancel": SCANCEL}.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("REFUSE", "nothing")
    return tmp_path / "calls"


def test_a_chain_waits_for_good_ends(slurm_calls: Path) -> None:
    submitted = submit([Path("a.sbatch"), Path("b.sbatch")])
    assert submitted == [(Path("a.sbatch"), "3"), (Path("b.sbatch"), "4")]
    assert slurm_calls.read_text().splitlines() == [
        "sbatch --test-only a.sbatch",
        "sbatch --test-only b.sbatch",
        "sbatch --parsable a.sbatch",
        "sbatch --parsable --dependency=afterok:3 --kill-on-invalid-dep=yes b.sbatch",
    ]


def test_what_slurm_refuses_is_one_line_and_nothing_is_submitted(
    slurm_calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFUSE", "--test-only b")
    with pytest.raises(LaddError, match="Slurm refuses b.sbatch: .*Invalid partition name specified: mend"):
        submit([Path("a.sbatch"), Path("b.sbatch")])
    assert "--parsable" not in slurm_calls.read_text()


def test_a_chain_that_slurm_refuses_in_the_middle_is_taken_back(
    slurm_calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFUSE", "--dependency")
    with pytest.raises(LaddError, match="Slurm refuses b.sbatch"):
        submit([Path("a.sbatch"), Path("b.sbatch")])
    assert slurm_calls.read_text().splitlines()[-1] == "scancel 3"


ODD = {
    "no controller": (
        {"REFUSE": "--test-only", "WHY": "fatal: Could not establish a configuration source"},
        r"sbatch does not reach Slurm \(Could not establish a configuration source\): submit from a login node",
    ),
    "a site's own sbatch": (
        {"SAY": "Have a nice day"},
        "submitted, but 'Have a nice day': look for it with squeue",
    ),
    "no scancel": ({"REFUSE": "--dependency", "LEFT": "1"}, "mend.*; jobs are left that scancel did not take: 3$"),
}


@pytest.mark.parametrize(("env", "said"), ODD.values(), ids=ODD)
def test_what_slurm_does_otherwise_is_one_line(
    slurm_calls: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str], said: str
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LaddError, match=said):
        submit([Path("a.sbatch"), Path("b.sbatch")])


def test_a_number_is_found_behind_what_a_sites_own_sbatch_says(
    slurm_calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAY", "Have a nice day\n17;here")
    assert submit([Path("a.sbatch")]) == [(Path("a.sbatch"), "17")]


def test_a_chain_that_is_interrupted_is_taken_back(slurm_calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = submission._call

    def interrupted(*command: str) -> subprocess.CompletedProcess[str]:
        if "--dependency=afterok:3" in command:
            raise KeyboardInterrupt
        return call(*command)

    monkeypatch.setattr(submission, "_call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        submit([Path("a.sbatch"), Path("b.sbatch")])
    assert slurm_calls.read_text().splitlines()[-1] == "scancel 3"


def test_a_script_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LaddError, match=r"run_dir: .*a.sbatch cannot be written \(.*\): choose another run_dir"):
        submission.write({tmp_path / "file/a.sbatch": ""})


def test_an_sbatch_that_may_not_be_started_is_one_line(slurm_calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(slurm_calls.parent / "bin"))
    (slurm_calls.parent / "bin/sbatch").chmod(0o644)
    with pytest.raises(LaddError, match=r"sbatch cannot be started \(Permission denied\)"):
        submit([Path("a.sbatch")])


def run_submit(tmp_path: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "launchers/slurm/submit.py", "--config", str(TINY), *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=120)


def test_a_dry_run_prints_the_chain_and_writes_nothing(tmp_path: Path) -> None:
    cluster, run_dir = str(write_cluster(tmp_path)), tmp_path / "run"
    overrides = ["--job", "chain", "--dry-run", "engine=fsdp2", f"run_dir={run_dir}"]
    done = run_submit(tmp_path, "--cluster", cluster, *overrides)
    assert (done.returncode, done.stderr) == (0, "")
    assert [done.stdout.count(f"launchers/{name}.py") for name in JOBS] == [1, 0, 0, 1, 1, 1]
    assert not run_dir.exists()
    by_pairs = ["--job", "chain", "--dry-run", "--arguments", "rank --scorer 'clip:a b'"]
    done = run_submit(tmp_path, "--cluster", cluster, *by_pairs, "engine=fsdp2", f"run_dir={run_dir}")
    said = "error: --arguments are for encode and pairs: leave them out of synthesize\n"
    assert (done.returncode, done.stderr) == (2, said)
    tuned = ["--config", "configs/tiny_dpo.yaml", "engine=fsdp2", "train.micro_batch=1", f"run_dir={run_dir}"]
    done = run_submit(tmp_path, "--cluster", cluster, *by_pairs, *tuned)
    assert [done.stdout.count(f"launchers/{name}.py") for name in JOBS] == [0, 0, 1, 1, 1, 1], done.stderr
    assert " rank --scorer 'clip:a b' " in done.stdout
    done = run_submit(tmp_path, "--cluster", cluster, "--job", "pairs", "--arguments", "rank '")
    assert (done.returncode, done.stderr.splitlines()[-1].partition("error: ")[2]) == (
        2, "argument --arguments: \"rank '\" is no command line (no closing quotation)"
    )  # fmt: skip
    done = run_submit(tmp_path, "--cluster", cluster, f"run_dir={run_dir}", "engine=fsdp2", PATH="/nowhere")
    assert (done.returncode, done.stderr) == (
        2, "error: there is no sbatch here: submit from a login node, or pass --dry-run\n"
    )  # fmt: skip
    missing = tmp_path / "none.yaml"
    said = f"error: cluster file {missing} cannot be read (No such file or directory): pass --cluster FILE\n"
    assert run_submit(tmp_path, "--cluster", str(missing)).stderr == said
