"""Score the digits teacher with the judge, and choose its guidance scale."""

from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ladd_dist.digits.build_text import MAX_TOKENS
from ladd_dist.digits.build_vae import decode, encode
from ladd_dist.digits.judge import DigitJudge
from ladd_dist.digits.prompts import all_prompts
from ladd_dist.digits.scans import LAYOUTS, load_part, render

STEPS = 20
GUIDANCES = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0)
WANTED_ACCURACY = 0.98


class Score(NamedTuple):
    """Share of images read as their prompt says, per bucket and overall; Frechet distance of all cells."""

    accuracy: dict[str, float]
    overall: float
    frechet: float


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Frechet distance of Gaussians fitted to features (N, F) and (M, F), as in Heusel et al. 2017."""
    mean_a, mean_b = a.mean(0), b.mean(0)
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    # tr sqrt(AB) from the eigenvalues of AB, which are real and non-negative up to rounding.
    eigenvalues: NDArray[np.complex128] = np.linalg.eigvals((cov_a @ cov_b).numpy())
    trace = float(np.sqrt(eigenvalues.real.clip(min=0)).sum())
    return float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace()) - 2 * trace


def real_cells(part: str) -> Tensor:
    """All scans of a part, drawn alone: (N, 3, 32, 32)."""
    return render(load_part(part).images[:, None], "32x32")


def draw(
    pipeline: StableDiffusion3Pipeline,
    prompts: list[str],
    layout: str,
    steps: int,
    guidance: float,
    seed: int,
    t5_tokens: int = MAX_TOKENS,
) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] from the public pipeline, one generator for the batch."""
    height, width = map(int, layout.split("x"))
    images: Tensor = pipeline(
        prompt=prompts,
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(seed),
        max_sequence_length=t5_tokens,
        output_type="pt",
    ).images
    return images.float()


def some_prompts(layout: str, count: int, seed: int) -> list[str]:
    """``count`` sentences of the grammar for a bucket, each equally often (up to one)."""
    texts = [prompt.text for prompt in all_prompts() if prompt.bucket == layout]
    order = np.random.default_rng(seed).permutation(len(texts))
    return [texts[order[i % len(texts)]] for i in range(count)]


def score(
    pipeline: StableDiffusion3Pipeline,
    judge: DigitJudge,
    count: int,
    steps: int,
    guidance: float,
    seed: int,
    t5_tokens: int = MAX_TOKENS,
) -> Score:
    """Draw ``count`` images per bucket and judge them against the judge's own scans."""
    accuracy, features = {}, []
    for layout in LAYOUTS:
        prompts = some_prompts(layout, count, seed)
        images = draw(pipeline, prompts, layout, steps, guidance, seed, t5_tokens)
        accuracy[layout] = judge.reads_prompt(images, prompts).double().mean().item()
        features.append(judge.features(images))
    distance = frechet_distance(torch.cat(features), judge.features(real_cells("judge")))
    return Score(accuracy, sum(accuracy.values()) / len(accuracy), distance)


def choose_guidance(table: dict[float, Score]) -> float:
    """The lowest Frechet distance among the scales that are read well enough; else the best read."""
    good = {scale: row for scale, row in table.items() if row.overall >= WANTED_ACCURACY}
    if good:
        return min(good, key=lambda scale: good[scale].frechet)
    return max(table, key=lambda scale: table[scale].overall)


def score_judge(judge: DigitJudge) -> dict[str, float]:
    """Accuracy of both judges on the teacher's part, and the distance between the two real parts."""
    cells, labels = real_cells("teacher"), load_part("teacher").labels
    by_net, by_reader = judge.net(cells[:, :1]).argmax(1), judge.read(cells)[:, 0]
    return {
        "feature_net_accuracy_on_teacher_part": (by_net == labels).double().mean().item(),
        "reader_accuracy_on_teacher_part": (by_reader == labels).double().mean().item(),
        "frechet_teacher_part_to_judge_part": frechet_distance(
            judge.features(cells), judge.features(real_cells("judge"))
        ),
    }


def score_vae(vae: AutoencoderKL, judge: DigitJudge) -> dict[str, float]:
    """Reconstruction of the judge's scans, which the autoencoder never saw."""
    images = real_cells("judge")
    latents = encode(vae, images)
    again = decode(vae, latents)
    return {
        "mean_squared_error": (again - images).square().mean().item(),
        "frechet_to_originals": frechet_distance(judge.features(again), judge.features(images)),
        "latent_mean": latents.mean().item(),
        "latent_deviation": latents.std().item(),
    }


def score_teacher(pipeline: StableDiffusion3Pipeline, judge: DigitJudge, count: int, seed: int) -> dict[str, Any]:
    """Guidance table, the choice, and with it the score on fresh noise beside unguided few-step sampling."""
    pipeline.set_progress_bar_config(disable=True)
    bar = tqdm(GUIDANCES, desc="guidance", unit="scale")
    table = {scale: score(pipeline, judge, count, STEPS, scale, seed) for scale in bar}
    guidance = choose_guidance(table)
    return {
        "images_per_bucket": count,
        "guidance_table": {str(scale): row._asdict() for scale, row in table.items()},
        "steps": STEPS,
        "guidance": guidance,
        "guided": score(pipeline, judge, count, STEPS, guidance, seed + 1)._asdict(),
        "guided_256_t5_tokens": score(pipeline, judge, count // 2, STEPS, guidance, seed + 1, 256)._asdict(),
        "unguided_4_steps": score(pipeline, judge, count, 4, 1.0, seed + 1)._asdict(),
        "unguided_1_step": score(pipeline, judge, count, 1, 1.0, seed + 1)._asdict(),
        "cells": int(sum(rows * columns for rows, columns in LAYOUTS.values()) * count),
    }
