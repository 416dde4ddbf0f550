"""Distances, diversity and detail of sets of pictures, and the intervals of them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ladd_dist.evaluation.detail import CROPS, crops, high_frequency_share
from ladd_dist.evaluation.distances import (
    Gaussian,
    frechet_replicates,
    gaussians,
    kernel_replicates,
    kernel_replicates_apart,
    pair_distances,
)
from ladd_dist.evaluation.jackknife import estimate, groups_of, mean_replicates


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def each(count: int) -> tuple[Tensor, Tensor]:
    """As many pictures of a row each, and their groups."""
    return torch.arange(count), groups_of(range(count))


# Frechet


def frechet_distance(a: Tensor, b: Tensor) -> float:
    return Gaussian.of(a).distance(Gaussian.of(b))


def test_frechet_distance_of_gaussians_is_the_closed_form():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4000, 3)), rng.normal(size=(4000, 3)) * [1, 2, 3] + [1, 0, -1]
    got = frechet_distance(torch.from_numpy(a), torch.from_numpy(b))
    assert got == pytest.approx(2 + 0 + 1 + 4, rel=0.05)  # |mu|^2 + sum (sigma_a - sigma_b)^2


@given(st.integers(0, 100), st.floats(-5, 5))
def test_frechet_distance_is_zero_to_itself_and_symmetric(seed, shift):
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 20, 4, generator=g, dtype=torch.float64).unbind()
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), abs=1e-5)
    assert frechet_distance(a, a + shift) == pytest.approx(4 * shift**2, abs=1e-5)


def test_replicates_are_the_distances_of_what_is_left() -> None:
    a, b, groups = normal(0, 60, 3), normal(1, 60, 3), groups_of([i // 2 for i in range(60)])
    found = frechet_replicates(gaussians(a, groups), gaussians(b, groups))
    kept = [groups != g for g in range(20)]
    wanted = [frechet_distance(a, b), *(frechet_distance(a[k], b[k]) for k in kept)]
    assert found == pytest.approx(wanted, abs=1e-9)


def test_without_the_only_prompt_there_is_no_distance() -> None:
    groups = groups_of(["one"] * 8)
    (_, left_out) = frechet_replicates(gaussians(normal(0, 8, 2), groups), gaussians(normal(1, 8, 2), groups))
    assert np.isnan(left_out)


# Kernel


def test_the_kernel_distance_of_points_is_the_closed_form() -> None:
    """All pictures alike: k(a, a) + k(b, b) - 2 k(a, b)."""
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0]])
    found = kernel_replicates(a.expand(30, 2), b.expand(30, 2), *each(30))
    assert found == pytest.approx(np.full(21, 3.5**3 + 6.0**3 - 2 * 1.5**3))


def test_the_kernel_distance_is_unbiased_with_few_pictures_that_share_their_noise() -> None:
    """Sets drawn alike, each picture two rows and half of what the other set's has: no distance on average."""

    def drawn(seed: int) -> float:
        shared, a, b = normal(seed, 3, 6, 1, 4).unbind()
        sets = [(shared + own).expand(6, 2, 4).flatten(0, 1) for own in (a, b)]
        pictures = torch.arange(6).repeat_interleave(2)
        return float(kernel_replicates(*sets, pictures, pictures)[0])

    values = np.array([drawn(seed) for seed in range(400)])
    assert abs(values.mean()) < 4 * values.std() / 20
    assert (values < 0).any()


@given(st.integers(0, 1000), st.integers(4, 40), st.integers(1, 3))
def test_kernel_replicates_are_those_of_the_pictures_that_are_left(seed: int, count: int, rows: int) -> None:
    pictures = torch.arange(count).repeat_interleave(rows)
    groups = groups_of(list(range(count)))[pictures]
    a, b = normal(seed, 2, count * rows, 3).unbind()
    found = kernel_replicates(a, b, pictures, groups)
    assert found == pytest.approx(kernel_replicates(b, a, pictures, groups))
    kept = groups != 1
    again = kernel_replicates(a[kept], b[kept], pictures[kept], torch.zeros(int(kept.sum()), dtype=torch.long))
    assert found[2] == pytest.approx(again[0])


@given(st.integers(0, 1000), st.integers(4, 30), st.integers(3, 9))
def test_kernel_replicates_to_a_set_of_other_pictures_are_those_of_what_is_left(seed: int, n: int, m: int) -> None:
    """Held against the published statistic, written out."""
    a, b = normal(seed, n, 3), normal(seed + 1, m, 3)

    def kid(x: Tensor, y: Tensor) -> float:
        k = [((u @ v.T) / 3 + 1) ** 3 for u, v in ((x, x), (y, y), (x, y))]
        inside = [float((of.sum() - of.trace()) / (len(of) * (len(of) - 1))) for of in k[:2]]
        return sum(inside) - 2 * float(k[2].mean())

    pictures, groups = each(n)
    found = kernel_replicates_apart(a, b, pictures, torch.arange(m), groups)
    assert found[0] == pytest.approx(kid(a, b))
    assert found[2] == pytest.approx(kid(a[groups != 1], b))


def test_rows_of_one_picture_are_no_pair_of_a_reference_set_either() -> None:
    a, b = normal(0, 6, 2), normal(1, 5, 2)
    once = kernel_replicates_apart(a, b, *(torch.arange(n) for n in (6, 5)), torch.arange(6))
    twice = kernel_replicates_apart(
        a.repeat_interleave(2, 0),
        b.repeat_interleave(2, 0),
        *(torch.arange(n).repeat_interleave(2) for n in (6, 5, 6)),
    )
    assert once == pytest.approx(twice)


def test_large_sets_are_taken_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = normal(0, 2, 50, 3).unbind()
    whole = kernel_replicates(a, b, *each(50))
    monkeypatch.setattr("ladd_dist.evaluation.distances._CHUNK", 7)
    assert kernel_replicates(a, b, *each(50)) == pytest.approx(whole)


def test_kernel_distances_are_of_the_same_pictures() -> None:
    with pytest.raises(ValueError, match="of the same pictures"):
        kernel_replicates(torch.zeros(3, 2), torch.zeros(4, 2), *each(3))


# Intervals


def test_pictures_of_a_prompt_are_in_one_group() -> None:
    groups = groups_of([f"prompt {i % 30}" for i in range(90)])
    assert groups.tolist() == [i % 30 % 20 for i in range(90)]
    assert groups_of(["a", "b", "a"], ["x", "y", "y"]).tolist() == [0, 1, 0]


@pytest.mark.parametrize("count", [3, 4, 5, 9, 10])
def test_every_group_has_its_share_of_each_bucket(count: int) -> None:
    """Prompts come to their buckets in turn, and buckets differ: no group may have more of one than another has."""
    buckets = [i % count for i in range(1000)]
    groups = groups_of(range(1000), buckets)
    held = [groups[torch.tensor(buckets) == bucket].bincount(minlength=20) for bucket in range(count)]
    assert max(int(sizes.max() - sizes.min()) for sizes in held) <= 1
    noise, unlike = normal(0, 1000), torch.tensor(buckets) / count
    alike, apart = (estimate(mean_replicates(values, groups)) for values in (noise, noise + unlike))
    assert apart.high - apart.low == pytest.approx(alike.high - alike.low, rel=0.2)


def test_the_interval_of_a_mean_is_students() -> None:
    values = normal(0, 20)
    found = estimate(mean_replicates(values, groups_of(range(20))))
    half = 2.0930 * float(values.std()) / 20**0.5
    assert found.value == pytest.approx(float(values.mean()))
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), rel=1e-4)


def test_without_a_second_prompt_there_is_no_interval() -> None:
    found = estimate(mean_replicates(torch.tensor([1.0, 3.0]), groups_of(["one", "one"])))
    assert (found.value, found.low, found.high) == (2, None, None)


@pytest.mark.parametrize("kind", ["frechet", "kernel"])
def test_intervals_are_as_wide_as_numbers_scatter(kind: str) -> None:
    """Of 40 pairs of sets around a true distance, nearly all intervals hold the mean of all 40."""

    def drawn(seed: int) -> np.ndarray:
        a, b = normal(seed, 200, 4) * 1.5 + 0.5, normal(1000 + seed, 200, 4)
        pictures, groups = each(200)
        if kind == "kernel":
            return kernel_replicates(a, b, pictures, groups)
        return frechet_replicates(gaussians(a, groups), gaussians(b, groups))

    found = [estimate(drawn(seed)) for seed in range(40)]
    values = np.array([e.value for e in found])
    held = [e.low < values.mean() < e.high for e in found if e.low is not None and e.high is not None]
    assert len(held) == 40 and sum(held) >= 34
    halves = np.array([e.high - e.value for e in found if e.high is not None])
    assert 0.7 < np.median(halves) / (2.09 * values.std()) < 1.5


# Diversity


def test_diversity_is_the_mean_distance_within_a_prompt() -> None:
    features = torch.tensor([[0.0, 0], [3, 4], [9, 9], [0, 10], [1, 1]])
    prompts, means = pair_distances(features, torch.tensor([7, 7, 2, 7, 5]))
    assert prompts.tolist() == [7]
    assert means.tolist() == pytest.approx([(5 + 10 + 45**0.5) / 3])
    assert [part.shape for part in pair_distances(features, torch.arange(5))] == [(0,), (0,)]


# Detail


def grating(cycles: float, height: int = 32, width: int = 48) -> Tensor:
    """Waves of so many cycles per pixel, aslant."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = torch.sin(2 * torch.pi * cycles * (0.6 * y + 0.8 * x))
    return (0.5 + 0.5 * waves).expand(1, 3, height, width)


def test_high_frequencies_are_told_from_low_in_any_direction_and_aspect() -> None:
    images = torch.cat([grating(0.05), grating(0.2), grating(0.3), grating(0.45)])
    for shown in (images, images.transpose(2, 3)):
        share = high_frequency_share(shown)
        assert share[:2].max() < 0.01 and share[2:].min() > 0.99


def test_noise_has_the_share_of_the_band_and_an_even_picture_none() -> None:
    share = high_frequency_share(
        torch.cat([normal(0, 20, 1, 64, 64).expand(20, 3, 64, 64), torch.ones(1, 3, 64, 64)])
    )
    assert share[:20].mean() == pytest.approx(1 - np.pi / 16, abs=0.02)  # outside a circle of half the square's side
    assert share[20] == 0


def test_crops_are_cut_alike_from_every_set_and_at_full_resolution() -> None:
    images = torch.arange(2 * 3 * 8 * 12.0).view(2, 3, 8, 12)
    cut = crops(images, 8, [5, 6])
    assert cut.shape == (2 * CROPS, 3, 8, 8)
    assert torch.equal(crops(images.flip(0), 8, [6, 5]), torch.cat([cut[CROPS:], cut[:CROPS]]))
    lefts = {int(part[0, 0, 0]) % 12 for number in range(50) for part in crops(images[:1], 8, [number])}
    assert lefts == {0, 1, 2, 3, 4}
    assert torch.equal(cut[0, 0, 0].diff(), torch.ones(7))
