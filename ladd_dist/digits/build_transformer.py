"""Train the digits teacher: flow matching on latents of real scans, text encoders trained along."""

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from ladd_dist.diffusion.flow import TIMESTEP_SCALE, add_noise, logit_normal, velocity
from ladd_dist.digits.build_text import HIDDEN, MAX_TOKENS, build_text_encoder
from ladd_dist.digits.build_vae import encode, random_canvases
from ladd_dist.digits.prompts import all_prompts
from ladd_dist.digits.scans import LAYOUTS, Scans, render

BATCH = 32
LEARNING_RATE = 3e-3
WARMUP = 200
EMA_SHARE = 0.1
"""The weights are averaged over this share of the run."""

PROMPT_DROPOUT = 0.1
POOL = 4096
"""Canvases of two cells encoded beforehand, per bucket; singles are all encoded."""

T5_LENGTHS = (10, 256)
"""Zero tokens that stand for the absent T5: ours, and the pipeline's default ``max_sequence_length``."""

T5_LONG_SHARE = 1 / 16
"""Share of batches with the long one, so that a bare ``pipeline(prompt)`` draws as well."""


def new_transformer() -> SD3Transformer2DModel:
    """A freshly initialised SD3 transformer of 0.6M parameters; a block starts as the identity."""
    model = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=2 * HIDDEN,
        pooled_projection_dim=2 * HIDDEN,
        caption_projection_dim=64,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )
    # diffusers leaves DiT's zero initialisation to the checkpoint; training from scratch wants it.
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ("norm" in name or name == "proj_out"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return model


class TeacherNets(nn.Module):
    """What is trained together: the transformer and both text encoders."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.transformer = new_transformer()
        self.text_encoders = nn.ModuleList([build_text_encoder(tokenizer) for _ in range(2)])

    def embed(self, ids: Tensor, t5_tokens: int) -> tuple[Tensor, Tensor]:
        """Token ids (B, 10) -> embeddings (B, 10 + t5_tokens, 64) and pooled (B, 64)."""
        return embed_text(list(self.text_encoders), ids, t5_tokens)

    def forward(self, x_t: Tensor, t: Tensor, ids: Tensor, t5_tokens: int) -> Tensor:
        """Velocity at ``x_t`` (B, 4, h, w), times (B,), for token ids (B, 10)."""
        embeds, pooled = self.embed(ids, t5_tokens)
        velocity_hat: Tensor = self.transformer(x_t, embeds, pooled, TIMESTEP_SCALE * t, return_dict=False)[0]
        return velocity_hat


def embed_text(encoders: list[nn.Module], ids: Tensor, t5_tokens: int) -> tuple[Tensor, Tensor]:
    """The SD3 pipeline's ``encode_prompt`` without T5: last-but-one hidden states side by side, then zeros."""
    outputs = [encoder(ids, output_hidden_states=True) for encoder in encoders]
    clip = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    zeros = clip.new_zeros(len(clip), t5_tokens, clip.shape[-1])
    return torch.cat([clip, zeros], dim=1), torch.cat([output.text_embeds for output in outputs], dim=-1)


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    """Prompts -> ids (B, 10), padded and truncated as the pipeline does."""
    padded = tokenizer(prompts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    ids: Tensor = padded.input_ids
    return ids


@dataclass(frozen=True)
class Pool:
    """Encoded canvases of one bucket: latents (N, 4, h, w), and ids (digit combinations, templates, 10)."""

    latents: Tensor
    combination: Tensor  # (N,) first digit, or 10 * first + second
    ids: Tensor


def make_pool(vae: AutoencoderKL, tokenizer: CLIPTokenizer, scans: Scans, layout: str, seed: int) -> Pool:
    """Encode whole canvases, seams and all, once: the autoencoder costs more than the transformer."""
    if layout == "32x32":
        images, labels = render(scans.images[:, None], layout), scans.labels[:, None]
    else:
        images, labels = random_canvases(scans, layout, POOL, torch.Generator().manual_seed(seed))
    prompts = [prompt.text for prompt in all_prompts() if prompt.bucket == layout]  # ordered by digits
    combinations = 10 ** labels.shape[1]
    ids = tokenize(tokenizer, prompts).view(combinations, -1, MAX_TOKENS)
    places = 10 ** torch.arange(labels.shape[1] - 1, -1, -1)
    return Pool(encode(vae, images), (labels * places).sum(1), ids)


def draw_batch(pool: Pool, empty: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A batch of latents and token ids, some of them the ids ``empty`` (1, 10) of the empty prompt."""
    chosen = torch.randint(len(pool.latents), (BATCH,), generator=generator)
    template = torch.randint(pool.ids.shape[1], (BATCH,), generator=generator)
    ids = pool.ids[pool.combination[chosen], template]
    dropped = torch.rand(BATCH, generator=generator) < PROMPT_DROPOUT
    return pool.latents[chosen], torch.where(dropped[:, None], empty, ids)


def rate(step: int, steps: int) -> float:
    """Linear warm-up, then cosine decay to zero: factor on the learning rate."""
    return min(step / WARMUP, 1.0) * 0.5 * (1 + math.cos(math.pi * step / steps))


def train_teacher(
    vae: AutoencoderKL, tokenizer: CLIPTokenizer, scans: Scans, steps: int, seed: int
) -> tuple[SD3Transformer2DModel, list[CLIPTextModelWithProjection], float]:
    """Train transformer and text encoders; return their EMA weights and the last training loss."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    pools = [make_pool(vae, tokenizer, scans, layout, seed + i) for i, layout in enumerate(LAYOUTS)]
    empty = tokenize(tokenizer, [""])
    nets = TeacherNets(tokenizer)
    decay = 1 - 1 / (EMA_SHARE * steps)
    ema = torch.optim.swa_utils.AveragedModel(nets, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(decay))
    optimizer = torch.optim.AdamW(nets.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    bar, smooth = tqdm(range(steps), desc="transformer", unit="step"), 1.0
    for step in bar:
        x0, ids = draw_batch(pools[step % len(pools)], empty, generator)
        noise = torch.randn(x0.shape, generator=generator)
        t = logit_normal(torch.randn(BATCH, generator=generator), 0.0, 1.0)
        t5_tokens = T5_LENGTHS[int(torch.rand((), generator=generator) < T5_LONG_SHARE)]
        loss = F.mse_loss(nets(add_noise(x0, noise, t), t, ids, t5_tokens), velocity(x0, noise))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(nets.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step > WARMUP:
            ema.update_parameters(nets)
        if step % 20 == 0:
            smooth = 0.9 * smooth + 0.1 * loss.item()
            bar.set_postfix(loss=f"{smooth:.3f}")
    best = cast(TeacherNets, ema.module.eval().requires_grad_(False))
    encoders = [cast(CLIPTextModelWithProjection, encoder) for encoder in best.text_encoders]
    return best.transformer, encoders, smooth
