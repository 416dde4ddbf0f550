"""Mismatched prompts: which sample lends its own, what a run with them records, and a bucket with only one prompt."""

import shutil
from pathlib import Path

import pytest
from conftest import ALONE, tiny_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from latents import copy_of, rows_of
from matplotlib.figure import Figure
from streaming import MDSWriter, Stream

from ladd_dist.config import Config
from ladd_dist.data.mds import MISMATCHED, columns
from ladd_dist.data.mismatched import MismatchedPrompts
from ladd_dist.data.patches import patch_streaming
from ladd_dist.errors import LaddError
from ladd_dist.files.checksums import SUMS
from ladd_dist.measuring.compare import compare_runs
from ladd_dist.methods.ladd.method import Ladd
from ladd_dist.report import charts
from ladd_dist.training import trainer as trainer_module
from ladd_dist.training.tracking import read_metrics
from ladd_dist.training.trainer import Trainer

WEIGHT = "method.mismatched_weight"


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=9), min_size=1, max_size=3))
def test_the_next_sample_of_the_bucket_with_another_prompt_lends_it(tmp_path: Path, buckets: list[list[str]]) -> None:
    patch_streaming()
    streams = []
    for number, prompts in enumerate(buckets):
        shutil.rmtree(tmp_path / str(number), ignore_errors=True)
        streams.append(Stream(local=str(tmp_path / str(number))))
        with MDSWriter(out=streams[-1].local, columns={"at": "int", "prompt": "str"}, size_limit=150) as writer:
            for at, prompt in enumerate(prompts):
                writer.write({"at": at, "prompt": prompt})
    if alone := [number for number, prompts in enumerate(buckets) if len(set(prompts)) == 1]:
        with pytest.raises(LaddError) as refused:
            MismatchedPrompts("the.key", streams=streams, batch_size=1)
        (line,) = str(refused.value).splitlines()
        assert f"in {tmp_path / str(alone[0])} have the prompt '{buckets[alone[0]][0]}', but the.key needs" in line
        return
    dataset = MismatchedPrompts("the.key", streams=streams, batch_size=1)
    samples = iter(dataset[i] for i in range(len(dataset)))
    for prompts in buckets:
        for at, prompt in enumerate(prompts):
            sample, around = next(samples), [i % len(prompts) for i in range(at, at + len(prompts))]
            assert (sample["at"], sample["prompt"]) == (at, prompt)
            assert sample[MISMATCHED]["at"] == next(i for i in around if prompts[i] != prompt)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    run_dir = tmp_path_factory.mktemp("mismatched")
    overrides = [f"{WEIGHT}=0.5", "method.distillation_weight=0.1", "train.iterations=2"]
    Trainer(tiny_config(run_dir, dataset, *overrides), ALONE).run()
    return run_dir


def test_a_run_records_compares_and_draws_them(run: Path, dataset: Path) -> None:
    rows, config = read_metrics(run), tiny_config(run, dataset, f"{WEIGHT}=0.5")
    assert [len(row["mismatched_logit"]) for row in rows] == [4, 4] and 0 <= rows[0]["mismatched_right"] <= 1
    found = compare_runs(run, run, steps=2, tolerance=0)
    assert found.accepted and set(found.metrics) == {*Ladd.COMPARED, "mismatched_logit", "distillation"}
    assert _legends(rows, config) == [["real", "fake", "mismatched prompt"]] * 2


def _legends(rows: list[dict], config: Config) -> list[list[str]]:
    chart = next(chart for chart in Ladd.CHARTS if chart.name == "logits")
    panels = Figure().subplots(2, 1)
    charts._draw_chart(rows, config, chart, *panels)
    return [[text.get_text() for text in axes.get_legend().get_texts()] for axes in panels]


def test_a_run_with_them_is_not_one_without(run: Path, dataset: Path, tmp_path: Path) -> None:
    Trainer(tiny_config(tmp_path, dataset, "train.iterations=2"), ALONE).run()
    rows = read_metrics(tmp_path)
    assert not any("mismatched" in key for row in rows for key in row)
    assert _legends(rows, tiny_config(tmp_path, dataset)) == [["real", "fake"]] * 2
    for sides in ((run, tmp_path), (tmp_path, run)):
        assert compare_runs(*sides, steps=2, tolerance=0).metrics["mismatched_logit"] == [float("inf")] * 2


def test_a_bucket_with_one_prompt_is_refused_before_a_network_is_loaded(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, _ = copy_of(dataset, tmp_path)
    (data / SUMS).unlink()
    rows = [row for row in rows_of(dataset) if row["bucket"] == "32x64"]
    shutil.rmtree(data / "32x64")
    schema = columns(*(rows[0][key].shape for key in ("latent", "context", "pooled")))
    with MDSWriter(out=str(data / "32x64"), columns=schema, hashes=["xxh64"]) as writer:
        for row in rows:
            writer.write(row | {"prompt": "a\nseven"})
    monkeypatch.setattr(trainer_module, "build_method", lambda *_: pytest.fail("a network was loaded"))
    with pytest.raises(LaddError) as refused:
        Trainer(tiny_config(tmp_path / "run", data, f"{WEIGHT}=1"), ALONE)
    assert str(refused.value) == (
        f"all 24 samples in {data}/32x64 have the prompt 'a\\nseven', but {WEIGHT} needs others: "
        f"synthesize some for this bucket, or leave {WEIGHT} out"
    )
