"""The page of a run that goes on, by a program of its own: ``python -m ladd_dist.report.live RUN_DIR SECONDS``.

It writes ``RUN_DIR/report/index.html`` from the run's files, then waits for a byte on its standard input, which says
that there is something new, and writes again, no sooner than SECONDS later, and no oftener than takes a tenth of one
core. After the byte `END`, or where the input ends because the training was killed, it writes a last one and ends.
"""

import io
import json
import os
import select
import sys
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path

from PIL import Image

from ladd_dist.config import Config, load
from ladd_dist.methods.registry import method_of
from ladd_dist.report.charts import draw_charts, fit
from ladd_dist.report.evaluations import draw_evaluations
from ladd_dist.report.page import FOLDER, PAGE, curves, facts, heading, put
from ladd_dist.report.series import Rows, departures
from ladd_dist.report.style import data_uri, environment, source_hash
from ladd_dist.training.evaluation import read_evaluations
from ladd_dist.training.page import END
from ladd_dist.training.preview import PREVIEWS, PROMPTS
from ladd_dist.training.tracking import read_metrics

_SMALL, _HIGH = 128, 256
"""Heights in pixels: up to the first, pictures are enlarged as they are, above the second they are reduced."""
_RECENT = 20
"""Rows that the remaining time is reckoned from."""
_SHARE = 0.1
"""Of one core that writing may take."""


@dataclass(frozen=True)
class Strip:
    """The newest samples of one aspect ratio, as a picture in a page."""

    bucket: str
    heading: str
    iteration: int
    prompts: list[str]
    uri: str
    width: int
    height: int


def write_live(run_dir: Path, every: float, going_on: bool) -> Path:
    """Write the page of a run, of which there is at least one row.

    Args:
        every: seconds between two of its reloads while the run is ``going_on``.

    Raises:
        LaddError: if the run's configuration cannot be read.
    """
    config, rows, folder = load(run_dir / "config.yaml"), read_metrics(run_dir), run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    evaluations = [row for row in read_evaluations(run_dir) if row.iteration <= rows[-1]["iteration"]]
    iteration, iterations = rows[-1]["iteration"], config.train.iterations
    pace, templates = _seconds_per_iteration(config, rows), environment()
    script = templates.get_template("live.js").render()
    text = templates.get_template("live.html").render(
        name=run_dir.resolve().name,
        state="training" if going_on else "finished" if iteration >= iterations else "stopped",
        iteration=iteration,
        iterations=iterations,
        left=str(timedelta(seconds=round(pace * (iterations - iteration)))) if going_on else "",
        refresh=max(1, round(every)),
        # Two rows more could have come, and an iteration that also draws previews and writes a checkpoint.
        patience=60 + 3 * (every + pace * config.train.log_every),
        written=datetime.now().astimezone(),
        departures=departures(rows, method_of(config).charts(config)),
        strips=_strips(run_dir, config, iteration),
        facts=facts(config, rows),
        script_hash=source_hash(script),
        **curves(config, draw_charts(rows, config, folder) + draw_evaluations(evaluations, folder)),
    )
    return put(folder / PAGE, text)


def _seconds_per_iteration(config: Config, rows: Rows) -> float:
    speeds = [row["samples_per_second"] for row in rows[-_RECENT:]]
    return config.train.global_batch * sum(1 / speed for speed in speeds) / len(speeds)


def _strips(run_dir: Path, config: Config, iteration: int) -> list[Strip]:
    """Of every bucket the newest picture that is no newer than the rows: a run may have gone back."""
    folders = sorted((run_dir / PREVIEWS).glob("[0-9]" * 8), reverse=True)
    passed = [folder for folder in folders if int(folder.name) <= iteration]
    files = ([folder / f"{bucket}.png" for folder in passed] for bucket in config.synthesis.buckets)
    newest = (next((file for file in of_bucket if file.is_file()), None) for of_bucket in files)
    return [_strip(file, file.stat().st_mtime_ns) for file in newest if file]


@lru_cache(maxsize=64)
def _strip(file: Path, written: int) -> Strip:
    """``written`` tells a file from its successor of the same name."""
    with Image.open(file) as opened:
        picture, prompts = opened.convert("RGB"), json.loads(opened.info[PROMPTS])
    data, small = io.BytesIO(), picture.height <= _SMALL
    if small:
        fit(picture, picture.width * 4, picture.height * 4).save(data, "PNG", optimize=True)
    else:
        picture.thumbnail((picture.width, _HIGH))
        picture.save(data, "WEBP", quality=82)
    uri = data_uri("png" if small else "webp", data.getvalue())
    return Strip(file.stem, heading(file.stem), int(file.parent.name), prompts, uri, *picture.size)


def watch(run_dir: Path, every: float) -> None:
    """Write the page whenever there is something new, until the training ends."""
    going_on = True
    while going_on:
        began, used = time.monotonic(), time.process_time()
        write_live(run_dir, every, going_on)
        going_on = _wait(began + max(every, (time.process_time() - used) / _SHARE))
    write_live(run_dir, every, going_on)


def _wait(until: float) -> bool:
    """Wait for news, at least ``until`` then by the monotonic clock; False, at once, if the training has ended."""
    news = False
    while not news or time.monotonic() < until:
        left = max(0.0, until - time.monotonic()) if news else None
        if select.select([sys.stdin], [], [], left)[0]:
            said = os.read(sys.stdin.fileno(), 4096)
            if not said or END in said:
                return False
            news = True
    return True


if __name__ == "__main__":
    watch(Path(sys.argv[1]), float(sys.argv[2]))
