"""An evaluation's folder: whole and of one call, however many write at once and whenever one is killed."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ALONE, BUCKETS, tiny_config
from PIL import Image
from ranks import ranks

from ladd_dist.config import Config, load
from ladd_dist.data.buckets import Bucket
from ladd_dist.data.prompts import PromptEntry
from ladd_dist.distributed.world import World
from ladd_dist.drawing.pictures import save_png
from ladd_dist.drawing.pipeline import load_backbone
from ladd_dist.errors import LaddError
from ladd_dist.evaluation.drawn import Drawn, Rows
from ladd_dist.evaluation.entrants import teachers
from ladd_dist.evaluation.evaluate import evaluate
from ladd_dist.evaluation.folder import evaluation_place, new_evaluation
from ladd_dist.evaluation.gallery import Gallery
from ladd_dist.evaluation.in_training import InTraining
from ladd_dist.evaluation.instruments import BROKEN, DETAIL, JUDGE
from ladd_dist.evaluation.measure import measure
from ladd_dist.evaluation.places import FOLDER
from ladd_dist.evaluation.reference import list_reference
from ladd_dist.evaluation.results import Results
from ladd_dist.evaluation.table import columns, table
from ladd_dist.models.backbone import Backbone
from ladd_dist.report.record import read_evaluation
from ladd_dist.supervision.signals import Signals
from ladd_dist.training.trainer import Trainer


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Config:
    """Of a run with a checkpoint."""
    settings = ["train.iterations=1", "train.checkpoint_every=1", "evaluation.samples=4", "evaluation.pictures=1"]
    config = tiny_config(tmp_path_factory.mktemp("run"), dataset, *settings)
    Trainer(config, ALONE).run()
    return config


def content(config: Config) -> dict[str, bytes]:
    folder = Path(config.run_dir) / FOLDER
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def at_the_end(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Have an evaluation do something else before it writes its last file."""
    write_index = Gallery.write_index

    def then(*args: Any) -> None:
        monkeypatch.setattr(Gallery, "write_index", write_index)
        act()
        write_index(*args)

    monkeypatch.setattr(Gallery, "write_index", then)


def test_of_two_at_once_the_later_one_is_there_whole(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    other = config.model_copy(update={"seed": config.seed + 1})
    seen = []

    def a_second_call() -> None:
        evaluate(other, ALONE, None, "ema")
        seen.append(content(config))

    at_the_end(monkeypatch, a_second_call)
    evaluate(config, ALONE, None, "ema")
    (theirs,), ours = seen, content(config)
    assert b'"seed": 1' in theirs["results.json"] and b'"seed": 0' in ours["results.json"]
    pictures = {name for name in ours if name.endswith(".png")}
    assert pictures == {name for name in theirs if name.endswith(".png")} and len(pictures) > 10
    assert not {name for name in pictures if ours[name] == theirs[name]}, "other seeds draw other pictures"
    assert sorted(path.name for path in Path(config.run_dir).glob("*evaluation*")) == [FOLDER]


def test_an_evaluation_that_is_ended_leaves_the_earlier_one(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    with new_evaluation(evaluation_place(config)) as folder:
        (folder / "results.json").write_text("earlier")
    before = content(config)

    def end() -> None:
        raise KeyboardInterrupt

    at_the_end(monkeypatch, end)
    with pytest.raises(KeyboardInterrupt):
        evaluate(config, ALONE, None, "ema")
    assert content(config) == before


def test_what_no_evaluation_wrote_stays(tmp_path: Path, dataset: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "mine").touch()
    with pytest.raises(
        LaddError, match="holds no evaluation of an earlier call .*: move it away, or set another run_dir"
    ):
        evaluation_place(tiny_config(tmp_path, dataset))


# What it measures


def changed(config: Config, **settings: object) -> Config:
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update=settings)})


def untrained(config: Config, *others: object) -> Backbone:
    return load_backbone(config.teacher.path, torch.float32, ALONE.device)


@pytest.fixture(scope="module")
def measured(config: Config) -> Results:
    """The student is the undistilled teacher."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ladd_dist.evaluation.evaluate.load_student", untrained)
        return evaluate(changed(config, samples=130, batch=50, scorers=["stroke"]), ALONE, None, "ema")


def test_every_set_is_measured_over_all_and_in_each_bucket(measured: Results) -> None:
    for scored in measured.sets:
        found, buckets = scored.measures, scored.measures_by_bucket
        assert sorted(buckets) == BUCKETS
        assert sum(of.pictures for of in buckets.values()) == found.pictures == 130
        assert found.judge is not None and found.teacher is not None and found.patches is found.reference is None
        assert found.teacher.kid.high is not None
        assert list(found.scores) == ["stroke"] and found.scores["stroke"].value > 0
        assert found.read is not None
        assert found.judge.fd is not None, "173 cells have more than 48 features"
        few = buckets["32x32"].main
        assert few.fd is None and few.excess == few.kid, "44 have not"
    guided = measured.guided.measures
    assert guided.main.excess.value == 0
    assert guided.high_frequencies is not None and guided.high_frequencies.value == 1
    assert guided.diversity is not None and guided.diversity.value == 1, "some prompts are there twice"


def test_a_student_that_is_still_the_teacher_is_no_nearer_than_the_teacher_sampled_alike(measured: Results) -> None:
    sets = {s.name: s for s in measured.sets}
    assert measured.undistilled is sets["teacher_4"]
    for steps in (4, 2):
        student, renoised = sets[f"student_{steps}"], sets[f"teacher_{steps}_renoised"]
        found = student.measures.main
        assert found.kid == renoised.measures.main.kid
        assert found.ratio_renoised is not None and found.ratio_renoised.value == pytest.approx(1)
        assert found.ratio is not None and found.ratio.value != pytest.approx(1, rel=1e-3), "Euler's are others"
    one = sets["student_1"].measures
    assert one.main.ratio and one.main.ratio.value == pytest.approx(1, abs=1e-3), "in one step they are alike"
    assert one.main.ratio_renoised is None


def test_a_perfect_student_has_no_excess_though_it_shares_its_noise_with_the_guided_teacher() -> None:
    """Its pictures are distributed as the teacher's, and like those of the same noise."""
    config = load("configs/digits.yaml")
    entries = [PromptEntry(i, f"prompt {i}", Bucket(32, 32)) for i in range(100)]
    numbers = torch.arange(100)
    rest = {name: Rows(numbers, torch.ones(100, dtype=torch.float64)) for name in (BROKEN, DETAIL)}

    def drawn(features: torch.Tensor) -> Drawn:
        return Drawn(rest | {JUDGE: Rows(numbers, features)}, 1)

    def excess(seed: int) -> float:
        noise = torch.randn(4, 100, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        of_noise, teachers_own, students_own, others = noise.unbind()
        teacher, student = of_noise + 0.5 * teachers_own, of_noise + 0.5 * students_own
        sets = dict.fromkeys((entrant.name for entrant in teachers(config)), drawn(teacher))
        found = measure(config, sets | {"student_1": drawn(student)}, drawn(1.25**0.5 * others), entries)
        return found.overall["student_1"].main.excess.value

    values = torch.tensor([excess(seed) for seed in range(40)])
    assert values.mean().abs() < 4 * values.std() / 40**0.5


def test_prompts_that_are_cut_are_counted_once_for_all_sets(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By the launcher as in training."""
    caplog.set_level("INFO")
    (tmp_path / "prompts.txt").write_text("a two\na one next to a two next to a three\n")
    long = changed(config, prompts=str(tmp_path / "prompts.txt"), samples_in_training=4, judge="teacher")
    evaluate(long, ALONE, None, "ema")
    InTraining(long, ALONE, Signals(), blocks=99)
    assert caplog.text.count("too long and cut, of 2 prompts: 1 at CLIP's 10 tokens") == 2


def test_a_teacher_without_guidance_is_the_reference_along_its_own_schedule(config: Config) -> None:
    unguided = config.model_copy(
        update={"synthesis": config.synthesis.model_copy(update={"guidance": 1.0, "steps": 3})}
    )
    found = evaluate(unguided, ALONE, None, "ema")
    assert found.guided.steps == 3 not in config.method.step_counts
    assert found.guided.guidance == 1 and found.guided.label.endswith("guidance 1")


def test_results_are_read_back_and_printed(measured: Results) -> None:
    assert Results.model_validate_json(measured.model_dump_json()) == measured
    lines = table(measured)
    assert max(map(len, lines[: len(measured.sets) + 1])) < 80
    (head,) = (line for line in lines if "in teacher" in line)
    assert head.split()[-1] == "stroke"
    assert sum(line.startswith("student, 4 steps, 32x64") for line in lines) == 1


def _evaluate(world: World, config: Config) -> Results:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ladd_dist.evaluation.evaluate.load_student", untrained)
        return evaluate(config, world, None, "ema")


def test_two_ranks_measure_what_one_does(config: Config, measured: Results) -> None:
    found = ranks(2)(_evaluate, changed(config, samples=130, batch=50, scorers=["stroke"]))
    for ours, theirs in zip(measured.sets, found[1].sets, strict=True):
        assert ours.measures and theirs.measures
        assert theirs.measures.pictures == 130
        for name, number in columns(ours.measures).items():
            same = columns(theirs.measures)[name]
            assert (number is None) == (same is None)
            if number and same:
                assert number.value == pytest.approx(same.value, rel=1e-3, abs=1e-3), name


def test_without_its_weights_the_judge_is_replaced_by_the_teacher_and_other_scores_are_there(
    config: Config, tmp_path: Path
) -> None:
    """Also the reference set, for which there is no judge, is said to be missing."""
    for number in range(2):
        save_png(torch.rand(3, 32, 32), tmp_path / f"{number}.png")
    scorers = ["clip:/nowhere", "stroke"]
    settings = {"judge": "clip:/nowhere", "scorers": scorers, "samples": 6, "reference": str(tmp_path)}
    found = evaluate(changed(config, **settings), ALONE, None, "ema")
    assert found.judge == "teacher"
    for scored in found.sets:
        assert scored.measures and scored.measures.judge is None and scored.measures.teacher
        assert list(scored.measures.scores) == ["stroke"] and scored.measures.read is None
        assert scored.measures.main.fd is None, "6 pictures are fewer than the teacher's features"
    said = [caveat for caveat in found.caveats if "clip:/nowhere: there is no such folder" in caveat]
    assert len(said) == 2 and len(found.missing) == 3
    assert any("kernel distances stand for Frechet distances" in caveat for caveat in found.caveats)
    assert any("without the reference set" in caveat for caveat in found.caveats)


def test_of_a_buckets_single_picture_no_distance_is_told_and_the_rest_is(config: Config) -> None:
    found = evaluate(changed(config, samples=7), ALONE, None, "ema")
    single = [of for s in found.sets for of in s.measures_by_bucket.values() if of.pictures == 1]
    assert len(single) == len(found.sets)
    for measures in single:
        assert measures.judge is measures.teacher is measures.fine is measures.coarse is None
        assert measures.read is not None and measures.high_frequencies is not None
        assert columns(measures)["excess"] is columns(measures)["KID"] is None
        assert columns(measures)["ratio"] is columns(measures)["to renoised"] is None
    assert read_evaluation(Path(config.run_dir))[0] == found
    assert "nan" not in "\n".join(table(found))


def test_diversity_needs_two_pictures_of_a_prompt(config: Config) -> None:
    settings = {"samples": 6, "judge": "teacher"}
    once, twice = (
        evaluate(changed(config, images_per_prompt=each, **settings), ALONE, None, "ema").student.measures
        for each in (1, 2)
    )
    assert once and once.diversity is None
    assert twice and twice.diversity is not None and twice.diversity.value > 0


# A reference set


def test_a_reference_set_is_measured_in_the_buckets_of_its_pictures(config: Config, tmp_path: Path) -> None:
    """Of the first set's own pictures: that set is the nearest."""
    evaluate(changed(config, samples=40, pictures=8), ALONE, None, "ema")
    own = Path(config.run_dir) / FOLDER / "pictures" / "teacher_guided"
    for bucket in ("32x32", "32x64"):
        shutil.copytree(own / bucket, tmp_path / "photos" / bucket)
    (tmp_path / "photos" / "notes.txt").touch()
    found = evaluate(changed(config, samples=40, reference=str(tmp_path / "photos")), ALONE, None, "ema")
    kids = {}
    for scored in found.sets:
        assert scored.measures and scored.measures.reference
        assert scored.measures.reference.fd is None, "40 pictures"
        kids[scored.name] = scored.measures.reference.kid.value
        of = {bucket: measures.reference for bucket, measures in scored.measures_by_bucket.items()}
        assert of["32x32"] and of["32x64"] and of["64x32"] is None
    assert min(kids, key=lambda name: kids[name]) == "teacher_guided"


def test_pictures_of_a_reference_set_are_turned_as_their_exif_says(config: Config, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 30)).save(tmp_path / "a.jpg", exif=exif)
    Image.new("RGB", (60, 30)).save(tmp_path / "b.JPG")
    listed = list_reference(changed(config, reference=str(tmp_path)))
    assert [(file.name, bucket.name) for file, bucket in listed] == [("a.jpg", "64x32"), ("b.JPG", "32x64")]


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "there is no such folder"), ([], "holds 0 pictures"), ([b"\x89PNG cut", b""], "0.png cannot be read")],
)
def test_a_reference_set_that_cannot_be_used_is_refused(
    config: Config, tmp_path: Path, content: list[bytes] | None, words: str
) -> None:
    folder = tmp_path / "photos"
    if content is not None:
        folder.mkdir()
    for number, data in enumerate(content or []):
        (folder / f"{number}.png").write_bytes(data)
    with pytest.raises(LaddError, match=words) as refused:
        evaluate(changed(config, reference=str(folder)), ALONE, None, "ema")
    assert str(folder) in str(refused.value) and "\n" not in str(refused.value)
