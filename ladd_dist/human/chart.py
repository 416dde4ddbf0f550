"""The bar chart of preferences as papers show it: win rates in both questions beside each other."""

import textwrap
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ladd_dist.human.trials import QUESTIONS
from ladd_dist.human.win_rates import WinRate
from ladd_dist.report.style import FIGURE, GREY, ORANGE, SLATE

_LOOK = {"quality": ("image quality", SLATE), "alignment": ("prompt alignment", ORANGE)}
_BAR, _LOW, _INK = 0.36, 0.1, "#1c2126"


def draw_win_rates(rates: list[WinRate], raters: int, path: Path) -> None:
    """A bar for each question and pair with its 95% interval, and the line where nobody is preferred."""
    pairs = list(dict.fromkeys((rate.model, rate.rival) for rate in rates))
    with matplotlib.rc_context(FIGURE):
        figure = Figure(
            figsize=(max(4.2, 1.2 + 1.5 * len(pairs)), 4), dpi=170, layout="constrained", facecolor="white"
        )
        axes = figure.subplots()
        for number, question in enumerate(QUESTIONS):
            _bars(axes, [rate for rate in rates if rate.question == question], pairs, (number - 0.5) * _BAR)
        axes.axhline(50, color=GREY, lw=1.2, ls="--")
        axes.set_xticks(range(len(pairs)), [_label(*pair) for pair in pairs])
        axes.set_xlim(-0.6, len(pairs) - 0.4)
        axes.set_ylim(0, 100)
        axes.set_ylabel("preferred (%), ties as half")
        axes.set_title(f"Human preference, {raters} rater{'s' * (raters > 1)}", loc="left", pad=24)
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.1)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6e9ec", lw=0.8)
        axes.tick_params(axis="x", length=0)
        axes.set_axisbelow(True)
        figure.savefig(path)


def _bars(axes: Axes, rates: list[WinRate], pairs: list[tuple[str, str]], shift: float) -> None:
    if not rates:
        return
    label, color = _LOOK[rates[0].question]
    places = [pairs.index((rate.model, rate.rival)) + shift for rate in rates]
    heights = [100 * rate.rate for rate in rates]
    reach = [[100 * (rate.rate - rate.low) for rate in rates], [100 * (rate.high - rate.rate) for rate in rates]]
    axes.bar(places, heights, _BAR, color=color, label=label)
    axes.errorbar(places, heights, reach, fmt="none", ecolor=_INK, elinewidth=1.2, capsize=3, clip_on=False)
    for rate, place in zip(rates, places, strict=True):
        color, shift = ("white", 0.0) if rate.rate > _LOW else (_INK, _BAR / 4)  # on the bar, or beside its interval
        axes.text(place + shift, 2.5, f"{100 * rate.rate:.0f}", color=color, ha="center", fontweight="bold")


def _label(model: str, rival: str) -> str:
    lines = [*textwrap.wrap(model, 16), *textwrap.wrap(f"over {rival}", 16)]
    return "\n".join(lines).replace("$", r"\$")  # which would begin a formula
