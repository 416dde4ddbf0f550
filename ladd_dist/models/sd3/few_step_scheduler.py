"""The sampler of a few-step student: steps at the times that it was trained at, with fresh noise between them.

A copy of this file lies in ``scheduler/`` of every exported student, from where diffusers loads it if it may:
``from_pretrained(..., trust_remote_code=True)``. It needs nothing but diffusers.
"""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.configuration_utils import register_to_config


class FewStepScheduler(FlowMatchEulerDiscreteScheduler):
    """Predict the clean latent, renoise it to the next time, repeat (LADD, arXiv 2403.12015, sec. 3).

    diffusers' own schedulers that renoise end at one last time, whatever the number of steps. This one takes the
    trained times at an even stride from the first: of 1, 0.75, 0.5 and 0.25 it takes all in 4 steps, 1 and 0.5 in 2,
    and 1 alone in 1 step. Pipelines hand their ``generator`` to no scheduler. So unless ``step`` is given one, noise
    between steps is made from the latent that the first step starts at, which is what a pipeline's generator makes.

    Args:
        student_times: noise levels, falling from 1.
    """

    __module__ = "few_step_scheduler"  # what a pipeline's save_pretrained enters in model_index.json
    _compatibles: ClassVar = ["FlowMatchEulerDiscreteScheduler"]  # whose settings, fixed here, are saved, too

    @register_to_config
    def __init__(self, student_times: list[float]) -> None:
        super().__init__(stochastic_sampling=True)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
        timesteps: list[float] | None = None,
    ) -> None:
        """Choose the times of the next picture's steps.

        Args:
            num_inference_steps: a divisor of the number of trained times.
            sigmas: times to take in their place; ``timesteps`` are the same in thousandths.
            mu: not used: trained times are not shifted.

        Raises:
            ValueError: if the student does not draw in that number of steps, and no times are given.
        """
        if sigmas is None and timesteps is None:
            sigmas = self._trained(num_inference_steps)
        super().set_timesteps(num_inference_steps, device, sigmas, mu, timesteps)

    def _trained(self, steps: int | None) -> list[float]:
        times: list[float] = self.config.student_times
        counts = [count for count in range(len(times), 0, -1) if len(times) % count == 0]
        if steps not in counts:
            known = ", ".join(map(str, counts))
            raise ValueError(
                f"num_inference_steps={steps}, but this student draws in a few steps and without guidance: "
                f"pass one of {known} and guidance_scale=1.0"
            )
        return times[:: len(times) // steps]

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | float,
        sample: torch.Tensor,
        *args: Any,
        generator: torch.Generator | list[torch.Generator] | None = None,
        **kwargs: Any,
    ) -> Any:
        """As diffusers' own.

        Args:
            generator: of the noise; a list has one for each picture. None makes one of each picture's first latent.
        """
        if self.step_index is None:
            self._generators = [generator_of(latent) for latent in sample]
        return super().step(model_output, timestep, sample, *args, generator=generator or self._generators, **kwargs)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Save the settings, and beside them this file, without which they cannot be loaded."""
        super().save_pretrained(save_directory, push_to_hub, **kwargs)
        shutil.copyfile(__file__, Path(save_directory) / f"{self.__module__}.py")


def generator_of(latent: torch.Tensor) -> torch.Generator:
    """A generator on the CPU that only these numbers make, whatever their dtype and device."""
    digest = hashlib.sha256(latent.detach().float().cpu().numpy().tobytes()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
