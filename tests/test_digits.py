"""The embedded digits teacher, its prompts and its judge."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from hypothesis import given
from hypothesis import strategies as st

from ladd_dist.digits import EVAL_PROMPTS, TEACHER, TRAIN_PROMPTS, build
from ladd_dist.digits.judge import DigitJudge
from ladd_dist.digits.prompts import WORDS, all_prompts, digits_in, write_prompts
from ladd_dist.digits.scans import LAYOUTS, cut_cells, load_part, render
from ladd_dist.errors import LaddError
from ladd_dist.files.folders import check_replaceable

BUCKETS = list(LAYOUTS)


@pytest.fixture(scope="module")
def judge() -> DigitJudge:
    return DigitJudge()


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusion3Pipeline:
    pipeline = StableDiffusion3Pipeline.from_pretrained(TEACHER)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def read_lines(path: Path) -> list[tuple[str, str]]:
    return [(row["prompt"], row["bucket"]) for row in map(json.loads, path.read_text().splitlines())]


# Scans


def test_parts_are_disjoint_and_complete() -> None:
    teacher, judge_part = load_part("teacher"), load_part("judge")
    both = torch.cat([teacher.indices, judge_part.indices])
    assert both.sort().values.tolist() == list(range(1797))
    assert abs(len(judge_part.indices) / 1797 - 1 / 3) < 0.01
    assert min(Counter(judge_part.labels.tolist()).values()) >= 55  # stratified


def test_unknown_part_and_bucket_are_errors() -> None:
    with pytest.raises(LaddError, match="'teacher' or 'judge'"):
        load_part("test")
    with pytest.raises(LaddError, match="unknown bucket '16x16'"):
        render(torch.zeros(1, 1, 8, 8), "16x16")
    with pytest.raises(LaddError, match=r"\(B, 2, 8, 8\)"):
        render(torch.zeros(1, 1, 8, 8), "32x64")


@pytest.mark.parametrize("bucket", BUCKETS)
def test_cutting_a_canvas_gives_back_its_cells(bucket: str) -> None:
    rows, columns = LAYOUTS[bucket]
    scans = load_part("teacher").images[: 3 * rows * columns].view(3, -1, 8, 8)
    canvas = render(scans, bucket)
    assert f"{canvas.shape[2]}x{canvas.shape[3]}" == bucket
    assert canvas.dtype == torch.float32
    assert canvas.min() >= 0
    assert canvas.max() <= 1
    alone = render(scans.flatten(0, 1)[:, None], "32x32")
    assert torch.equal(cut_cells(canvas).flatten(0, 1), alone)


# Prompts


def test_digits_in_hand_cases() -> None:
    assert digits_in("a seven next to a two") == [7, 2]
    assert digits_in("A five on top of an EIGHT.") == [5, 8]
    assert digits_in("number zero") == [0]
    assert digits_in("a bone and a height") == []
    assert digits_in("") == []


@given(st.lists(st.integers(0, 9), max_size=6), st.sampled_from(["and", "above", "a", "!", "someone"]))
def test_digits_in_finds_every_digit_in_order(digits: list[int], filler: str) -> None:
    assert digits_in(f" {filler} ".join(WORDS[digit] for digit in digits)) == digits


def test_grammar_names_what_it_says() -> None:
    prompts = all_prompts()
    assert len(prompts) == len({prompt.text for prompt in prompts}) == 50 + 300 + 300
    for prompt in prompts:
        assert tuple(digits_in(prompt.text)) == prompt.digits
        assert len(prompt.digits) == LAYOUTS[prompt.bucket][0] * LAYOUTS[prompt.bucket][1]


def test_train_and_eval_prompts_are_disjoint_and_balanced() -> None:
    train, evaluation = read_lines(TRAIN_PROMPTS), read_lines(EVAL_PROMPTS)
    assert not set(train) & set(evaluation)
    assert len(set(train) | set(evaluation)) == len(all_prompts())
    for lines in (train, evaluation):
        assert len(set(Counter(bucket for _, bucket in lines).values())) == 1
        for bucket in BUCKETS:
            seen = Counter(d for text, b in lines if b == bucket for d in digits_in(text))
            assert len(seen) == 10
            assert len(set(seen.values())) == 1  # every digit equally often


def test_prompt_files_are_what_the_grammar_writes(tmp_path: Path) -> None:
    write_prompts(tmp_path / "train.jsonl", tmp_path / "eval.jsonl")
    assert (tmp_path / "train.jsonl").read_bytes() == TRAIN_PROMPTS.read_bytes()
    assert (tmp_path / "eval.jsonl").read_bytes() == EVAL_PROMPTS.read_bytes()


# The judge


def test_judge_was_fit_on_its_own_part_only(judge: DigitJudge) -> None:
    assert set(judge.fit_indices.tolist()) == set(load_part("judge").indices.tolist())
    assert not set(judge.fit_indices.tolist()) & set(load_part("teacher").indices.tolist())


@pytest.mark.parametrize("bucket", BUCKETS)
def test_judge_reads_real_digits(judge: DigitJudge, bucket: str) -> None:
    rows, columns = LAYOUTS[bucket]
    scans, cells = load_part("teacher"), rows * columns
    count = len(scans.images) // cells
    images = render(scans.images[: count * cells].view(count, cells, 8, 8), bucket)
    labels = scans.labels[: count * cells].view(count, cells)
    prompts = [" ".join(WORDS[digit] for digit in row) for row in labels.tolist()]
    assert judge.reads_prompt(images, prompts).double().mean() >= 0.95


def test_judge_reads_no_noise(judge: DigitJudge) -> None:
    noise = torch.rand(200, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    prompts = [f"{WORDS[i % 10]} beside {WORDS[i // 10 % 10]}" for i in range(200)]
    assert judge.reads_prompt(noise, prompts).double().mean() < 0.1


def test_features_are_per_cell_and_tell_digits_from_noise(judge: DigitJudge) -> None:
    real = render(load_part("teacher").images.view(-1, 2, 8, 8), "64x32")
    features = judge.features(real)
    assert features.shape == (1198, 48)
    assert features.dtype == torch.float64
    assert torch.allclose(features[1], judge.features(real[:1, :, 32:])[0], atol=1e-5)
    noise = judge.features(torch.rand(100, 3, 64, 32, generator=torch.Generator().manual_seed(0)))
    half_to_half = (features[:599].mean(0) - features[599:].mean(0)).norm()
    assert (features.mean(0) - noise.mean(0)).norm() > 3 * half_to_half


def test_judge_errors(judge: DigitJudge) -> None:
    with pytest.raises(LaddError, match="multiples of 32 pixels, not 32x40"):
        judge.features(torch.zeros(1, 3, 32, 40))
    with pytest.raises(LaddError, match="shape"):
        judge.features(torch.zeros(1, 1, 32, 32))
    with pytest.raises(LaddError, match="names 1 digits, but its image has 2 cells"):
        judge.reads_prompt(torch.zeros(1, 3, 32, 64), ["a three"])
    with pytest.raises(LaddError, match="2 prompts were given for 1 images"):
        judge.reads_prompt(torch.zeros(1, 3, 32, 32), ["a three", "a four"])
    with pytest.raises(LaddError, match="--judge-only"):
        DigitJudge(weights=Path("missing.safetensors"))


def test_judge_takes_an_empty_batch(judge: DigitJudge) -> None:
    empty = torch.zeros(0, 3, 32, 32)
    assert judge.features(empty).shape == (0, 48)
    assert judge.reads_prompt(empty, []).shape == (0,)


# The teacher


def test_teacher_folder_is_small_and_plain() -> None:
    files = [path for path in TEACHER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10 * 2**20
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt"}


def test_every_word_is_one_token_and_any_prompt_tokenizes(pipeline: StableDiffusion3Pipeline) -> None:
    for tokenizer, encoder in (
        (pipeline.tokenizer, pipeline.text_encoder),
        (pipeline.tokenizer_2, pipeline.text_encoder_2),
    ):
        for prompt in all_prompts():
            assert len(tokenizer(prompt.text).input_ids) == len(prompt.text.split()) + 2 <= 10
        assert tokenizer.unk_token_id not in tokenizer("Größe 12 ✓").input_ids[1:-1]
        assert encoder.config.eos_token_id == tokenizer.eos_token_id != 2


def test_t5_says_nothing_whatever_the_prompt(pipeline: StableDiffusion3Pipeline) -> None:
    context, _, _, _ = pipeline.encode_prompt(
        ["a three", "Größe ✓"], None, None, do_classifier_free_guidance=False, max_sequence_length=10
    )
    assert context.shape == (2, 20, 64)
    assert not context[:, 10:].any()
    assert context[:, :10].any()


def test_latents_are_standardised(pipeline: StableDiffusion3Pipeline) -> None:
    vae = pipeline.vae
    images = render(load_part("teacher").images[:100].view(50, 2, 8, 8), "32x64")
    with torch.no_grad():
        latents = (
            vae.encode(images * 2 - 1).latent_dist.mode() - vae.config.shift_factor
        ) * vae.config.scaling_factor
    assert latents.shape == (50, 4, 8, 16)
    assert abs(latents.mean()) < 0.05
    assert abs(latents.std() - 1) < 0.05


@pytest.mark.parametrize("bucket", BUCKETS)
def test_teacher_draws_what_the_prompt_says(
    pipeline: StableDiffusion3Pipeline, judge: DigitJudge, bucket: str
) -> None:
    prompts = [prompt.text for prompt in all_prompts() if prompt.bucket == bucket][::13][:16]
    height, width = map(int, bucket.split("x"))
    images = pipeline(
        prompt=prompts,
        height=height,
        width=width,
        num_inference_steps=10,
        guidance_scale=3.0,
        max_sequence_length=10,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    assert images.shape == (len(prompts), 3, height, width)
    assert judge.reads_prompt(images, prompts).double().mean() > 0.5


def test_importing_the_package_is_light() -> None:
    code = "import sys, ladd_dist.digits; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'sklearn')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_build_replaces_only_a_teacher_that_it_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "build_judge", lambda *_: pytest.fail("the build has begun"))
    (tmp_path / "teacher" / "vae").mkdir(parents=True)
    with pytest.raises(LaddError, match="holds no teacher of an earlier call"):
        build.main(["--out", str(tmp_path)])
    check_replaceable(TEACHER, "teacher")  # the embedded one may be built anew


def test_build_refuses_bad_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LaddError, match=r"build\.json is missing"):
        build.main(["--scores-only", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        build.main(["--teacher-steps", "3"])
    assert stop.value.code == 2
    assert "must be at least 400" in capsys.readouterr().err
