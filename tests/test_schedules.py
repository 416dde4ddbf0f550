"""Which times teacher and student are drawn at: the teacher folder's scheduler, and `method.student_times`."""

import json
import re
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import trained_at
from conftest import ALONE, BUCKETS, TEACHER, tiny_config
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ladd_dist.checkpoints.student import load_student
from ladd_dist.cli import Launch
from ladd_dist.config import Config, LaddConfig
from ladd_dist.data.buckets import Bucket
from ladd_dist.drawing import pipeline, synthesis
from ladd_dist.drawing.pipeline import Pipeline, load_backbone
from ladd_dist.drawing.synthesis import synthesize
from ladd_dist.errors import LaddError
from ladd_dist.evaluation.entrants import students, teachers
from ladd_dist.evaluation.evaluate import evaluate
from ladd_dist.models.registry import family_of
from ladd_dist.training.preview import Preview

EULER = "FlowMatchEulerDiscreteScheduler"
DYNAMIC = {"use_dynamic_shifting": True, "base_image_seq_len": 16, "max_image_seq_len": 144}
FOLLOWED = {
    "shift": {"shift": 3.0},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True, "shift": 2.0},
    "beta": {"use_beta_sigmas": True},
    "terminal": {"shift_terminal": 0.1},
    "dynamic": DYNAMIC,
    "dynamic linear": DYNAMIC | {"time_shift_type": "linear", "shift_terminal": 0.2},
}
PAPERS = {4: [1.0, 0.75, 0.5, 0.25], 2: [1.0, 0.5], 1: [1.0]}
REFUSED = {
    "heun": ({"_class_name": "FlowMatchHeunDiscreteScheduler"}, f"FlowMatchHeunDiscreteScheduler, but .* {EULER}"),
    "dpm": ({"_class_name": "DPMSolverMultistepScheduler"}, f"DPMSolverMultistepScheduler, but .* {EULER}"),
    "stochastic": ({"stochastic_sampling": True}, "stochastic_sampling=true.* set it to false"),
    "inverted": ({"invert_sigmas": True}, "invert_sigmas=true.* set it to false"),
    "thousandths": ({"num_train_timesteps": 500}, "num_train_timesteps=500.* set it to 1000"),
    "two spacings": ({"use_karras_sigmas": True, "use_beta_sigmas": True}, "Only one of.*correct it"),
    "text": ({"shift": "three"}, "makes no scheduler .*correct it"),
    "no shift": ({"use_dynamic_shifting": True, "base_shift": None}, "gives no times of 2 steps .*correct it"),
    "no fall": ({"shift": 0.0}, "gives 2 steps the times nan, 0, 0, which do not fall: correct it"),
}
NOT_TIMES = st.lists(st.floats(0, 1, exclude_min=True, exclude_max=True, width=32), unique=True, max_size=11)


@pytest.fixture
def teacher_with(tmp_path: Path) -> Callable[..., Path]:
    """The embedded teacher with other settings of its scheduler."""

    def make(settings: dict, index: str | None = None) -> Path:
        folder = tmp_path / "teacher"
        shutil.copytree(TEACHER, folder)
        for file, changes in (
            ("scheduler/scheduler_config.json", settings),
            ("model_index.json", {"scheduler": ["diffusers", index]} if index else {}),
        ):
            tree = json.loads((folder / file).read_text())
            (folder / file).write_text(json.dumps(tree | changes))
        return folder

    return make


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["teacher.max_t5_tokens=12"], "trained with teacher.max_t5_tokens=10, but this configuration has 12: pass"),
        (["method.student_times=[1,0.7,0.5,0.2]"], "trained with method.student_times=[1.0, 0.75, 0.5, 0.25], but"),
        (["teacher.path={other}"], "was trained with teacher "),
    ],
)
def test_a_student_is_not_drawn_unlike_it_was_trained(
    tmp_path: Path, dataset: Path, overrides: list[str], said: str
) -> None:
    config, checkpoint = trained_at(tmp_path, dataset)
    other = Path(shutil.copytree(config.teacher.path, tmp_path / "other"))
    vae = other / "vae/diffusion_pytorch_model.safetensors"
    save_file({name: -tensor for name, tensor in load_file(vae).items()}, vae)
    now = tiny_config(tmp_path, dataset, *(text.format(other=other) for text in overrides))
    with pytest.raises(LaddError, match=re.escape(said)):
        load_student(now, checkpoint, "ema", torch.float32)


# The student's times


def test_the_default_times_are_the_papers() -> None:
    method = LaddConfig()
    assert {n: method.times(n) for n in method.step_counts} == PAPERS
    assert method.times() == method.times(4)


@given(NOT_TIMES, st.integers(1, 13))
def test_fewer_steps_take_an_even_stride_from_the_first(below: list[float], steps: int) -> None:
    times = [1.0, *sorted(below, reverse=True)]
    share = [1 / len(times)] * len(times)
    method = LaddConfig(student_times=times, probabilities=share, warmup_probabilities=share)
    if steps not in method.step_counts:
        with pytest.raises(ValueError, match=f"sampling.steps={steps} must divide the {len(times)} method"):
            method.times(steps)
        return
    taken = [times.index(time) for time in method.times(steps)]
    assert len(taken) == steps and taken == list(range(0, len(times), len(times) // steps))


THREE = [1.0, 0.6, 0.2]
THREE_OVERRIDES = [
    f"method.student_times={THREE}",
    "method.probabilities=[0.4,0.3,0.3]",
    "method.warmup_probabilities=[0.4,0.3,0.3]",
]


def test_everything_that_draws_follows_the_configured_times(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, checkpoint = trained_at(tmp_path, dataset, *THREE_OVERRIDES, "evaluation.samples=4")
    student: list[tuple[float, ...]] = []
    undistilled: list[tuple[float, ...]] = []

    def few(network: object, noises: torch.Tensor, times: list[float], cond: object) -> torch.Tensor:
        assert len(noises) == len(times)
        student.append(tuple(times))
        return noises[0]

    def euler(
        network: object, noise: torch.Tensor, times: list[float], cond: object, *guided: object
    ) -> torch.Tensor:
        if not guided:
            undistilled.append(tuple(times))
        return noise

    monkeypatch.setattr(pipeline, "sample_student", few)
    monkeypatch.setattr(pipeline, "sample_ode", euler)

    results = evaluate(config, ALONE, str(checkpoint.path), "ema")
    names = ["teacher_guided", "teacher_3", "teacher_3_renoised", "teacher_1", "student_3", "student_1"]
    assert [s.name for s in results.sets] == names
    assert results.undistilled is not None and results.undistilled.label == "teacher, 3 steps"
    assert set(student) == {tuple(THREE), (1.0,)} and set(undistilled) == {(*THREE, 0.0), (1.0, 0.0)}

    for draw in (lambda: Preview(config, ALONE).draw(lambda x, t, cond: x, 1), lambda: sample(config)):
        student.clear()
        draw()
        assert student == [tuple(THREE)] * len(BUCKETS)


def sample(config: Config) -> None:
    """`launchers/sample.py` in this process."""
    launcher = runpy.run_path("launchers/sample.py")
    args = launcher["command_line"]().parse_args(["--config", "given"])
    launcher["main"](Launch(args, config, ALONE))


def test_teacher_and_student_are_compared_in_every_number_of_the_default_steps(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tmp_path)
    undistilled = ["teacher_4", "teacher_4_renoised", "teacher_2", "teacher_2_renoised", "teacher_1"]
    assert [entrant.name for entrant in teachers(config)] == ["teacher_guided", *undistilled]
    assert [entrant.name for entrant in students(config)] == ["student_4", "student_2", "student_1"]


def test_a_checkpoint_of_other_times_is_refused(tmp_path: Path, dataset: Path) -> None:
    _, checkpoint = trained_at(tmp_path, dataset, *THREE_OVERRIDES)
    with pytest.raises(
        LaddError, match=r"was trained with method.student_times=\[1.0, 0.6, 0.2\], but .*config.yaml"
    ):
        load_student(tiny_config(tmp_path, dataset), checkpoint, "ema", torch.float32)


def test_a_checkpoint_that_names_steps_of_other_times_still_opens(tmp_path: Path, dataset: Path) -> None:
    """As those did that were written while ``sampling.steps`` was 4 by default."""
    config, checkpoint = trained_at(tmp_path, dataset, *THREE_OVERRIDES)
    file = checkpoint.path / "config.yaml"
    file.write_text(file.read_text().replace("steps: null", "steps: 4"))
    assert "steps: 4" in file.read_text()
    load_student(config, checkpoint, "ema", torch.float32)
    checkpoint.check(config, checkpoint.state.teacher)


# The teacher's schedule


@pytest.mark.parametrize("settings", FOLLOWED.values(), ids=FOLLOWED)
def test_the_teacher_is_drawn_at_the_times_of_diffusers_pipeline(
    tmp_path: Path, teacher_with: Callable[..., Path], settings: dict
) -> None:
    folder = teacher_with(settings)
    config = tiny_config(tmp_path, tmp_path, f"teacher.path={folder}")
    ours, teacher = Pipeline(config, ALONE.device), load_backbone(str(folder), torch.float32, ALONE.device)
    latents = ours.teacher(teacher, ours.encode(["a seven next to a two"], [11], Bucket(32, 64)), 5, 2.5)
    pipe = StableDiffusion3Pipeline.from_pretrained(folder)
    theirs = pipe(
        "a seven next to a two", height=32, width=64, num_inference_steps=5, guidance_scale=2.5,
        generator=torch.Generator().manual_seed(11), max_sequence_length=10, output_type="latent",
    ).images  # fmt: skip
    torch.testing.assert_close(latents, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED)
def test_schedules_that_cannot_be_followed_are_refused_before_anything_is_loaded(
    tmp_path: Path,
    dataset: Path,
    teacher_with: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    settings: dict,
    message: str,
) -> None:
    folder = teacher_with(settings)
    monkeypatch.setattr(synthesis, "Pipeline", lambda *_: pytest.fail("networks were loaded"))
    with pytest.raises(LaddError, match=message) as refused:
        synthesize(moved(tmp_path, dataset, f"teacher.path={folder}"), ALONE)
    assert str(folder / "scheduler/scheduler_config.json") in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "latents").exists()


def moved(tmp_path: Path, dataset: Path, *overrides: str) -> Config:
    """A synthesis of the fixture's prompts into an empty folder."""
    shutil.copy(dataset.parent / "prompts.jsonl", tmp_path)
    return tiny_config(tmp_path / "run", tmp_path / "latents", *overrides)


def test_one_step_of_a_schedule_with_a_terminal_is_refused_not_drawn_as_nan(
    tmp_path: Path, dataset: Path, teacher_with: Callable[..., Path]
) -> None:
    folder = teacher_with({"shift_terminal": 0.1})
    with pytest.raises(LaddError, match="gives 1 steps the times nan, 0, which do not fall"):
        synthesize(moved(tmp_path, dataset, f"teacher.path={folder}", "synthesis.steps=1"), ALONE)


def test_a_class_that_only_the_pipeline_names_counts(
    tmp_path: Path, dataset: Path, teacher_with: Callable[..., Path]
) -> None:
    folder = teacher_with({}, "FlowMatchHeunDiscreteScheduler")
    with pytest.raises(LaddError, match="model_index.json names FlowMatchHeunDiscreteScheduler"):
        synthesize(moved(tmp_path, dataset, f"teacher.path={folder}"), ALONE)


@pytest.mark.parametrize("text", ["", "[]", "{", None])
def test_an_unreadable_scheduler_is_named(
    tmp_path: Path, dataset: Path, teacher_with: Callable[..., Path], text: str | None
) -> None:
    folder = teacher_with({})
    file = folder / "scheduler/scheduler_config.json"
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(LaddError, match="scheduler"):
        synthesize(moved(tmp_path, dataset, f"teacher.path={folder}"), ALONE)


# The export


EXPORTED = FOLLOWED | {name: settings for name, (settings, _) in REFUSED.items()}


@pytest.mark.parametrize("settings", EXPORTED.values(), ids=EXPORTED)
def test_nothing_of_the_teachers_scheduler_reaches_the_export(
    teacher_with: Callable[..., Path], settings: dict
) -> None:
    folder = teacher_with(settings, settings.get("_class_name"))
    family_of(folder).write_sampler(folder, LaddConfig())
    index = json.loads((folder / "model_index.json").read_text())
    assert index["scheduler"] == ["few_step_scheduler", "FewStepScheduler"]
    written = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    plain = dict(FlowMatchEulerDiscreteScheduler(stochastic_sampling=True).config) | {"student_times": PAPERS[4]}
    ours, theirs = ({key: tree[key] for key in tree if not key.startswith("_")} for tree in (written, plain))
    assert ours == theirs
