"""Draw pictures with a distilled student."""

import argparse
import sys
from time import perf_counter

from torch import Tensor

from ladd_dist.checkpoints.lora import open_loras
from ladd_dist.checkpoints.student import load_student, open_checkpoint
from ladd_dist.cli import Launch, parser, run, student_flags
from ladd_dist.config.arguments import as_count, as_path, as_seed, as_text
from ladd_dist.data.buckets import Bucket
from ladd_dist.data.prompts import prompts_of, read_prompts
from ladd_dist.drawing.pictures import open_picture, pixels_of
from ladd_dist.drawing.pipeline import Pipeline, load_backbone, teacher_schedule, tell_cut
from ladd_dist.drawing.requests import Request, check_sizes, given, held_out, sized, times_from
from ladd_dist.drawing.samples import SHEET, draw, student_artist, teacher_artist, write
from ladd_dist.engines.build import compute_dtype
from ladd_dist.errors import LaddError
from ladd_dist.files.folders import check_replaceable, replacing
from ladd_dist.files.places import own_place
from ladd_dist.log import log, progress
from ladd_dist.planning.networks import check_networks
from ladd_dist.training.averages import memory_peaks

_DESCRIPTION = """\
Draw with the student: the given prompts, or some held-out ones of every aspect ratio. Writes PNGs, whose text chunks
say what they were drawn with, and a sheet.

  python launchers/sample.py --config configs/digits.yaml --prompt "a seven next to a two" --size 32x64
  python launchers/sample.py --config configs/digits.yaml --prompts prompts.txt --count 4 --teacher sampling.steps=1
  python launchers/sample.py --config configs/digits.yaml --prompt "a five" --image four.png --from-time 0.5
"""

_STDIN = "-"


def main(launch: Launch) -> None:
    """Draw and write."""
    args, config, world = launch.args, launch.config, launch.world
    _check_flags(args)
    picture = pixels_of(open_picture(args.image))[None] if args.image else None
    requests, times = _requests(launch, picture), times_from(config, args.from_time)
    check_sizes(requests, check_networks(config), args.image)
    if args.teacher:
        teacher_schedule(config)
    tell_cut(config, (request.prompt for request in requests), world)
    out = own_place(config, args.out, "samples")
    check_replaceable(out, "samples")
    checkpoint = open_checkpoint(config, world, args.checkpoint)
    loras = open_loras(args.lora, world, args.weights)
    student = load_student(config, checkpoint, args.weights, compute_dtype(config), loras).to(world.device)
    pipeline, settings = Pipeline(config, world.device), {"checkpoint": checkpoint.path.name, "weights": args.weights}
    if loras:
        settings["adapters"] = ", ".join(f"{lora.name} x {scale:g}" for lora, scale in loras)
    if args.image:
        settings["image"] = args.image.name
    artists = [student_artist(pipeline, student, times, picture, settings)]
    if args.teacher:
        teacher = load_backbone(config.teacher.path, compute_dtype(config), world.device)
        artists.append(teacher_artist(pipeline, teacher, config.synthesis))
    bar = progress("sample", len(requests) * len(artists), unit="img", world=world)
    drawn, speeds = [], list[str]()
    for artist in artists:
        start = perf_counter()
        drawn.append((artist, draw(artist, pipeline, requests, config.sampling.batch, bar.update)))
        speeds.append(f"{len(requests) / (perf_counter() - start):.3g} img/s by the {artist.settings['network']}")
    bar.close()
    peaks = (f"{key}={max(values):.2f}" for key, values in memory_peaks(world).items())
    if world.is_main:
        with replacing(out, "samples") as folder:
            write(folder, requests, drawn)
        made = f"{len(requests)} picture{'s' * (len(requests) > 1)}"
        log(f"times {artists[0].settings['times']}, {checkpoint.path.name}, {made}: {out / SHEET}")
        log(f"{', '.join(speeds)}, from prompt to picture; highest {', '.join(peaks)}")


def _check_flags(args: argparse.Namespace) -> None:
    prompts = args.prompt or args.prompts
    if args.prompt and args.prompts:
        raise LaddError("--prompt and --prompts are two lists of prompts: give one")
    for flag, value in {"--size": args.size, "--count": args.count, "--image": args.image}.items():
        if value is not None and not prompts:
            raise LaddError(f"{flag} is for a --prompt, and none is given: add one, or leave {flag} out")
    if (args.image is None) != (args.from_time is None):
        raise LaddError("--image and --from-time say what to go on from, and where: give both, or neither")
    for flag, value in {"--size": args.size, "--teacher": args.teacher}.items():
        if args.image is not None and value:
            why = "the picture has a size" if flag == "--size" else "the teacher begins with noise"
            raise LaddError(f"{flag} does not go with --image, for {why}: leave one out")


def _requests(launch: Launch, picture: Tensor | None) -> list[Request]:
    args, buckets = launch.args, launch.config.synthesis.buckets
    if args.prompt:
        entries = sized(args.prompt, [Bucket.parse(buckets[0])])
    elif args.prompts == _STDIN:
        entries = prompts_of(sys.stdin.buffer, buckets)
    elif args.prompts:
        entries = read_prompts(args.prompts, buckets)
    else:
        return held_out(launch.config, args.seed)
    sizes = list(map(Bucket.parse, args.size or ())) if picture is None else [Bucket(*picture.shape[-2:])]
    if sizes:
        entries = sized([entry.prompt for entry in entries], sizes)
    return given(entries, args.seed, args.count or 1)


def command_line() -> argparse.ArgumentParser:
    """The launcher's flags."""
    command = parser(_DESCRIPTION)
    command.add_argument("--prompt", type=as_text, action="append", help="what to draw; may be given several times")
    command.add_argument(
        "--prompts", type=_file, metavar="FILE",
        help=f".txt with a prompt in each line, .jsonl as synthesis.prompts, or {_STDIN} for lines of standard input",
    )  # fmt: skip
    command.add_argument(
        "--size",
        action="append",
        metavar="HEIGHTxWIDTH",
        help="picture size in pixels, whichever the networks take: once for every prompt, or one for each in order "
        "(default: the first bucket; of --prompts, their own)",
    )
    command.add_argument("--count", type=as_count, help="pictures of every prompt (default: 1)")
    command.add_argument("--seed", type=as_seed, default=0, help="of the first picture; the next ones count on")
    command.add_argument("--image", type=as_path, metavar="FILE", help="a picture to go on from, in its own size")
    command.add_argument(
        "--from-time", type=float, metavar="TIME", help="the time of the student's that --image is noised to"
    )
    command.add_argument(
        "--teacher", action="store_true",
        help="the guided teacher's pictures as well, by its own schedule and from the same noise",
    )  # fmt: skip
    student_flags(command)
    command.add_argument(
        "--out", type=as_path, metavar="FOLDER",
        help="where to; an earlier call's pictures are replaced (default: RUN_DIR/samples)",
    )  # fmt: skip
    return command


def _file(argument: str) -> str:
    return argument if argument == _STDIN else str(as_path(argument))


if __name__ == "__main__":
    run(command_line(), main)
