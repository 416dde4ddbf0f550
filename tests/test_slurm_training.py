"""Training on a real Slurm: two nodes with a rank each, and over time limits."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, TINY, tiny_overrides
from recorded import newest, tensors_of
from slurm import ENDED, Slurm, started

from ladd_dist.config import load
from ladd_dist.slurm.attempts import attempts
from ladd_dist.training.tracking import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

NODES = 2
DPO = str(ROOT / "configs/tiny_dpo.yaml")
ENVIRONMENT = {"OMP_NUM_THREADS": 1, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with started(tmp_path_factory.mktemp("slurm"), Path(sys.prefix), NODES) as cluster:
        yield cluster


def settings_of(run_dir: Path, dataset: Path, engine: str, *more: str) -> list[str]:
    return [*tiny_overrides(run_dir, dataset), f"engine={engine}", "train.micro_batch=null", *more]


def submit(slurm: Slurm, config: str, *settings: str) -> str:
    cluster = {"nodes": NODES, "environment": ENVIRONMENT, "time": "60", "signal_seconds": 400}
    (job,) = slurm.submit("--config", config, *settings, **cluster)
    return job


def finished(slurm: Slurm, job: str, run_dir: Path) -> None:
    fields = slurm.wait_for(job, *ENDED)
    assert (fields["JobState"], fields["ExitCode"]) == ("COMPLETED", "0:0"), said(run_dir)


def said(run_dir: Path) -> str:
    return "\n".join(path.read_text() for path in (run_dir / "slurm").glob("*.out"))


def trained_at_one_go(run_dir: Path, engine: str, iterations: int) -> None:
    state = newest(run_dir).state
    assert (state.engine, state.world_size, state.iteration) == (engine, NODES, iterations)
    (row,) = attempts(run_dir)
    assert (row["exit_code"], row["saved_before"], row["saved"]) == (0, 0, iterations)
    assert row["nodes"] == "n[1-2]"


def test_a_rank_starts_on_each_of_two_nodes(tmp_path: Path, dataset: Path, slurm: Slurm) -> None:
    job = submit(slurm, TINY, *settings_of(tmp_path, dataset, "zero3"))
    finished(slurm, job, tmp_path)
    trained_at_one_go(tmp_path, "zero3", 6)


def test_two_nodes_make_pairs_in_place_of_a_synthesis(tmp_path: Path, slurm: Slurm) -> None:
    prompts, data = tmp_path / "some prompts.txt", tmp_path / "pairs"
    prompts.write_text("".join(f"the digit {word}\n" for word in ("one", "two", "three", "four")))
    told = ["--job", "pairs", "--arguments", "rank --scorer stroke --pictures 2"]
    settings = [f"run_dir={tmp_path}", f"data.path={data}", f"synthesis.prompts={prompts}", "synthesis.steps=1"]
    settings += ["synthesis.buckets=[32x32]", "synthesis.part_samples=2", "engine=fsdp2", "train.micro_batch=null"]
    finished(slurm, submit(slurm, DPO, *told, *settings), tmp_path)
    (row,) = attempts(tmp_path)
    assert (row["exit_code"], row["saved_before"], row["saved"]) == (0, 0, 2)
    manifest = json.loads((data / "manifest.json").read_text())
    assert manifest["provenance"]["pairs"] == "rank:stroke"
    assert len(list(data.glob("32x32/part-*"))) == 2


def drain(slurm: Slurm, *, on: bool) -> None:
    """Keep what is requeued from starting at once."""
    slurm.call("scontrol", "update", "NodeName=n1,n2", f"State={'DRAIN' if on else 'RESUME'}", "Reason=test")


def meet_limit(slurm: Slurm, job: str, run_dir: Path, attempt: int) -> None:
    """Bring the time limit near a training that has got somewhere, and wait until it has been requeued."""
    before = len(read_metrics(run_dir))
    slurm.wait_until(lambda: len(read_metrics(run_dir)) > before + 3, f"iterations of attempt {attempt}")
    drain(slurm, on=True)
    minutes = int(slurm.show(job)["RunTime"].split(":")[-2]) + 5
    slurm.call("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
    slurm.wait_until(lambda: len(attempts(run_dir)) == attempt, f"the end of attempt {attempt}")
    slurm.wait_for(job, "PENDING")
    slurm.call("scontrol", "update", f"JobId={job}", "TimeLimit=60")


def test_a_run_that_meets_its_limit_twice_ends_as_if_it_had_not(tmp_path: Path, dataset: Path, slurm: Slurm) -> None:
    stopped, straight, config = tmp_path / "stopped", tmp_path / "straight", tmp_path / "config.yaml"
    settings = settings_of(
        stopped, dataset, "fsdp2", "student_optimizer.decay=constant", "head_optimizer.decay=constant"
    )
    load(TINY, [*settings, "train.iterations=100000"]).save(config)
    job = submit(slurm, str(config))
    for attempt in (1, 2):
        meet_limit(slurm, job, stopped, attempt)
        if attempt == 2:  # as far as it has come, and some iterations more
            iterations = newest(stopped).state.iteration + 5
            load(TINY, [*settings, f"train.iterations={iterations}"]).save(config)
        drain(slurm, on=False)
    finished(slurm, job, stopped)
    rows = attempts(stopped)
    assert [(row["restart"], row["exit_code"]) for row in rows] == [(0, 75), (1, 75), (2, 0)], said(stopped)
    assert [row["saved_before"] for row in rows[1:]] == [row["saved"] for row in rows[:-1]]
    assert all(row["saved"] > row["saved_before"] for row in rows)

    load(TINY, [*settings, f"train.iterations={iterations}", f"run_dir={straight}"]).save(config)
    finished(slurm, submit(slurm, str(config)), straight)
    trained_at_one_go(straight, "fsdp2", iterations)
    ours, theirs = tensors_of(stopped), tensors_of(straight)
    assert ours.keys() == theirs.keys()
    assert all(ours[key].equal(theirs[key]) for key in theirs)
