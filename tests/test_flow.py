import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate

from ladd_dist.diffusion.flow import (
    add_noise,
    choose_time,
    logit_normal,
    shifted_location,
    velocity,
    x0_from_velocity,
)

TIMES = [1.0, 0.75, 0.5, 0.25]


@given(st.floats(0, 1), st.integers(0, 1000))
def test_x0_is_recovered_from_the_true_velocity_at_every_time(t, seed):
    g = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, 3, 4, 2, 6, generator=g, dtype=torch.float64).unbind()
    time = torch.full((3,), t, dtype=torch.float64)
    x_t = add_noise(x0, eps, time)
    torch.testing.assert_close(x_t, x0 + t * (eps - x0))
    torch.testing.assert_close(x0_from_velocity(x_t, velocity(x0, eps), time), x0)


def test_each_sample_has_its_own_time():
    x0, eps = torch.zeros(3, 1, 1, 1), torch.ones(3, 1, 1, 1)
    assert add_noise(x0, eps, torch.tensor([0.0, 0.25, 1.0])).flatten().tolist() == [0.0, 0.25, 1.0]


def test_velocity_is_the_derivative_of_the_path():
    x0, eps = torch.randn(2, 1, 2, 3, 3, dtype=torch.float64).unbind()
    t = torch.tensor([0.3], dtype=torch.float64)
    slope = (add_noise(x0, eps, t + 1e-6) - add_noise(x0, eps, t - 1e-6)) / 2e-6
    torch.testing.assert_close(slope, velocity(x0, eps), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("tokens", "expected"), [(4096, 1.0), (64, 1.0 + math.log(1 / 8)), (16384, 1 + math.log(2))])
def test_the_renoise_location_follows_the_resolution(tokens, expected):
    assert shifted_location(1.0, tokens) == pytest.approx(expected)


@given(st.floats(0.01, 0.99), st.integers(1, 100_000))
def test_the_shift_is_sd3s_timestep_shift(t, tokens):
    """SD3 eq. 23: t' = a t / (1 + (a - 1) t) with a = sqrt(n / 4096), applied to a logit-normal draw."""
    a = math.sqrt(tokens / 4096)
    draw = torch.tensor([math.log(t / (1 - t))], dtype=torch.float64)
    shifted = logit_normal(draw, shifted_location(0.0, tokens), 1.0).item()
    assert shifted == pytest.approx(a * t / (1 + (a - 1) * t), rel=1e-9)


def test_logit_normal_draws_have_the_analytic_mean():
    normal = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    density = lambda z: 1 / (1 + math.exp(-(1 + z))) * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)  # noqa: E731
    expected, _ = integrate.quad(density, -8, 8)
    assert logit_normal(normal, 1.0, 1.0).mean().item() == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("probabilities", [[0.7, 0.1, 0.1, 0.1], [0.0, 0.0, 0.5, 0.5], [1.0, 0.0, 0.0, 0.0]])
def test_student_times_have_their_probabilities(probabilities):
    drawn = choose_time(torch.rand(100_000, generator=torch.Generator().manual_seed(0)), TIMES, probabilities)
    for time, p in zip(TIMES, probabilities, strict=True):
        assert (drawn == time).float().mean().item() == pytest.approx(p, abs=6e-3)
        assert p > 0 or not (drawn == time).any()


@given(
    st.lists(st.floats(0, 1), min_size=4, max_size=4).filter(lambda p: sum(p) > 0.1),
    st.floats(0, 1, exclude_max=True),
)
def test_a_time_of_probability_zero_is_never_chosen(weights, uniform):
    probabilities = [w / sum(weights) for w in weights]
    time = choose_time(torch.tensor([uniform], dtype=torch.float64), TIMES, probabilities).item()
    assert probabilities[TIMES.index(time)] > 0


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="one per sample"):
        add_noise(torch.zeros(2, 1, 1, 1), torch.zeros(2, 1, 1, 1), torch.zeros(3))
    with pytest.raises(ValueError, match="shape of the latents"):
        add_noise(torch.zeros(2, 1, 1, 1), torch.zeros(2, 1, 1, 2), torch.zeros(2))
    with pytest.raises(ValueError, match="at least one token"):
        shifted_location(1.0, 0)
