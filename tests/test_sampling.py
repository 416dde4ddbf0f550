import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from ladd_dist.config import LaddConfig, load
from ladd_dist.data.buckets import Bucket
from ladd_dist.diffusion.conditioning import Conditioning
from ladd_dist.distributed.world import World
from ladd_dist.drawing.pipeline import Pipeline, load_backbone
from ladd_dist.drawing.sampling import sample_ode, sample_student

CPU = World(0, 1, 0, torch.device("cpu"))
METHOD = LaddConfig()
PROMPTS = {"32x32": "a three", "32x64": "a seven next to a two", "64x32": "a five above a nine"}


def configured(tmp_path, *overrides):
    return load("configs/tiny_cpu.yaml", [f"run_dir={tmp_path}/run", *overrides])


def exact(x_t, t, _cond):
    """Velocity of the straight path from x_t to the constant 2: the ideal network for that data."""
    return (x_t - 2.0) / t.view(-1, 1, 1, 1)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_student_sampler_reaches_the_data_of_an_exact_network(steps):
    noises = torch.randn(steps, 3, 4, 2, 2)
    latents = sample_student(exact, noises, METHOD.times(steps), Conditioning(noises, noises))
    assert torch.allclose(latents, torch.tensor(2.0))


def test_the_student_sampler_visits_its_times_and_renoises_with_fresh_noise():
    seen = []

    def spy(x_t, t, _cond):
        seen.append((t[0].item(), x_t.clone()))
        return torch.zeros_like(x_t)

    noises = torch.randn(4, 1, 1, 2, 2)
    sample_student(spy, noises, [1.0, 0.75, 0.5, 0.125], Conditioning(noises, noises))
    assert [t for t, _ in seen] == [1.0, 0.75, 0.5, 0.125]
    x1 = 0.25 * noises[0] + 0.75 * noises[1]  # x0_hat = noise where the velocity is zero
    torch.testing.assert_close(seen[1][1], x1)


def test_the_ode_sampler_integrates_guidance():
    cond = Conditioning(torch.ones(2, 1, 1), torch.ones(2, 1))
    negative = Conditioning(torch.zeros(1, 1, 1), torch.zeros(1, 1))
    network = lambda x, t, c: c.pooled.view(-1, 1, 1, 1).expand_as(x)  # noqa: E731 - v = 1 with, 0 without
    out = sample_ode(network, torch.zeros(2, 1, 2, 2), [1.0, 0.5, 0.0], cond, negative, guidance=3.0)
    assert torch.allclose(out, torch.tensor(-3.0))


@pytest.mark.parametrize("bucket", PROMPTS)
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_the_teacher_draws_as_diffusers_pipeline_does(tmp_path, teacher_folder, bucket, guidance):
    ours, size = Pipeline(configured(tmp_path), CPU.device), Bucket.parse(bucket)
    teacher = load_backbone(teacher_folder, torch.float32, CPU.device)
    latents = ours.teacher(teacher, ours.encode([PROMPTS[bucket]], [11], size), 5, guidance)
    pipe = StableDiffusion3Pipeline.from_pretrained(teacher_folder)
    expected = pipe(
        PROMPTS[bucket], height=size.height, width=size.width, num_inference_steps=5, guidance_scale=guidance,
        generator=torch.Generator().manual_seed(11), max_sequence_length=10, output_type="pt",
    ).images  # fmt: skip
    torch.testing.assert_close(ours.decode(latents), expected, atol=1e-4, rtol=1e-4)
