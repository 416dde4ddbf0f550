"""The teacher's own sampling schedule as diffusers' pipeline would run its folder, or a refusal.

The teacher is drawn by Euler's method along the flow. A folder that asks for another method, or for times that do
not fall from noise to data, would give other pictures than its users know: it is refused, naming the file.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

from ladd_dist.diffusion.flow import TIMESTEP_SCALE
from ladd_dist.errors import LaddError
from ladd_dist.models.files import read_json
from ladd_dist.models.folder import INDEX, component, pipeline_index

_CLASS = FlowMatchEulerDiscreteScheduler.__name__
_FIXED = {"num_train_timesteps": int(TIMESTEP_SCALE), "stochastic_sampling": False, "invert_sigmas": False}
"""SD3's transformer knows times in thousandths, and its flow goes from noise at 1 to data, without fresh noise."""


class TeacherSchedule:
    """Times of the teacher's steps; shifts, Karras' and other spacings are diffusers' own.

    Args:
        folder: a diffusers folder.

    Raises:
        LaddError: if it has no scheduler, one of another class, or settings that cannot be followed.
    """

    def __init__(self, folder: str | Path) -> None:
        self._file = component(folder, "scheduler") / "scheduler_config.json"
        config, index = read_json(self._file), pipeline_index(folder)
        _check_class(self._file, config.get("_class_name"))
        if index:
            _check_class(Path(folder) / INDEX, index["scheduler"][-1])
        try:
            self._scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
        except (ValueError, TypeError, ArithmeticError) as error:
            raise LaddError(f"{self._file} makes no scheduler ({error}): correct it") from None
        self.settings: dict[str, Any] = dict(self._scheduler.config)
        """The scheduler's whole configuration, defaults included."""
        for key, value in _FIXED.items():
            if self.settings[key] != value:
                problem = f"{self._file} has {key}={json.dumps(self.settings[key])}"
                raise LaddError(f"{problem}, which SD3 cannot be drawn with: set it to {json.dumps(value)}")

    def times(self, steps: int, tokens: int) -> list[float]:
        """Times of ``steps`` steps over an image of ``tokens`` tokens, and the final 0.

        Raises:
            LaddError: if the settings give no times, or times that do not fall.
        """
        try:
            with np.errstate(all="ignore"):  # what is no number does not fall
                self._scheduler.set_timesteps(steps, mu=self._mu(tokens))
        except (ValueError, TypeError, ArithmeticError) as error:
            raise LaddError(f"{self._file} gives no times of {steps} steps ({error}): correct it") from None
        times = [float(sigma) for sigma in self._scheduler.sigmas]
        if not all(now > after for now, after in pairwise(times)):
            found = ", ".join(f"{time:.4g}" for time in times)
            raise LaddError(f"{self._file} gives {steps} steps the times {found}, which do not fall: correct it")
        return times

    def _mu(self, tokens: int) -> float | None:
        """The shift by resolution, where it is asked for, as SD3's pipeline computes it."""
        if not self.settings["use_dynamic_shifting"]:
            return None
        keys = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        return float(calculate_shift(tokens, *(self.settings[key] for key in keys)))


def _check_class(file: Path, name: str | None) -> None:
    if name not in (None, _CLASS):
        remedy = f"give the teacher a scheduler_config.json of {_CLASS} and name it in model_index.json"
        raise LaddError(f"{file} names {name}, but the teacher is drawn by {_CLASS}: {remedy}")
