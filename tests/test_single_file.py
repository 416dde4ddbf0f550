"""A student as a single file: what diffusers makes of it again is the same, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import trained_at
from conftest import TEACHER
from diffusers import SD3Transformer2DModel
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from safetensors.torch import load_file

from ladd_dist.checkpoints.export import export_single
from ladd_dist.checkpoints.student import load_student

PREFIX = "model.diffusion_model."


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("teacher", ["digits", "random"])
def test_diffusers_reads_the_same_student_from_it(
    teacher: str, dtype: torch.dtype, random_teacher: Path, tmp_path: Path
) -> None:
    """The random teacher has SD3.5 Medium's normalised queries and keys and second attention."""
    folder = Path(TEACHER) if teacher == "digits" else random_teacher
    config, checkpoint = trained_at(tmp_path / "run", tmp_path / "latents", f"teacher.path={folder}")
    file = export_single(config, checkpoint, tmp_path / "student", "ema", dtype)
    assert file == tmp_path / "student" / "student.safetensors"
    assert all(name.startswith(PREFIX) for name in load_file(file))
    expected = load_student(config, checkpoint, "ema", dtype).net.state_dict()
    options: dict[str, Any] = {"config": str(folder), "subfolder": "transformer", "local_files_only": True}
    net = SD3Transformer2DModel.from_single_file(str(file), torch_dtype=dtype, **options)
    left = load_file(file)
    for found in (net.state_dict(), convert_sd3_transformer_checkpoint_to_diffusers(left)):
        assert found.keys() == expected.keys()
        assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    assert not left, "the converter takes every tensor"
