"""The report's figures: curves of a run by matplotlib, and the side-by-side picture by Pillow.

Teacher and real pictures are slate, student and fakes are orange, in every figure and on the page.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from ladd_dist.config import Config
from ladd_dist.evaluation.results import SetResult
from ladd_dist.methods.base import rate_key
from ladd_dist.methods.charts import Chart, Curve, Panel
from ladd_dist.methods.registry import method_of
from ladd_dist.report.series import Rows, entries, running_mean, series, thin
from ladd_dist.report.style import FIGURE, GREY, ORANGE, SLATE
from ladd_dist.training.tracking import SPEED

_GREEN = "#2f855a"
_LINES = ("-", "--", ":")
COLORS = {"student": ORANGE, "data": SLATE, "other": GREY}
_DEPTHS = LinearSegmentedColormap.from_list("depths", matplotlib.colormaps["viridis"](np.linspace(0, 0.88, 64)))


def draw_charts(rows: Rows, config: Config, folder: Path) -> list[Path]:
    """Write the method's charts and ``speed.png``, two panels each; those that an older version's rows lack are not.

    Args:
        rows: of ``metrics.jsonl``, at least one.
    """
    method = method_of(config)
    figures: dict[str, Callable[[Axes, Axes], None]] = {
        chart.name: partial(_draw_chart, rows, config, chart)
        for chart in method.charts(config)
        if _has(rows, chart.top)
    }
    figures[SPEED] = partial(_speed, rows, [rate_key(section) for section in method.OPTIMIZERS.values()])
    paths = []
    with matplotlib.rc_context(FIGURE):
        for name, draw in figures.items():
            figure = Figure(figsize=(6.4, 5), dpi=170, layout="constrained", facecolor="white")
            top, bottom = figure.subplots(2, 1, sharex=True)
            draw(top, bottom)
            finish(top, bottom)
            _mark(top, bottom, rows, method.milestones(config))
            paths.append(folder / f"{name}.png")
            figure.savefig(paths[-1])
    return paths


def _draw_chart(rows: Rows, config: Config, chart: Chart, top: Axes, bottom: Axes) -> None:
    for axes, panel in zip((top, bottom), chart.panels, strict=True):
        axes.set_title(panel.title, loc="left")
        recorded = [curve for curve in panel.curves if _recorded(rows, curve)]
        for curve, style in zip(recorded, cycle(_LINES), strict=False):
            if panel.by_block:
                _curves_by_block(axes, rows, curve, style)
            else:
                _curve(axes, rows, curve.metric, COLORS[curve.of], curve.label, curve.scale)
        _scale(axes, panel, rows)
    if chart.top.by_block:
        count = entries(rows, chart.top.curves[0].metric)
        _depth_bar(list(method_of(config).blocks(config) or range(count)), top, bottom)


def _has(rows: Rows, panel: Panel) -> bool:
    return any(_recorded(rows, curve) for curve in panel.curves)


def _recorded(rows: Rows, curve: Curve) -> bool:
    return any(curve.metric in row for row in rows)


def _scale(axes: Axes, panel: Panel, rows: Rows) -> None:
    if panel.level:
        axes.axhline(panel.level[0], color=GREY, lw=1, ls="--", label=panel.level[1])
    if panel.band:
        axes.axhspan(panel.band.low, panel.band.high, color=_GREEN, alpha=0.1, lw=0, zorder=0)
    if panel.level or any(curve.label for curve in panel.curves):
        _legend(axes)
    # A metric that is off is zero throughout, which has no logarithm.
    if panel.log and any(row.get(curve.metric) for curve in panel.curves for row in rows):
        axes.set_yscale("log")
    if panel.percent:
        axes.set_ylim(0, 102)


def _curves_by_block(axes: Axes, rows: Rows, curve: Curve, style: str) -> None:
    count = entries(rows, curve.metric)
    for entry in range(count):
        x, y = series(rows, curve.metric, entry)
        color, width = _DEPTHS(entry / max(1, count - 1)), 1.6 if count <= 8 else 0.8
        axes.plot(*thin(x, running_mean(y)), style, color=color, lw=width, marker=_dot(x))
    axes.plot([], [], style, color=GREY, label=curve.label)


def _depth_bar(blocks: list[int], top: Axes, bottom: Axes) -> None:
    """Which colour is which transformer block, for 4 curves as for 38."""
    shades = ScalarMappable(Normalize(-0.5, len(blocks) - 0.5), _DEPTHS.resampled(len(blocks)))
    bar = top.get_figure(root=True).colorbar(shades, ax=[top, bottom], aspect=45, pad=0.02)  # type: ignore[union-attr]
    named = range(0, len(blocks), math.ceil(len(blocks) / 10))
    bar.set_ticks(list(named), labels=[str(blocks[i]) for i in named])
    bar.set_label("transformer block")
    bar.outline.set_visible(False)


def _speed(rows: Rows, rates: list[str], top: Axes, bottom: Axes) -> None:
    top.set_title("Training speed (samples per second, all ranks)", loc="left")
    _curve(top, rows, "samples_per_second", SLATE)
    top.set_ylim(bottom=0)
    bottom.set_title("Learning rate", loc="left")
    for key, color in zip(rates, (ORANGE, SLATE, GREY), strict=False):
        x, y = series(rows, key)
        bottom.plot(*thin(x, y), color=color, lw=1.8, label=key.removesuffix("_lr"), marker=_dot(x))
    bottom.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    _legend(bottom)


def _curve(axes: Axes, rows: Rows, key: str, color: str, label: str | None = None, scale: float = 1) -> None:
    """The recorded values faintly and their running mean on top."""
    x, y = series(rows, key)
    axes.plot(*thin(x, y * scale), color=color, alpha=0.25, lw=1)
    axes.plot(*thin(x, running_mean(y) * scale), color=color, lw=1.8, label=label, marker=_dot(x))


def _legend(axes: Axes) -> None:
    """Beside the title, where it hides no curve."""
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.98), ncols=4, borderaxespad=0)


def _dot(x: np.ndarray) -> str:
    """A marker where a line of one point would not show."""
    return "o" if len(x) == 1 else ""


def finish(top: Axes, bottom: Axes) -> None:
    """What all figures over iterations share."""
    bottom.set_xlabel("iteration")
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e6e9ec", lw=0.8)
        axes.set_axisbelow(True)


def _mark(top: Axes, bottom: Axes, rows: Rows, milestones: Mapping[int, str]) -> None:
    place: dict[str, Any] = {"xytext": (3, 3), "textcoords": "offset points", "fontsize": 8.5, "color": GREY}
    for iteration, label in milestones.items():
        if 0 < iteration < rows[-1]["iteration"]:
            top.axvline(iteration, color=GREY, lw=1, ls=":")
            bottom.axvline(iteration, color=GREY, lw=1, ls=":")
            bottom.annotate(label, (iteration, 0), xycoords=("data", "axes fraction"), **place)


@dataclass(frozen=True)
class Block:
    """The pictures of one aspect ratio: ``pictures[i][j]`` is set i's file for prompt j."""

    bucket: str
    prompts: list[str]
    pictures: list[list[Path]]

    @property
    def aspect(self) -> float:
        """Width over height."""
        height, width = map(int, self.bucket.split("x"))
        return width / height


_ROW, _GAP, _BLOCK_GAP, _MARGIN, _LABELS, _LINE = 128, 8, 28, 24, 150, 19
_NARROWEST = 116
"""Columns are no narrower than this, for their prompts."""
_PICTURES_WIDTH = 1280
"""Roughly, over all blocks."""


@dataclass(frozen=True)
class _Column:
    """One prompt of the side-by-side picture; ``title`` stands above the first of a block."""

    left: int
    width: int
    title: str
    prompt: str
    files: list[Path]


def draw_comparison(sets: Sequence[SetResult], blocks: list[Block]) -> Image.Image:
    """The side-by-side picture: a row per set, up to three aspect ratios beside each other."""
    columns = _lay_out(_squarest_widest_tallest(blocks))
    top = _MARGIN + _LINE * (3 + max(column.prompt.count("\n") for column in columns))
    right, bottom = columns[-1].left + columns[-1].width, top + len(sets) * (_ROW + _GAP) - _GAP
    canvas = Image.new("RGB", (right + _MARGIN, bottom + _MARGIN), "white")
    for row, drawn in enumerate(sets):
        color = ORANGE if drawn.role == "student" else SLATE
        _draw_label(canvas, top + row * (_ROW + _GAP), drawn.label, color)
    for column in columns:
        _draw_column(canvas, top, column)
    return canvas


def _lay_out(blocks: list[Block]) -> list[_Column]:
    """Give every block about the same width."""
    left, columns = _MARGIN + _LABELS, []
    for block in blocks:
        width = max(_NARROWEST, round(_ROW * block.aspect))
        fitting = max(1, round(_PICTURES_WIDTH / len(blocks) / (width + _GAP)))
        for j, prompt in enumerate(block.prompts[:fitting]):
            title = "" if j else f"{block.bucket.replace('x', ' x ')} px"
            files = [of_set[j] for of_set in block.pictures]
            columns.append(_Column(left, width, title, _wrap(prompt, _font(15), width, lines=3), files))
            left += width + _GAP
        left += _BLOCK_GAP
    return columns


def fit(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Scale into a box. Enlarged pixels keep their edges, so that a small picture can be judged."""
    scale = min(width / picture.width, height / picture.height)
    if scale > 1:
        whole = math.ceil(scale)
        picture = picture.resize((picture.width * whole, picture.height * whole), Image.Resampling.NEAREST)
        scale /= whole
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _squarest_widest_tallest(blocks: list[Block]) -> list[Block]:
    squarest = min(blocks, key=lambda block: abs(math.log(block.aspect)))
    by_aspect = sorted(blocks, key=lambda block: block.aspect)
    chosen = [squarest, by_aspect[-1], by_aspect[0]]
    return [block for i, block in enumerate(chosen) if block not in chosen[:i]]


def _draw_label(canvas: Image.Image, top: int, label: str, color: str) -> None:
    draw, font = ImageDraw.Draw(canvas), _font(18)
    draw.rectangle((_MARGIN, top, _MARGIN + 3, top + _ROW - 1), fill=color)
    text = "\n".join(_wrap(part, font, _LABELS - 28, lines=2) for part in label.split(", "))
    draw.multiline_text((_MARGIN + 16, top + _ROW / 2), text, color, font, anchor="lm", spacing=6)


def _draw_column(canvas: Image.Image, top: int, column: _Column) -> None:
    draw, middle = ImageDraw.Draw(canvas), column.left + column.width / 2
    draw.text((column.left, _MARGIN), column.title, GREY, _font(15, bold=True))
    draw.multiline_text((middle, top - 9), column.prompt, "#1c2126", _font(15), anchor="md", align="center")
    for row, file in enumerate(column.files):
        with Image.open(file) as opened:
            picture = fit(opened.convert("RGB"), column.width, _ROW)
        y = top + row * (_ROW + _GAP) + (_ROW - picture.height) // 2
        canvas.paste(picture, (round(middle - picture.width / 2), y))


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font that matplotlib ships: the same on every machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: float, lines: int) -> str:
    """Break between words; what does not fit ends in an ellipsis."""
    result = [""]
    for word in text.split():
        longer = f"{result[-1]} {word}".strip()
        if font.getlength(longer) <= width or not result[-1]:
            result[-1] = longer
        else:
            result.append(word)
    if len(result) > lines:
        result = [*result[: lines - 1], f"{result[lines - 1]} …"]
    return "\n".join(_cut(line, font, width) for line in result)


def _cut(line: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    while font.getlength(line) > width:
        line = line.rstrip(" …")[:-1] + "…"
    return line
