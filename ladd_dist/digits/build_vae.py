"""Train the digits teacher's autoencoder: 32 x 32 pixels of a cell -> 4 x 8 x 8 latents."""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm import tqdm

from ladd_dist.digits.scans import LAYOUTS, Scans, render

BATCH = 32
LEARNING_RATE = 2e-3
KL_WEIGHT = 3e-4


def new_vae() -> AutoencoderKL:
    """A freshly initialised autoencoder, spatial factor 4, 4 latent channels."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def random_canvases(scans: Scans, layout: str, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``count`` canvases of randomly chosen scans: images (B, 3, H, W) in [0, 1] and labels (B, cells)."""
    rows, columns = LAYOUTS[layout]
    chosen = torch.randint(len(scans.images), (count, rows * columns), generator=generator)
    return render(scans.images[chosen], layout), scans.labels[chosen]


def train_vae(scans: Scans, steps: int, seed: int) -> AutoencoderKL:
    """Train on canvases of all buckets, with the usual small KL term, and measure shift and scale.

    The returned model is frozen and in eval mode; its config holds the shift and scale that give its
    latents mean 0 and standard deviation 1.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    vae = new_vae().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.05)
    bar = tqdm(range(steps), desc="autoencoder", unit="step")
    for step in bar:
        images, _ = random_canvases(scans, list(LAYOUTS)[step % 3], BATCH, generator)
        pixels = images * 2 - 1
        posterior = vae.encode(pixels).latent_dist
        error = F.mse_loss(vae.decode(posterior.sample()).sample, pixels)
        loss = error + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            bar.set_postfix(mse=f"{error.item():.4f}")
    vae = vae.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
    _measure_latents(vae, scans)
    return vae


@torch.no_grad()
def _measure_latents(vae: AutoencoderKL, scans: Scans) -> None:
    latents = vae.encode(render(scans.images[:, None], "32x32") * 2 - 1).latent_dist.mode()
    mean, deviation = latents.mean().item(), latents.std().item()
    vae.register_to_config(shift_factor=mean, scaling_factor=1 / deviation)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor, batch: int = 256) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] -> scaled latents (B, 4, H/4, W/4), mean 0 and deviation 1."""
    latents = [vae.encode(chunk * 2 - 1).latent_dist.mode() for chunk in images.split(batch)]
    return (torch.cat(latents) - vae.config.shift_factor) * vae.config.scaling_factor


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor, batch: int = 256) -> Tensor:
    """Scaled latents (B, 4, h, w) -> images (B, 3, 4h, 4w) in [0, 1]."""
    raw = latents / vae.config.scaling_factor + vae.config.shift_factor
    return torch.cat([vae.decode(chunk).sample for chunk in raw.split(batch)]).div(2).add(0.5).clamp(0, 1)
