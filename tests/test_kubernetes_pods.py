"""The rendered pods run: two of them train, one is lost, they are cut off from one another, and they end well."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, tiny_overrides
from pods import USER, Pods, kustomize, pods
from recorded import newest

from ladd_dist.checkpoints.folders import newest_iteration
from ladd_dist.config import load
from ladd_dist.config.yaml import write_yaml
from ladd_dist.errors import EXIT_REQUEUE
from ladd_dist.kubernetes.cluster import load_clusters
from ladd_dist.kubernetes.job import Job
from ladd_dist.kubernetes.manifests import write_manifests
from ladd_dist.training.tracking import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

CODE = "/opt/ladd_dist"
CLUSTER: dict[str, Any] = {
    "image": "ladd",
    "name": "tiny",
    "nodes": 2,
    "gpus_per_node": 0,
    "cpus_per_rank": 1,
    "memory": "4Gi",
    "shared_memory": "32Mi",
    "scratch": "64Mi",
    "volumes": [{"claim": "ladd", "path": "/ladd"}],
    "user": USER,
    "environment": {"OMP_NUM_THREADS": 1, "CUDA_VISIBLE_DEVICES": ""},
}


@pytest.fixture
def volume(tmp_path: Path, dataset: Path) -> Path:
    """What the claim has in it, given to the pods' user."""
    folder = tmp_path / "volume"
    shutil.copytree(dataset.parent, folder)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, USER, 0)
    return folder


@pytest.fixture
def job(tmp_path: Path, volume: Path) -> Iterator[Pods]:
    write_yaml(tmp_path / "cluster.yaml", CLUSTER)
    settings = [
        *tiny_overrides(Path("/ladd/run"), Path("/ladd") / "latents"),
        f"teacher.path={CODE}/ladd_dist/digits/teacher",
        f"evaluation.prompts={CODE}/ladd_dist/digits/prompts/eval.jsonl",
        "engine=fsdp2",
        "train.micro_batch=null",
        "train.iterations=100000",
        "student_optimizer.decay=constant",
        "head_optimizer.decay=constant",
    ]
    job = Job("train", "job", load(TINY, settings), load_clusters(tmp_path / "cluster.yaml")["train"])
    job.check()
    write_manifests(job, tmp_path / "manifests")
    (tmp_path / "pods").mkdir()
    with pods(tmp_path / "pods", kustomize(tmp_path / "manifests"), {"ladd": volume}) as acted:
        yield acted


def test_two_pods_train_to_the_end_over_a_loss_and_a_cut_link(job: Pods, volume: Path) -> None:
    run_dir = volume / "run"
    job.start(1)  # before there is a name for the first one
    job.start(0)
    job.wait_until(lambda: newest_iteration(run_dir) > 0)
    job.kill(1)
    assert job.wait_for_ends(1) == [(1, 137)], job.logs()
    job.start(1)  # before the first one has missed it
    assert job.wait_for_ends(1) == [(0, EXIT_REQUEUE)], job.logs()
    assert re.fullmatch(
        r"exit code 75: rank 1 \(host tiny-train-1, pid \d+\) is gone: no sign of it for .*", job.message(0)
    )
    job.start(0)
    saved = newest_iteration(run_dir)
    job.wait_until(lambda: newest_iteration(run_dir) > saved)
    job.link(1, up=False)
    assert sorted(job.wait_for_ends(2)) == [(0, EXIT_REQUEUE), (1, EXIT_REQUEUE)], job.logs()
    job.link(1, up=True)

    iterations = newest_iteration(run_dir) + 5
    job.change_config(f"train.iterations={iterations}")
    job.start(0)
    job.start(1)
    assert sorted(job.wait_for_ends(2)) == [(0, 0), (1, 0)], job.logs()
    job.start(0)  # as if it had been evicted while it left
    assert job.wait_for_ends(1) == [(0, 0)], job.logs()
    assert [row["iteration"] for row in read_metrics(run_dir)] == list(range(1, iterations + 1))
    state = newest(run_dir).state
    assert (state.engine, state.world_size, state.iteration) == ("fsdp2", 2, iterations)
