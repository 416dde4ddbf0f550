"""LADD as the public trainers write it, to compare with: the same mathematics, one thing after the other.

docs/speed.md says which public code does each of these. Two forward passes of the student and two of the teacher for
the fake, one for each network's update; features caught by hooks of a teacher that runs to its end; heads one by one,
each on planes; AdamW as PyTorch makes it, and an average moved parameter by parameter.
"""

import math
from typing import Any

import torch
from diffusers.models.attention import JointTransformerBlock
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn
from torch.nn import functional as F

from ladd_dist.config import Config, OptimizerConfig
from ladd_dist.diffusion.batch import Batch
from ladd_dist.diffusion.conditioning import Conditioning
from ladd_dist.diffusion.flow import TIMESTEP_SCALE, add_noise, choose_time, logit_normal, shifted_location
from ladd_dist.diffusion.noise import StepDraws
from ladd_dist.engines.build import compute_dtype
from ladd_dist.methods.base import optimizer
from ladd_dist.methods.ladd.heads import DiscriminatorHeads
from ladd_dist.methods.ladd.sample import Sample, settings
from ladd_dist.models.registry import family_of
from ladd_dist.models.start import Start


class Head(nn.Module):
    """One head on planes ``(B, D, H, W)``, with the weights of one of ours."""

    def __init__(self, ours: DiscriminatorHeads, number: int) -> None:
        super().__init__()
        width, mid = ours.project.shape[1:]
        out, groups = ours.logit.shape[1], ours.groups
        self.features = nn.Sequential(
            nn.Conv2d(width, mid, 1),
            nn.Conv2d(mid, mid, 3, padding=1),
            nn.GroupNorm(groups, mid),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(mid, out, 3, padding=1),
            nn.GroupNorm(groups, out),
            nn.LeakyReLU(0.2, inplace=True),
        )
        self.logit = nn.Conv2d(out, 1, 1)
        self.condition = nn.Linear(ours.embed.in_features, out)
        self._copy(ours, number)

    @torch.no_grad()
    def _copy(self, ours: DiscriminatorHeads, number: int) -> None:
        def rows(stacked: Tensor) -> Tensor:
            return stacked.unflatten(0, (len(ours.taps), -1))[number]

        layers: Any = self.features
        project, conv1, norm1, _, conv2, norm2, _ = layers
        project.weight.copy_(ours.project[number].mT[..., None, None])
        project.bias.copy_(ours.project_bias[number, 0])
        for mine, theirs in ((conv1, ours.conv1), (norm1, ours.norm1), (conv2, ours.conv2), (norm2, ours.norm2)):
            mine.weight.copy_(rows(theirs.weight))
            mine.bias.copy_(rows(theirs.bias))
        self.logit.weight.copy_(ours.logit[number].view_as(self.logit.weight))
        self.logit.bias.fill_(ours.logit_bias[number])  # type: ignore[union-attr]
        self.condition.weight.copy_(rows(ours.embed.weight))
        self.condition.bias.copy_(rows(ours.embed.bias))

    def forward(self, planes: Tensor, embedded: Tensor) -> Tensor:
        """Logits ``(B, 1, H, W)``."""
        hidden = self.features(planes)
        by_condition = (hidden * self.condition(embedded)[..., None, None]).sum(1, keepdim=True)
        return self.logit(hidden) + by_condition / math.sqrt(hidden.shape[1])


class Heads(nn.Module):
    """All heads, one by one."""

    def __init__(self, ours: DiscriminatorHeads) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(ours, number) for number in range(len(ours.taps)))
        frequencies = ours.embed_time.in_features
        self.waves = Timesteps(frequencies, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.embed_time = nn.Linear(frequencies, ours.embed_time.out_features)
        self.embed_pooled = nn.Linear(ours.embed_pooled.in_features, ours.embed_pooled.out_features)
        self.embed_time.load_state_dict(ours.embed_time.state_dict())
        self.embed_pooled.load_state_dict(ours.embed_pooled.state_dict())

    def forward(self, features: list[Tensor], grid: tuple[int, int], t: Tensor, pooled: Tensor) -> Tensor:
        """Logits ``(B, heads, H, W)`` of tokens ``(B, N, D)``."""
        embedded = F.silu(self.embed_time(self.waves(t * TIMESTEP_SCALE)) + self.embed_pooled(pooled))
        logits = []
        for head, tokens in zip(self.heads, features, strict=True):
            planes = tokens.transpose(1, 2).reshape(*tokens.shape[::2], *grid)
            logits.append(head(planes, embedded))
        return torch.cat(logits, dim=1)


class PeerLoop:
    """Networks, optimizers and one iteration: an update of the heads, then one of the student.

    Args:
        heads: ours, whose weights it starts from.
    """

    def __init__(self, config: Config, heads: DiscriminatorHeads, device: torch.device) -> None:
        dtype = compute_dtype(config)
        self.method = settings(config)
        teacher, student, average = (
            family_of(config.teacher.path).load(config.teacher.path, dtype),
            Start.of(config).load(torch.float32),
            Start.of(config).load(torch.float32),
        )
        # diffusers' own transformers, which is what peers call.
        self.teacher: Any = teacher.to(device).eval().requires_grad_(False).net
        self.student: Any = student.to(device).train().net
        self.ema: Any = average.to(device).requires_grad_(False).net
        for block in (*self.teacher.transformer_blocks, *self.student.transformer_blocks):
            block.__class__ = JointTransformerBlock
        self.heads = Heads(heads).to(device)
        self.features: list[Tensor] = []
        for block in heads.taps:
            self.teacher.transformer_blocks[block].register_forward_hook(self._keep)
        self.decay = config.train.ema_decay
        self.student_optimizer = self._adamw(self.student, config.student_optimizer)
        self.heads_optimizer = self._adamw(self.heads, optimizer(config, "head_optimizer"))
        self.autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

    @staticmethod
    def _adamw(net: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
        b1, b2 = config.betas
        return torch.optim.AdamW(
            net.parameters(), lr=config.lr, betas=(b1, b2), eps=config.eps, weight_decay=config.weight_decay
        )

    def _keep(self, block: nn.Module, inputs: object, outputs: tuple[Tensor, Tensor]) -> None:
        self.features.append(outputs[1])

    def draw(self, index: int, batch: Batch, grid: tuple[int, int]) -> Sample:
        """Noise and noise levels for a whole batch at a time."""
        method, x = self.method, batch.latents
        count, device = len(x), x.device
        draws = StepDraws(
            torch.rand(count, device=device),
            *(torch.randn(count, device=device) for _ in range(2)),
            *(torch.randn_like(x) for _ in range(3)),
        )
        warm = index < method.warmup_iterations
        t = choose_time(
            draws.student_time, method.student_times, method.warmup_probabilities if warm else method.probabilities
        )
        location = shifted_location(method.renoise_location, grid[0] * grid[1])
        s, r = (logit_normal(n, location, method.renoise_scale) for n in (draws.fake_level, draws.real_level))
        return Sample(batch, grid, t, s, s if method.renoise == "same" else r, draws)

    def iteration(self, sample: Sample) -> dict[str, Tensor]:
        """Update the heads, the student and its average."""
        return self._update_heads(sample) | self._update_student(sample)

    def _run(self, net: Any, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        velocity: Tensor = net(
            hidden_states=x.to(net.dtype),
            timestep=t * TIMESTEP_SCALE,
            encoder_hidden_states=cond.context.to(net.dtype),
            pooled_projections=cond.pooled.to(net.dtype),
            return_dict=False,
        )[0]
        return velocity

    def _generate(self, sample: Sample) -> Tensor:
        x_t = add_noise(sample.batch.latents, sample.draws.student_noise, sample.t)
        return x_t - sample.t.view(-1, 1, 1, 1) * self._run(self.student, x_t, sample.t, sample.batch.cond)

    def _features(self, latents: Tensor, noise: Tensor, level: Tensor, cond: Conditioning) -> list[Tensor]:
        self.features = []
        self._run(self.teacher, add_noise(latents, noise, level), level, cond)
        return self.features

    def _update_heads(self, sample: Sample) -> dict[str, Tensor]:
        cond, draws, weight = sample.batch.cond, sample.draws, self.method.r1_weight
        self.student.requires_grad_(False)
        self.heads.requires_grad_(True)
        with self.autocast:
            with torch.no_grad():
                fake = self._features(self._generate(sample), draws.fake_noise, sample.s, cond)
                real = self._features(sample.batch.latents, draws.real_noise, sample.r, cond)
            real = [f.requires_grad_(weight > 0) for f in real]
            real_logits = self.heads(real, sample.grid, sample.r, cond.pooled)
            fake_logits = self.heads(fake, sample.grid, sample.s, cond.pooled)
            loss = F.relu(1 - real_logits.float()).mean() + F.relu(1 + fake_logits.float()).mean()
            penalty = torch.zeros_like(loss)
            if weight:
                scale = (sample.grid[0] * sample.grid[1]) ** 0.5
                gradients = torch.autograd.grad(real_logits.sum() / scale, real, create_graph=True)
                penalty = torch.stack([g.square().sum() for g in gradients]).sum() / (len(real) * len(real[0]))
        (loss + weight * penalty).backward()
        torch.nn.utils.clip_grad_norm_(self.heads.parameters(), 1.0)
        self.heads_optimizer.step()
        self.heads_optimizer.zero_grad(set_to_none=True)
        return {"d_loss": loss.detach(), "r1": penalty.detach()}

    def _update_student(self, sample: Sample) -> dict[str, Tensor]:
        self.student.requires_grad_(True)
        self.heads.requires_grad_(False)
        with self.autocast:
            fake = self._features(self._generate(sample), sample.draws.fake_noise, sample.s, sample.batch.cond)
            loss = -self.heads(fake, sample.grid, sample.s, sample.batch.cond.pooled).float().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.student_optimizer.step()
        self.student_optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for average, weights in zip(self.ema.parameters(), self.student.parameters(), strict=True):
                average.lerp_(weights, 1 - self.decay)
        return {"g_loss": loss.detach()}
