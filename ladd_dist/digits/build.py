"""Rebuild the embedded teacher, its prompts and its judge from scikit-learn's scans, in one command.

Everything is determined by the seed (on one machine, with one number of threads). The record of the run
with its scores goes to ``build.json``.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

from ladd_dist.config.arguments import as_path, as_seed
from ladd_dist.digits.build_judge import save_judge, train_judge
from ladd_dist.digits.build_record import Record
from ladd_dist.digits.build_scores import score_judge, score_teacher, score_vae
from ladd_dist.digits.build_t5 import silent_t5
from ladd_dist.digits.build_text import build_tokenizer
from ladd_dist.digits.build_transformer import train_teacher
from ladd_dist.digits.build_vae import train_vae
from ladd_dist.digits.judge import DigitJudge
from ladd_dist.digits.prompts import write_prompts
from ladd_dist.digits.scans import load_part
from ladd_dist.errors import LaddError
from ladd_dist.files.disk import real_path
from ladd_dist.files.folders import check_replaceable, replacing


def at_least(minimum: int) -> Callable[[str], int]:
    """Argument type: an integer of at least ``minimum``."""

    def convert(text: str) -> int:
        if (number := int(text)) < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, not {number}")
        return number

    convert.__name__ = "int"  # argparse names the type in its message for what is no number
    return convert


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(
        prog="python -m ladd_dist.digits.build",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    here = Path(__file__).parent
    out.add_argument("--seed", type=as_seed, default=0, help="seed of every random choice")
    out.add_argument("--out", type=as_path, default=here, help="folder to write to")
    part = out.add_mutually_exclusive_group()
    part.add_argument("--judge-only", action="store_true", help="train the judge and write the prompts, no more")
    part.add_argument("--scores-only", action="store_true", help="score again what was built")
    out.add_argument("--judge-steps", type=at_least(1), default=1500, help="training steps of the judge")
    out.add_argument("--vae-steps", type=at_least(20), default=500, help="training steps of the autoencoder")
    # The first 200 are warm-up and stay out of the averaged weights.
    out.add_argument("--teacher-steps", type=at_least(400), default=8000, help="steps of the transformer")
    out.add_argument("--images", type=at_least(20), default=100, help="images per bucket and score")
    out.add_argument("--threads", type=at_least(1), default=2, help="CPU threads")
    return out


def build_judge(args: argparse.Namespace, record: Record) -> None:
    """Train the judge's feature network on its own part."""
    save_judge(train_judge(load_part("judge"), args.judge_steps, args.seed), args.out / "judge.safetensors")
    record.lap("judge")


def build_teacher(args: argparse.Namespace, record: Record) -> None:
    """Train autoencoder and transformer on the teacher's part and write the folder."""
    scans = load_part("teacher")
    vae = train_vae(scans, args.vae_steps, args.seed)
    record.lap("autoencoder")
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer = build_tokenizer(Path(temporary))
    transformer, encoders, loss = train_teacher(vae, tokenizer, scans, args.teacher_steps, args.seed)
    record.content["parameters"] = sum(p.numel() for p in transformer.parameters())
    record.content["training_loss"] = loss
    record.lap("transformer")
    t5, t5_tokenizer = silent_t5(transformer.config.joint_attention_dim)
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae,
        text_encoder=encoders[0],
        tokenizer=tokenizer,
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizer,
        text_encoder_3=t5,
        tokenizer_3=t5_tokenizer,
    )
    with replacing(_teacher(args), "teacher") as folder:
        pipeline.save_pretrained(folder, safe_serialization=True)


def _teacher(args: argparse.Namespace) -> Path:
    return real_path(args.out / "teacher")


def score_all(args: argparse.Namespace, record: Record) -> None:
    """Score what lies in the output folder, as it will be loaded."""
    judge = DigitJudge(weights=args.out / "judge.safetensors")
    pipeline = StableDiffusion3Pipeline.from_pretrained(args.out / "teacher")
    record.content["judge"] = score_judge(judge)
    record.content["autoencoder"] = score_vae(pipeline.vae, judge)
    record.content["teacher"] = score_teacher(pipeline, judge, args.images, args.seed)
    record.lap("scores")


def main(argv: Sequence[str] | None = None) -> None:
    """Build everything, or only a part of it."""
    args = parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    if not (args.judge_only or args.scores_only):
        check_replaceable(_teacher(args), "teacher")
    args.out.mkdir(parents=True, exist_ok=True)
    write_prompts(args.out / "prompts" / "train.jsonl", args.out / "prompts" / "eval.jsonl")
    record = Record(args)
    if not args.scores_only:
        build_judge(args, record)
    if args.judge_only:
        return
    if args.scores_only:
        record.resume()
    else:
        build_teacher(args, record)
        record.write()
    score_all(args, record)
    record.write()
    print(json.dumps(record.content["teacher"], indent=1))


if __name__ == "__main__":
    try:
        main()
    except LaddError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
