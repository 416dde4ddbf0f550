"""The run report: one self-contained page, and its figures as files beside it."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from ladd_dist.config import Config
from ladd_dist.data.buckets import Bucket
from ladd_dist.evaluation.results import Measures, Results
from ladd_dist.evaluation.table import columns, percent, scores, spread
from ladd_dist.methods.registry import method_of
from ladd_dist.models.start import Start
from ladd_dist.report.charts import draw_charts, draw_comparison, fit
from ladd_dist.report.evaluations import CHART as EVALUATIONS
from ladd_dist.report.evaluations import draw_evaluations
from ladd_dist.report.record import Record, read_record
from ladd_dist.report.series import Rows
from ladd_dist.report.style import data_uri, environment
from ladd_dist.training.evaluation import read_evaluations
from ladd_dist.training.tracking import SPEED

FOLDER, PAGE = "report", "index.html"
_SMALL, _THUMBNAIL = 128, 256
"""Longest sides in pixels: up to the first a picture is enlarged as it is, above the second it is reduced."""
_SHAPES = {-1: "Portrait", 0: "Square", 1: "Landscape"}

MeasuredSet = tuple[str, str, dict[str, str]]
"""Label and role of a set, and its numbers by name."""


def write_report(run_dir: str | Path) -> Path:
    """Write ``RUN_DIR/report/``: ``index.html`` and its figures as PNG.

    Returns:
        The page.

    Raises:
        LaddError: if something is missing, naming the file and the launcher that writes it.
    """
    record = read_record(Path(run_dir))
    folder = record.folder / FOLDER
    folder.mkdir(exist_ok=True)
    draw_comparison(record.results.sets, record.blocks).save(folder / "comparison.png", optimize=True)
    charts = draw_charts(record.rows, record.config, folder)
    charts += draw_evaluations(read_evaluations(run_dir), folder)
    return put(folder / PAGE, _render(record, charts))


def put(page: Path, text: str) -> Path:
    """Write a page in one go: whoever opens it sees the earlier one or this one."""
    written = page.with_name(f".{page.name}")
    written.write_text(text, encoding="utf-8")
    return written.replace(page)


def _render(record: Record, charts: list[Path]) -> str:
    templates, results = environment(), record.results
    formats: dict[str, Callable] = {"percent": percent, "seconds": _seconds, "picture": _picture_uri}
    templates.filters |= formats
    return templates.get_template("report.html").render(
        name=record.folder.resolve().name,
        conclusion=conclusion(results),
        highlights=_highlights(results),
        results=results,
        scored=[(scored, scores(results, scored)) for scored in results.sets],
        measures=_measures(results),
        blocks=[(heading(block.bucket), block) for block in record.blocks],
        facts=[
            *facts(record.config, record.rows),
            ("Evaluated checkpoint", f"{results.checkpoint}, {results.weights} weights"),
        ],
        **curves(record.config, charts),
    )


def curves(config: Config, paths: list[Path]) -> dict[str, Any]:
    """What ``curves.html`` shows of the figures by `draw_charts` and `draw_evaluations`."""
    known = {chart.name: chart for chart in (*method_of(config).charts(config), EVALUATIONS)}
    files = {path.stem: path for path in paths}
    pictures = {name: data_uri("png", path.read_bytes()) for name, path in files.items()}
    return {"speed": pictures[SPEED], "charts": [(known[name], pictures[name]) for name in pictures if name in known]}


def conclusion(results: Results) -> str:
    """The outcome in one sentence."""
    student, rival, (ours, guided) = results.student, results.undistilled, _both(results)
    of, excess, ratio = _excess(results), student.measures.main.excess, student.measures.main.ratio
    text = f"In {_steps(student.steps)} the student's {of} is {excess.value:.3g}"
    if rival:
        base = rival.measures.main.excess
        if ratio is None:
            text += f", which has no ratio to the undistilled teacher's {base.value:.3g}"
        else:
            nearer = "nearer to" if ratio.value < 1 else "no nearer to"
            text = (
                f"In {_steps(student.steps)} the student comes {nearer} the guided teacher than the undistilled "
                f"teacher does in as many: its {of} is {excess.value:.3g} against {base.value:.3g} "
                f"({ratio.value:.2f}x)"
            )
    if not ours:
        return text + "."
    return f"{text}, and {ours} of its pictures show what the prompt asks for, {guided} of the guided teacher's."


def _excess(results: Results) -> str:
    return "kernel distance" if results.guided.measures.main.fd is None else "excess Fréchet distance"


def _both(results: Results) -> tuple[str, str]:
    """The shares of prompts that can be read from student and guided teacher, empty without a judge who reads."""
    return percent(results.student.measures.read), percent(results.guided.measures.read)


def _measures(results: Results) -> list[tuple[str, list[MeasuredSet]]]:
    """What was measured of all pictures and of each bucket's, under headings."""
    tables = {"All pictures": [(s, s.measures) for s in results.sets]}
    for bucket in results.buckets:
        tables[bucket.replace("x", " x ")] = [(s, s.measures_by_bucket[bucket]) for s in results.sets]
    found = [columns(measures) for rows in tables.values() for _, measures in rows]
    names = [name for name in found[0] if any(of[name] for of in found)]

    def shown(measures: Measures) -> dict[str, str]:
        return {name: spread(columns(measures)[name]) for name in names}

    return [(heading, [(s.label, s.role, shown(of)) for s, of in rows]) for heading, rows in tables.items()]


def _highlights(results: Results) -> list[tuple[str, str]]:
    """Number and caption of each card."""
    student, guided, (ours, theirs) = results.student, results.guided, _both(results)
    cards = []
    if (ratio := student.measures.main.ratio) is not None:
        caption = f"the undistilled teacher's {_excess(results)}, both at {_steps(student.steps)}"
        cards.append((f"{ratio.value:.2f}x", caption))
    if ours:
        cards.append((ours, f"prompts read right from the student; {theirs} from the guided teacher"))
    if student.seconds_per_image > 0:
        caption = f"as fast as the guided teacher: {_seconds(student.seconds_per_image)} instead of "
        speedup = guided.seconds_per_image / student.seconds_per_image
        cards.append((f"{speedup:.1f}x", caption + f"{_seconds(guided.seconds_per_image)} s per image"))
    return cards


def facts(config: Config, rows: Rows) -> list[tuple[str, str]]:
    """The run's settings and size in words."""
    train, last = config.train, rows[-1]
    share = f"{train.micro_batch:,} per rank and pass" if train.micro_batch else "each rank's share in one pass"
    found = [
        ("Iterations", f"{last['iteration']:,} of {train.iterations:,}"),
        ("Global batch", f"{train.global_batch:,} samples, {share}"),
        ("Engine", f"{config.engine}, {train.precision}"),
        ("Student learning rate", f"{config.student_optimizer.lr:g}, {config.student_optimizer.decay}"),
        ("Student times", ", ".join(f"{time:g}" for time in config.method.student_times)),
        *method_of(config).facts(config).items(),
        ("Seed", f"{config.seed}"),
        ("Teacher", config.teacher.path),
        ("Student started from", _start(config)),
    ]
    for key, name in (("host_memory_gib", "Peak host memory"), ("gpu_memory_gib", "Peak GPU memory")):
        if key in last:
            found.append((name, f"{max(last[key]):.1f} GiB on the fullest rank"))
    return found


def _start(config: Config) -> str:
    folder, kept = config.student.path or "the teacher", Start.of(config).kept
    return f"{kept} of {folder}" if kept else folder


def heading(bucket: str) -> str:
    """An aspect ratio in words."""
    size = Bucket.parse(bucket)
    shape = _SHAPES[(size.width > size.height) - (size.width < size.height)]
    return f"{shape}: {size.height} px high, {size.width} px wide"


def _picture_uri(path: Path) -> str:
    """The picture inlined: enlarged without loss where it is tiny, reduced where it is large."""
    with Image.open(path) as opened:
        picture, data = opened.convert("RGB"), io.BytesIO()
    if max(picture.size) > _SMALL:
        picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
        picture.save(data, "WEBP", quality=82)
        return data_uri("webp", data.getvalue())
    fit(picture, picture.width * 4, picture.height * 4).save(data, "PNG", optimize=True)
    return data_uri("png", data.getvalue())


def _steps(count: int) -> str:
    return f"{count} step{'s' * (count > 1)}"


def _seconds(seconds: float) -> str:
    """Three significant digits without an exponent."""
    return f"{seconds:.2f}" if seconds >= 1 else f"{seconds:#.2g}" if seconds >= 1e-4 else f"{seconds:.6f}"
