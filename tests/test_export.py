"""A student's export: what diffusers' pipelines draw with it by habit, and what its card says."""

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import trained_at
from conftest import ALONE
from diffusers import StableDiffusion3Img2ImgPipeline, StableDiffusion3Pipeline
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ladd_dist.checkpoints.export import export
from ladd_dist.checkpoints.reader import Checkpoint
from ladd_dist.checkpoints.student import load_student
from ladd_dist.config import Config, LaddConfig
from ladd_dist.data.buckets import Bucket
from ladd_dist.data.prompts import PromptEntry
from ladd_dist.diffusion.flow import add_noise
from ladd_dist.diffusion.noise import IMAGE_DEVICE
from ladd_dist.drawing.pipeline import Pipeline
from ladd_dist.drawing.sampling import sample_student
from ladd_dist.errors import LaddError
from ladd_dist.models.sd3.few_step_scheduler import FewStepScheduler, generator_of

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
EXAMPLE = PromptEntry(0, 'a "seven" next to a `two`', Bucket(32, 64))
CALL: dict[str, Any] = {"guidance_scale": 1.0, "max_sequence_length": 10, "height": 32, "width": 64}
THREE = [1.0, 0.6, 0.2]
THREE_OVERRIDES = [
    f"method.student_times={THREE}", "method.probabilities=[.5,.3,.2]", "method.warmup_probabilities=[0,.5,.5]"
]  # fmt: skip


@dataclass(frozen=True)
class Exported:
    folder: Path
    config: Config
    checkpoint: Checkpoint
    dtype: torch.dtype

    def load(self, kind: type = StableDiffusion3Pipeline, **options: Any) -> Any:
        """As a user does."""
        return kind.from_pretrained(self.folder, torch_dtype=self.dtype, **options)

    def draw(self, prompts: list[str], noises: Tensor, times: list[float]) -> Tensor:
        """By this project's sampler."""
        student = load_student(self.config, self.checkpoint, "ema", self.dtype)
        encoded = Pipeline(self.config, ALONE.device).encode(prompts, [0] * len(prompts), EXAMPLE.bucket)
        return sample_student(student, noises, times, encoded.cond)


def exported_as(name: str, root: Path, *overrides: str) -> Exported:
    config, checkpoint = trained_at(root / "run", root / "latents", f"train.precision={name}", *overrides)
    folder = export(config, checkpoint, root / "student", "ema", DTYPES[name], EXAMPLE)
    return Exported(folder, config, checkpoint, DTYPES[name])


@pytest.fixture(scope="module", params=DTYPES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported_as(request.param, tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """In single precision alone."""
    return exported_as("fp32", tmp_path_factory.mktemp("export"))


# The habitual call


HABITS = [(4, None), (2, None), (1, None), (4, 0.75), (4, 0.5), (2, 0.5), (1, 1.0)]
"""Steps, and the strength from image to image."""


@pytest.mark.parametrize(("steps", "strength"), HABITS)
def test_the_habitual_call_draws_what_the_sampler_draws(
    exported: Exported, steps: int, strength: float | None
) -> None:
    times, dtype, shape = exported.config.method.times(steps), exported.dtype, (1, 4, 8, 16)
    torch.manual_seed(5)
    if strength is None:
        options, image = {}, torch.zeros(shape)
    else:
        times, image = times[steps - int(steps * strength) :], 2 * torch.rand(shape) - 1
        options = {"image": image.to(dtype), "strength": strength}
    state = torch.get_rng_state()
    first = add_noise(image.to(dtype), torch.randn(shape, dtype=dtype), torch.tensor(times[:1], dtype=dtype)).float()
    between = generator_of(first[0])
    noise = torch.stack([first, *(torch.randn(shape, generator=between) for _ in times[1:])])
    expected = exported.draw([EXAMPLE.prompt], noise, times)

    pipe = exported.load(
        StableDiffusion3Img2ImgPipeline if options else StableDiffusion3Pipeline, trust_remote_code=True
    )
    torch.set_rng_state(state)
    drawn = pipe(EXAMPLE.prompt, num_inference_steps=steps, output_type="latent", **CALL, **options).images
    # Latents reach 3. The pipeline rounds them to bf16 after each step, by up to 2^-8 of that, which the next steps
    # may magnify eightfold. Other noise changes them by 2, other times by 0.8.
    torch.testing.assert_close(drawn.float(), expected, atol={"fp32": 1e-4, "bf16": 0.1}[name_of(dtype)], rtol=0)


def name_of(dtype: torch.dtype) -> str:
    return next(name for name, known in DTYPES.items() if known == dtype)


def test_without_leave_to_run_its_scheduler_loading_is_refused_with_the_remedy(single: Exported) -> None:
    for kind in (StableDiffusion3Pipeline, StableDiffusion3Img2ImgPipeline):
        with pytest.raises(ValueError, match=r"few_step_scheduler.py\.\nPass `trust_remote_code=True`"):
            single.load(kind)


def test_a_balanced_device_map_needs_the_cards_way_without_its_code(single: Exported) -> None:
    with pytest.raises(ValueError, match=r"few_step_scheduler.py\.\nPass `trust_remote_code=True`"):
        single.load(trust_remote_code=True, device_map="balanced")
    assert single.load(scheduler=None, device_map="balanced").transformer is not None
    assert '\nWith `device_map="balanced"` this is the one way: ' in (single.folder / "README.md").read_text()


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[list[logging.LogRecord]]:
    """What diffusers warns of; it passes nothing on to the handlers that pytest reads."""
    diffusers = logging.getLogger("diffusers")
    diffusers.addHandler(caplog.handler)
    yield caplog.records
    diffusers.removeHandler(caplog.handler)


def test_a_number_of_steps_that_was_not_trained_is_refused_with_the_numbers_that_were(
    single: Exported, warnings: list[logging.LogRecord]
) -> None:
    for kind, default in ((StableDiffusion3Pipeline, 28), (StableDiffusion3Img2ImgPipeline, 50)):
        pipe = single.load(kind, trust_remote_code=True)
        options = {"image": torch.zeros(1, 4, 8, 16)} if default == 50 else {}
        for steps in (default, 3):
            with pytest.raises(ValueError, match=f"={steps}, but .* pass one of 4, 2, 1 and guidance_scale=1.0"):
                pipe("a one", **options, **({} if steps == default else {"num_inference_steps": steps}))
    assert not [record.getMessage() for record in warnings]


def test_a_loaded_pipeline_saves_what_can_be_loaded_again(single: Exported, tmp_path: Path) -> None:
    single.load(trust_remote_code=True).save_pretrained(tmp_path)
    for name in ("few_step_scheduler.py", "scheduler_config.json"):
        assert (tmp_path / "scheduler" / name).read_text() == (single.folder / "scheduler" / name).read_text()
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == json.loads((single.folder / "model_index.json").read_text())["scheduler"]
    again = StableDiffusion3Pipeline.from_pretrained(tmp_path, trust_remote_code=True)
    assert again.scheduler.config.student_times == [1.0, 0.75, 0.5, 0.25]


# Its scheduler


TIMES = st.lists(st.floats(0, 1, exclude_min=True, exclude_max=True, width=32), unique=True, max_size=11)


@given(below=TIMES, steps=st.integers(0, 13))
def test_the_scheduler_takes_the_times_that_the_sampler_takes(below: list[float], steps: int) -> None:
    method = LaddConfig.model_construct(student_times=[1.0, *sorted(below, reverse=True)])
    scheduler = FewStepScheduler(method.student_times)
    if steps in method.step_counts:
        scheduler.set_timesteps(steps)
        sigmas = torch.tensor([*method.times(steps), 0.0])
        assert torch.equal(scheduler.sigmas, sigmas) and torch.equal(scheduler.timesteps, 1000 * sigmas[:-1])
    else:
        with pytest.raises(ValueError, match=f"pass one of {', '.join(map(str, method.step_counts))} and"):
            scheduler.set_timesteps(steps)
    scheduler.set_timesteps(sigmas=[0.5, 0.25, 0.125])
    assert scheduler.sigmas.tolist() == [0.5, 0.25, 0.125, 0.0]


# Its card


def codes(card: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)


def made_of(first: torch.Generator) -> Tensor:
    """The noise of a picture's four steps that a pipeline makes of the generator that it is called with."""
    initial = torch.randn(1, 4, 8, 16, generator=first)
    between = generator_of(initial[0])
    return torch.stack([initial, *(torch.randn(1, 4, 8, 16, generator=between) for _ in range(3))])


def test_the_cards_call_draws_what_the_sampler_draws(single: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's 10 T5 tokens are not the pipeline's 256."""
    expected = single.draw([EXAMPLE.prompt], made_of(torch.Generator().manual_seed(0)), single.config.method.times())
    (ours,) = Pipeline(single.config, ALONE.device).decode(expected)

    monkeypatch.chdir(single.folder.parent)
    exec(codes(single.folder / "README.md")[0], card := {})
    theirs = torch.from_numpy(np.asarray(card["image"]).copy()).permute(2, 0, 1) / 255
    torch.testing.assert_close(ours, theirs, atol=0.51 / 255, rtol=0)


def test_the_cards_way_without_its_code_draws_the_same(single: Exported) -> None:
    code = codes(single.folder / "README.md")[1]
    exec(code, {"pipe": (stock := single.load(scheduler=None))})
    sigmas = json.loads(re.findall(r"sigmas=(\[.*?\])", code)[0])
    ours, drawn = single.load(trust_remote_code=True), []
    for pipe, times in ((ours, {"num_inference_steps": 4}), (ours, {"sigmas": sigmas}), (stock, {"sigmas": sigmas})):
        torch.manual_seed(5)
        pipe.scheduler.step = partial(type(pipe.scheduler).step, pipe.scheduler, generator=torch.default_generator)
        drawn.append(pipe("a one", output_type="latent", **CALL, **times).images)
    assert all(torch.equal(drawn[0], other) for other in drawn[1:])


def test_the_card_names_the_times_of_every_number_of_steps(single: Exported, tmp_path: Path) -> None:
    card = (single.folder / "README.md").read_text()
    assert "too: 4 or 2 or 1. Any other" in card
    assert "at: [1.0, 0.75, 0.5, 0.25] in 4 steps, [1.0, 0.5] in 2 steps, [1.0] in 1 step. Without" in card
    card = (exported_as("fp32", tmp_path, *THREE_OVERRIDES).folder / "README.md").read_text()
    assert (
        f"at: {THREE} in 3 steps, [1.0] in 1 step. Without" in card and "0.75" not in card and "2 steps" not in card
    )


def test_a_scheduler_that_is_handed_the_generators_draws_all_noise_from_them(single: Exported) -> None:
    ours = Pipeline(single.config, ALONE.device)
    prompts, seeds = ["a seven next to a two", "a one"], [5, 6]
    network = load_student(single.config, single.checkpoint, "ema", torch.float32)
    expected = ours.student(network, ours.encode(prompts, seeds, Bucket(32, 64)))
    pipe = single.load(trust_remote_code=True)
    card = (single.folder / "README.md").read_text()
    assert f"by a generator of the {IMAGE_DEVICE.type.upper()} with a picture's seed" in card
    code = codes(single.folder / "README.md")[2]
    assert "torch.Generator().manual_seed(0)" in code
    for unrelated in range(2):
        torch.manual_seed(unrelated)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        scope = {"pipe": pipe, "torch": torch, "generators": generators}
        exec(code.replace("torch.Generator().manual_seed(0)", "generators"), scope)
        theirs = pipe(prompts, num_inference_steps=4, generator=generators, output_type="latent", **CALL).images
        torch.testing.assert_close(theirs, expected, atol=1e-4, rtol=1e-4)


def test_a_generator_makes_one_picture_alone_and_among_others(single: Exported) -> None:
    pipe = single.load(trust_remote_code=True)

    def draw(prompts: list[str], *seeds: int) -> Tensor:
        torch.manual_seed(torch.seed())
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        latents: Tensor = pipe(
            prompts, num_inference_steps=4, generator=generators, output_type="latent", **CALL
        ).images
        return latents

    alone, again, other = draw(["a one"], 5), draw(["a one"], 5), draw(["a one"], 6)
    assert torch.equal(alone, again) and not torch.allclose(alone, other, atol=0.1)
    together = draw(["a seven", "a one"], 6, 5)
    torch.testing.assert_close(together[1:], alone, atol=1e-4, rtol=1e-4)
    # What it begins with alone does not make the picture.
    pipe.scheduler.step = partial(pipe.scheduler.step, generator=torch.Generator().manual_seed(7))
    assert not torch.allclose(draw(["a one"], 5), alone, atol=0.1)


# What is replaced


def test_only_an_earlier_export_is_replaced(single: Exported, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for folder, problem in {
        tmp_path / "out": "holds no export of an earlier call",
        Path(single.config.run_dir): "is run_dir=",
    }.items():
        with pytest.raises(LaddError, match=problem):
            export(single.config, single.checkpoint, folder, "ema", torch.float32, EXAMPLE, True)
