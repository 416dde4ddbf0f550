"""The family seam: a teacher without a text stream, registered from here, is drawn, planned, distilled, exported."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ALONE, PER_BUCKET, tiny_config, write_prompts
from latents import rows_of
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ladd_dist.checkpoints.export import export, export_single
from ladd_dist.checkpoints.reader import open_newest
from ladd_dist.checkpoints.student import load_student
from ladd_dist.config import Config, KernelsConfig, MethodSection, TeacherConfig
from ladd_dist.data.buckets import Bucket
from ladd_dist.data.mds import from_bits
from ladd_dist.data.prompts import PromptEntry
from ladd_dist.diffusion.conditioning import Conditioning
from ladd_dist.drawing.given import table_pairs
from ladd_dist.drawing.pictures import save_png
from ladd_dist.drawing.pipeline import Pipeline
from ladd_dist.drawing.synthesis import synthesize
from ladd_dist.errors import LaddError
from ladd_dist.files.folders import MARKER
from ladd_dist.models import registry
from ladd_dist.models.backbone import Backbone
from ladd_dist.models.family import Drawing, Family, Layout, TokenGrid
from ladd_dist.models.registry import family_of, register
from ladd_dist.planning.memory import expected_state
from ladd_dist.planning.networks import check_networks
from ladd_dist.training.tracking import read_metrics
from ladd_dist.training.trainer import Trainer

WIDTH, POOLED, CHANNELS, FACTOR, DEPTH = 16, 8, 4, 4, 3
STEM = "weights"


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x = x + condition[:, None]
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.mlp(x)


class Dit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.condition = nn.Conv2d(CHANNELS, WIDTH, 1), nn.Linear(1 + POOLED, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.out = nn.Linear(WIDTH, CHANNELS)


class DitBackbone(Backbone):
    width, pooled_width = WIDTH, POOLED  # type: ignore[assignment]

    def compute(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Conditioning,
        taps: tuple[int, ...] | None,
        consume: Callable[[Tensor], None] | None,
    ) -> Tensor | list[Tensor]:
        condition = self.net.condition(torch.cat([t[:, None], cond.pooled.float()], 1))
        x, features = self.net.embed(x_t).flatten(2).transpose(1, 2), list[Tensor]()
        for index, block in enumerate(self.net.blocks if taps is None else self.net.blocks[: taps[-1] + 1]):
            x = self.run_block(block, x, condition)
            if taps is not None and index in taps:
                (consume or features.append)(x)
        return self.net.out(x).transpose(1, 2).reshape(x_t.shape) if taps is None else features

    def wrap_points(self) -> list[nn.Module]:
        return list(self.net.blocks)

    def truncate(self, last_block: int) -> None:
        del self.net.blocks[last_block + 1 :], self.net.out

    def save_config(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"_class_name": "ToyDit"}))


class Euler:
    def __init__(self) -> None:
        self.settings: dict[str, Any] = {"kind": "linear"}

    def times(self, steps: int, tokens: int) -> list[float]:
        return [1 - i / steps for i in range(steps + 1)]


class NoText:
    def encode(self, prompts: list[str]) -> Conditioning:
        return Conditioning(torch.zeros(len(prompts), 1, 1), torch.zeros(len(prompts), POOLED))


class Pixels:
    def decode(self, latents: Tensor) -> Tensor:
        return latents[:, :3].sigmoid().repeat_interleave(FACTOR, 2).repeat_interleave(FACTOR, 3)

    def encode(self, pictures: Tensor) -> Tensor:
        cells = pictures[:, :, ::FACTOR, ::FACTOR].clamp(1e-3, 1 - 1e-3).logit()
        return torch.cat([cells, torch.zeros_like(cells[:, :1])], 1)


class Toy(Family):
    layout = Layout({"transformer": STEM})

    def check(self, folder: str | Path) -> None: ...

    def check_student(self, folder: str | Path, teacher: str | Path) -> None: ...

    def latent_space(self, folder: str | Path) -> tuple[int, int]:
        return CHANNELS, FACTOR

    def token_grid(self, folder: str | Path, network: str) -> TokenGrid:
        return lambda height, width: (height, width)

    def make(self, folder: str | Path, dtype: torch.dtype = torch.float32, checkpointing: bool = False) -> Backbone:
        return DitBackbone(Dit(), dtype, checkpointing)

    def load(self, folder: str | Path, dtype: torch.dtype) -> Backbone:
        backbone = self.make(folder, dtype)
        backbone.net.load_state_dict(load_file(Path(folder) / "transformer" / f"{STEM}.safetensors"))
        return backbone.to(dtype)

    def choose_attention(
        self, folder: str | Path, kernels: KernelsConfig, device: torch.device, dtype: torch.dtype, compiled: bool
    ) -> tuple[Callable[[Backbone], None], str]:
        return lambda backbone: None, "PyTorch"

    def conditioner(self, teacher: TeacherConfig, dtype: torch.dtype, device: torch.device) -> NoText:
        return NoText()

    def context_shape(self, teacher: TeacherConfig) -> tuple[int, int]:
        return 1, 1

    def schedule(self, folder: str | Path) -> Euler:
        return Euler()

    def decoder_on_meta(self, folder: str | Path) -> nn.Module:
        return nn.Identity()

    def decoder(self, folder: str | Path, device: torch.device) -> Pixels:
        return Pixels()

    def encoder(self, folder: str | Path, device: torch.device) -> Pixels:
        return Pixels()

    def write_sampler(self, folder: Path, method: MethodSection) -> None:
        (folder / "sampler.json").write_text(json.dumps(method.times()))

    def usage(self, teacher: TeacherConfig, method: MethodSection, drawing: Drawing) -> str:
        return f"toy({drawing.folder!r})({drawing.prompt!r}, {method.times()}, {drawing.height}, {drawing.width})"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Config]:
    """The configuration of a toy teacher, with its latents drawn and two iterations done."""
    root = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_FAMILIES", {})
        register("ToyDit", Toy())
        torch.manual_seed(0)
        DitBackbone(net := Dit()).save_config(root / "teacher" / "transformer")
        save_file(net.state_dict(), root / "teacher" / "transformer" / f"{STEM}.safetensors")
        (root / "teacher" / "model_index.json").write_text(json.dumps({"transformer": ["toy", "ToyDit"]}))
        write_prompts(root / "prompts.jsonl", PER_BUCKET // 3)
        config = tiny_config(
            root / "run", root / "latents", f"teacher.path={root / 'teacher'}", "train.iterations=2",
            "train.preview_every=2",
        )  # fmt: skip
        synthesize(config, ALONE)
        Trainer(config, ALONE).run()
        yield config


def test_it_is_distilled(toy: Config) -> None:
    rows = read_metrics(Path(toy.run_dir))
    assert [row["iteration"] for row in rows] == [1, 2]
    assert all(len(row["real_logit"]) == DEPTH and row["student_grad_norm"] > 0 for row in rows)
    assert list(Path(toy.run_dir).glob("previews/*/*.png"))


def test_pictures_become_its_latents(toy: Config, tmp_path: Path) -> None:
    colours = torch.rand(2, 3, 8, 16).mul(200).round().div(255) + 0.1
    for name, picture in zip("ab", colours.repeat_interleave(FACTOR, 2).repeat_interleave(FACTOR, 3), strict=True):
        save_png(picture, tmp_path / f"{name}.png")
    (tmp_path / "pairs.csv").write_text("prompt,chosen,rejected\nanything,a.png,b.png\n")
    config = tiny_config(tmp_path / "run", tmp_path / "pairs", f"teacher.path={toy.teacher.path}")
    table_pairs(config, tmp_path / "pairs.csv", ALONE)
    (row,) = rows_of(tmp_path / "pairs")
    for key, picture in zip(("latent", "rejected"), colours, strict=True):
        decoded = Pixels().decode(from_bits(row[key].copy())[None])[0, :, ::FACTOR, ::FACTOR]
        assert (decoded - picture).abs().max() < 0.01  # bf16, and 8 bits


def test_its_checkpoint_holds_a_student_that_moved_and_draws(toy: Config) -> None:
    checkpoint = open_newest(toy.run_dir, ALONE)
    assert checkpoint is not None
    student = load_student(toy, checkpoint, "student", torch.float32)
    start = family_of(toy.teacher.path).load(toy.teacher.path, torch.float32)
    assert not all(torch.equal(a, b) for a, b in zip(student.parameters(), start.parameters(), strict=True))
    pipeline = Pipeline(toy, ALONE.device)
    encoded = pipeline.encode(["anything"], [0], Bucket(32, 64))
    assert pipeline.decode(pipeline.student(student, encoded)).shape == (1, 3, 32, 64)


def test_its_export_has_its_own_sampler_and_call(toy: Config, tmp_path: Path) -> None:
    checkpoint = open_newest(toy.run_dir, ALONE)
    assert checkpoint is not None
    example = PromptEntry(0, "anything", Bucket(32, 64))
    folder = export(toy, checkpoint, tmp_path / "out", "student", torch.float32, example)
    held = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {MARKER}
    assert held == {
        "README.md", "model_index.json", "sampler.json", "transformer/config.json", f"transformer/{STEM}.safetensors"
    }  # fmt: skip
    assert "\n\ntoy('out')('anything', [1.0, 0.75, 0.5, 0.25], 32, 64)\n\n" in (folder / "README.md").read_text()
    student, exported = load_student(toy, checkpoint, "student", torch.float32), Toy().load(folder, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), exported.parameters(), strict=True))


def test_a_family_without_single_files_says_so(toy: Config, tmp_path: Path) -> None:
    checkpoint = open_newest(toy.run_dir, ALONE)
    assert checkpoint is not None
    with pytest.raises(LaddError, match="--format single: .* choose --format diffusers"):
        export_single(toy, checkpoint, tmp_path / "out", "student", torch.float32)
    assert not (tmp_path / "out").exists()


def test_the_memory_formula_counts_it(toy: Config) -> None:
    elements = sum(p.numel() for p in Dit().parameters())
    held = {kind: size for (_, kind), size in expected_state(toy, 1).items()}
    assert held["masters"] == 4 * elements and 0 < held["teacher"] < 4 * elements


def test_it_makes_no_smaller_students(toy: Config) -> None:
    smaller = toy.model_copy(update={"student": toy.student.model_copy(update={"layers": [0]})})
    with pytest.raises(LaddError, match=r"is of a family that makes no smaller networks: remove them$"):
        check_networks(smaller)


@pytest.mark.parametrize("name", ["FluxTransformer2DModel", None, ["a"]])
def test_an_unknown_class_is_one_line_that_lists_the_known(toy: Config, tmp_path: Path, name: Any) -> None:
    (tmp_path / "transformer").mkdir()
    file = tmp_path / "transformer" / "config.json"
    file.write_text(json.dumps({"_class_name": name}))
    with pytest.raises(LaddError) as refused:
        family_of(tmp_path)
    line = str(refused.value)
    assert str(file) in line and str(name) in line and "\n" not in line
    assert line.endswith("SD3Transformer2DModel, ToyDit")


def test_a_class_has_one_family(toy: Config) -> None:
    for name in ("ToyDit", "SD3Transformer2DModel"):
        with pytest.raises(ValueError, match=f"a family of {name} is registered already"):
            register(name, Toy())
