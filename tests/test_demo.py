"""`make demo` as a person runs it, held against what it promises."""

import subprocess
from pathlib import Path

import pytest
from diffusers import StableDiffusion3Pipeline
from PIL import Image

from ladd_dist.config import load
from ladd_dist.evaluation.places import FOLDER, RESULTS
from ladd_dist.evaluation.results import Results
from ladd_dist.training.tracking import read_metrics

ROOT = Path(__file__).parent.parent
HANG = 3600
"""Seconds after which it is no longer slow but stuck: minutes on two idle cores, more beside other tests."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(HANG + 60)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """A finished demo in a folder of its own, in as many threads as any test: another worker has the other core."""
    run_dir = tmp_path_factory.mktemp("demo")
    overrides = f"OVERRIDES=run_dir={run_dir} data.path={run_dir}/latents"
    done = subprocess.run(["make", "demo", overrides], cwd=ROOT, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return run_dir


@pytest.fixture(scope="module")
def results(demo) -> Results:
    return Results.model_validate_json((demo / FOLDER / RESULTS).read_text())


def test_it_distils(results):
    sets = {s.name: s for s in results.sets}
    assert results.samples >= 1000
    assert set(sets["student_4"].measures_by_bucket) == {"32x32", "32x64", "64x32"}
    # 0.07 to 0.11 and 0.05 to 0.07 were seen: another processor's rounding makes another run, as a seed does.
    four, one = sets["student_4"].measures, sets["student_1"].measures
    assert four.judge.ratio.value <= 0.25 and one.judge.ratio.value <= 0.1
    assert four.judge.excess.value <= one.judge.excess.value
    assert four.teacher.excess.value <= one.teacher.excess.value
    assert four.judge.ratio_renoised.value <= 0.25
    assert four.teacher.ratio.value <= 0.5 and one.teacher.ratio.value <= 0.25  # a second judge, which agrees
    for student in ("student_4", "student_1"):
        assert sets[student].measures.read.value >= results.guided.measures.read.value - 0.01


def test_training_and_evaluation_prompts_are_apart():
    config = load(ROOT / "configs/digits.yaml")
    train, held_out = (
        Path(p).read_text().splitlines() for p in (config.synthesis.prompts, config.evaluation.prompts)
    )
    assert not set(train) & set(held_out)


def test_the_record_is_complete_and_the_discriminator_never_collapsed(demo):
    rows = read_metrics(demo)
    config = load(demo / "config.yaml")
    every = config.train.log_every
    assert [r["iteration"] for r in rows] == list(range(every, config.train.iterations + 1, every))
    late = rows[len(rows) // 2 :]
    assert all(0.05 < r["d_loss"] < 2.1 for r in late)


def test_the_exports_card_says_how_good_it_is_and_what_it_was_trained_on(demo, results):
    card = (demo / "export" / "README.md").read_text()
    for scored in results.sets:
        main = scored.measures.main
        assert f"| {scored.label} | {main.fd.value:.4g} | {main.excess.value:.3g} ± " in card
    assert (
        "\n2,160 synthetic latents (720 of 32x32, 720 of 32x64, 720 of 64x32): `teacher` drew them in 20 steps"
        in card
    )
    assert min(Image.open(demo / "export" / "pictures.png").size) > 300


def test_pictures_page_and_export_are_there(demo):
    run_dir = demo
    assert (run_dir / "report/index.html").stat().st_size > 100_000
    last = f"previews/{load(run_dir / 'config.yaml').train.iterations:08d}/32x32.png"
    for picture in ("report/comparison.png", "report/losses.png", "samples/sheet.png", last):
        assert min(Image.open(run_dir / picture).size) > 32
    pipe = StableDiffusion3Pipeline.from_pretrained(run_dir / "export", trust_remote_code=True)
    size = {"height": 32, "width": 32}
    (image,) = pipe("a three", num_inference_steps=1, guidance_scale=1.0, max_sequence_length=10, **size).images
    assert image.size == (32, 32)
