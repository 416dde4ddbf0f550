"""`launchers/sample.py`: which pictures, from what, with which settings in their files."""

import io
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ALONE, tiny_config
from PIL import Image

from ladd_dist.cli import Launch
from ladd_dist.config import Config
from ladd_dist.data.buckets import Bucket
from ladd_dist.diffusion.conditioning import Conditioning
from ladd_dist.drawing.pictures import open_picture, pixels_of
from ladd_dist.drawing.pipeline import Pipeline, load_backbone
from ladd_dist.drawing.sampling import sample_student
from ladd_dist.errors import LaddError
from ladd_dist.models.registry import family_of
from ladd_dist.training.trainer import Trainer

Sample = Callable[..., dict[str, Image.Image]]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Config:
    """Of a run with one iteration done."""
    config = tiny_config(tmp_path_factory.mktemp("run"), dataset, "train.iterations=1")
    Trainer(config, ALONE).run()
    return config


@pytest.fixture
def sample(config: Config, tmp_path: Path) -> Sample:
    """Call the launcher's main; the pictures by name."""
    launcher = runpy.run_path("launchers/sample.py")

    def call(*flags: str, batch: int = 8, steps: int | None = None) -> dict[str, Image.Image]:
        args = launcher["command_line"]().parse_args(["--config", "given", "--out", str(tmp_path / "out"), *flags])
        sampling = config.sampling.model_copy(update={"batch": batch, "steps": steps})
        launcher["main"](Launch(args, config.model_copy(update={"sampling": sampling}), ALONE))
        return {path.stem: opened(path) for path in (tmp_path / "out").glob("*.png")}

    return call


def opened(path: Path) -> Any:
    with Image.open(path) as picture:
        picture.load()
    return picture


def levels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


# Which


def test_prompts_that_are_cut_are_counted(sample: Sample, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    sample("--prompt", "a one next to a two next to a three", "--prompt", "a one", steps=1)
    assert "too long and cut, of 2 prompts: 1 at CLIP's 10 tokens" in caplog.text


def test_prompts_of_a_file_and_of_standard_input(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": "a one", "bucket": "32x64"}, {"prompt": "a zwölf", "bucket": "32x32"}, {"prompt": "a one"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    drawn = sample("--prompts", str(tmp_path / "p.jsonl"), "--seed", "7", "--count", "2", steps=1)
    assert {name: (p.text["prompt"], p.text["seed"], p.size) for name, p in drawn.items() if name != "sheet"} == {
        "32x64-00": ("a one", "7", (64, 32)), "32x64-01": ("a one", "8", (64, 32)),
        "32x32-00": ("a zwölf", "9", (32, 32)), "32x32-01": ("a zwölf", "10", (32, 32)),
        "64x32-00": ("a one", "11", (32, 64)), "64x32-01": ("a one", "12", (32, 64)),
    }  # fmt: skip
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a one\n\n a two \n")))
    drawn = sample("--prompts", "-", "--size", "32x32", steps=1)
    assert {name: p.text["prompt"] for name, p in drawn.items() if name != "sheet"} == {
        "32x32-00": "a one", "32x32-01": "a two"
    }  # fmt: skip


def test_a_size_need_not_be_a_bucket(sample: Sample) -> None:
    assert sample("--prompt", "a one", "--size", "48x20", steps=1)["48x20-00"].size == (20, 48)


@pytest.mark.parametrize("flags", [(), ("--image", "--from-time", "0.5")], ids=["noise", "picture"])
def test_a_seed_gives_one_picture_at_any_batch_size(sample: Sample, tmp_path: Path, flags: tuple[str, ...]) -> None:
    """But for the rounding of sums of another order: by a level of 255, where a value lies between two."""
    image = sample("--prompt", "a five", steps=1)["32x32-00"]
    image.save(tmp_path / "five.png")
    begin = [flags[0], str(tmp_path / "five.png"), *flags[1:]] if flags else ["--size", "32x32"]
    prompts = ["--prompt", "a one", "--prompt", "a two", "--prompt", "a three", *begin]
    whole, single = sample(*prompts, batch=3), sample(*prompts, batch=1)
    assert whole.keys() == single.keys() and len(whole) == 4
    for name in whole:
        assert np.abs(levels(whole[name]) - levels(single[name])).max() <= 1
    again = sample("--prompt", "a two", "--seed", "1", *begin)["32x32-00"]
    assert np.abs(levels(again) - levels(whole["32x32-01"])).max() <= 1
    assert np.abs(levels(whole["32x32-00"]) - levels(whole["32x32-01"])).max() > 50


# With what


def test_a_files_text_says_what_it_was_drawn_with(sample: Sample, config: Config) -> None:
    drawn = sample("--prompt", "a 七\nor a one", "--seed", "3", "--teacher", "--weights", "student", steps=2)
    assert set(drawn) == {"32x32-00", "32x32-00-teacher", "sheet"}
    common = {"prompt": "a 七\nor a one", "seed": "3", "size": "32x32"}
    assert drawn["32x32-00"].text == common | {
        "network": "student", "steps": "2", "times": "1, 0.5", "checkpoint": "step-00000001", "weights": "student"
    }  # fmt: skip
    synthesis = config.synthesis
    assert drawn["32x32-00-teacher"].text == common | {
        "network": "teacher", "steps": str(synthesis.steps), "guidance": f"{synthesis.guidance:g}"
    }  # fmt: skip


def test_the_teacher_draws_by_its_own_schedule_from_the_same_noise(sample: Sample, config: Config) -> None:
    drawn = sample("--prompt", "a one", "--seed", "3", "--teacher")
    pipeline = Pipeline(config, ALONE.device)
    teacher = load_backbone(config.teacher.path, torch.float32, ALONE.device)
    latents = pipeline.teacher(
        teacher, pipeline.encode(["a one"], [3], Bucket(32, 32)), config.synthesis.steps, config.synthesis.guidance
    )
    expected = (pipeline.decode(latents)[0].permute(1, 2, 0) * 255).round().int().numpy()
    assert np.abs(levels(drawn["32x32-00-teacher"]) - expected).max() <= 1
    sheet, gap = levels(drawn["sheet"]), 2
    for row, name in enumerate(("32x32-00", "32x32-00-teacher")):
        top = gap + row * (32 + 2 * gap)
        assert np.array_equal(sheet[top : top + 32, gap : gap + 32], levels(drawn[name])), name


# From a picture


def test_a_picture_is_noised_to_its_time_and_drawn_on_from_there() -> None:
    seen = list[tuple[float, torch.Tensor]]()

    def spy(x_t: torch.Tensor, t: torch.Tensor, _: Conditioning) -> torch.Tensor:
        seen.append((t[0].item(), x_t.clone()))
        return torch.zeros_like(x_t)

    noises, x0 = torch.randn(2, 1, 1, 2, 2), torch.randn(1, 1, 2, 2)
    sample_student(spy, noises, [0.75, 0.25], Conditioning(noises, noises), x0)
    assert [t for t, _ in seen] == [0.75, 0.25]
    torch.testing.assert_close(seen[0][1], 0.25 * x0 + 0.75 * noises[0])


def test_encoding_undoes_decoding_as_the_pipeline_has_it(random_teacher: Path) -> None:
    """By diffusers' own call, with another scale and shift than 1 and 0."""
    vae = family_of(random_teacher).encoder(random_teacher, ALONE.device)
    net = vae.net  # type: ignore[attr-defined]
    net.register_to_config(scaling_factor=1.5, shift_factor=0.25)
    pictures = torch.rand(2, 3, 16, 32)
    mode = net.encode(pictures * 2 - 1).latent_dist.mode()
    latents = vae.encode(pictures)
    torch.testing.assert_close(latents, (mode - 0.25) * 1.5)
    shown = vae.decode(latents)  # type: ignore[attr-defined]
    torch.testing.assert_close(shown, (net.decode(mode).sample / 2 + 0.5).clamp(0, 1))


def test_a_picture_drawn_on_from_the_last_time_stays_itself(sample: Sample, tmp_path: Path) -> None:
    before = sample("--prompt", "a seven next to a two", "--size", "32x64")["32x64-00"]
    before.save(tmp_path / "before.png")
    flags = [
        "--prompt",
        "a seven next to a two",
        "--seed",
        "5",
        "--image",
        str(tmp_path / "before.png"),
        "--from-time",
    ]
    late, early = (sample(*flags, time)["32x64-00"] for time in ("0.25", "1"))
    assert late.text["times"] == "0.25" and late.text["image"] == "before.png" and late.size == (64, 32)
    near, far = (np.abs(levels(picture) - levels(before)).mean() for picture in (late, early))
    assert near < 0.5 * far


def test_a_turned_or_transparent_picture_is_read_as_it_is_shown(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (8, 4), (255, 0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    read = pixels_of(open_picture(tmp_path / "a.png"))
    assert read.shape == (3, 8, 4) and read[:, 0, 0].tolist() == [1, 0, 0]


# What is refused


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--prompt a --image {0} --from-time 0.3", "--from-time 0.3 is none of the 4 times of the steps"),
        ("--prompt a --image {0}", "--image and --from-time say what to go on from, and where: give both"),
        ("--prompt a --from-time 0.5", "--image and --from-time say what to go on from, and where: give both"),
        ("--image {0} --from-time 0.5", "--image is for a --prompt, and none is given"),
        ("--count 2", "--count is for a --prompt, and none is given"),
        ("--prompt a --image {1} --from-time 0.5", "cannot be read (cannot identify image file"),
        ("--prompt a --image {2} --from-time 0.5", "cannot be read ("),
        ("--prompt a --image nowhere.png --from-time 0.5", "picture nowhere.png is missing"),
        ("--prompt a --image {3} --from-time 0.5", "32x30: height and width must be multiples of 4: resize it"),
        ("--prompt a --image {0} --from-time 0.5 --size 32x32", "--size does not go with --image"),
        ("--prompt a --image {0} --from-time 0.5 --teacher", "--teacher does not go with --image"),
        ("--prompt a --prompts -", "--prompt and --prompts are two lists of prompts: give one"),
        ("--prompts nowhere.txt", "prompt file nowhere.txt cannot be read"),
        ("--prompt a --size 32", "bucket '32' is not of the form HEIGHTxWIDTH"),
    ],
)
def test_what_cannot_be_drawn_is_one_line_before_a_network_is_loaded(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, message: str
) -> None:
    monkeypatch.setattr("ladd_dist.checkpoints.student.open_newest", lambda *_: pytest.fail("a checkpoint is opened"))
    files = [tmp_path / name for name in ("good.png", "text.png", "cut.png", "odd.png")]
    Image.new("RGB", (32, 32)).save(files[0])
    files[1].write_text("no picture")
    files[2].write_bytes(files[0].read_bytes()[:-30])
    Image.new("RGB", (30, 32)).save(files[3])
    with pytest.raises(LaddError) as refused:
        sample(*flags.format(*files).split())
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_line_of_standard_input_that_is_no_text_is_named(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a one\n\xff\n")))
    with pytest.raises(LaddError, match="^standard input:2: not UTF-8 text"):
        sample("--prompts", "-")
