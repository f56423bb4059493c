"""Draws a plot as SVG."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

if TYPE_CHECKING:
    from pathlib import Path

    from section import Panel, Plot, Series

# Okabe and Ito's palette, which colour-blind readers can tell apart; all of kloop's are blue.
COLOURS = {
    "kloop": "#0072B2",
    "kloop.start_server": "#00304D",
    "kloop, processes": "#8FC1E3",
    "asyncio": "#999999",
    "uvloop": "#E69F00",
    "rloop": "#009E73",
    "rsloop": "#D55E00",
    "zuvloop": "#CC79A7",
    "zloop": "#56B4E9",
    "floor": "#000000",
}
OTHERS = ("#F0E442", "#8C6D31", "#6B6ECF", "#B5CF6B")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "h", "<")

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "kloop",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
}


def write(plot: Plot, path: Path) -> None:
    """Draw `plot`, which is not empty, into `path`; the same data make the same bytes."""
    panels = [panel for panel in plot.panels if not panel.is_empty]
    draw = _bars if plot.kind == "bars" else _lines
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=_size(plot), layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=plot.log_y, squeeze=False)[0]
        colours = _colours(plot)
        for each, panel in zip(axes, panels, strict=True):
            draw(each, panel, colours)
            each.set_title(panel.title)
            each.set_xlabel(panel.x_label)
            each.set_ylabel(panel.y_label)
            if plot.log_y:
                each.set_yscale("log")
                each.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                each.yaxis.set_major_formatter("{x:,.10g}")
                each.yaxis.set_minor_locator(NullLocator())
            elif plot.kind == "bars":
                each.set_ylim(bottom=0)
            if plot.reference is not None:
                each.axhline(plot.reference, color="#000000", linewidth=1, linestyle="--")
        figure.suptitle(plot.title)
        handles: dict[str, Any] = {}
        for each in axes:
            for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside lower center",
            ncols=max(3, int(figure.get_figwidth() / 1.1)),
            frameon=False,
        )
        figure.savefig(path, format="svg", metadata={"Date": None})


def _size(plot: Plot) -> tuple[float, float]:
    if plot.kind == "lines":
        return max(5.0, 3.6 * len(plot.panels)), 4.0
    bars = sum(len(panel.places) * (len(panel.series) + 1.5) for panel in plot.panels)
    return min(13.0, max(6.0, 1.5 + 0.14 * bars)), 4.2


def _colours(plot: Plot) -> dict[str, str]:
    names = list(dict.fromkeys(series.name for panel in plot.panels for series in panel.series))
    others = iter(OTHERS * len(names))
    return {name: COLOURS.get(name) or next(others) for name in names}


def _bars(axes: Any, panel: Panel, colours: dict[str, str]) -> None:
    width = 0.85 / max(1, len(panel.series))
    # The bars at each place, without gaps.
    groups = [
        [series.name for series in panel.series if series.values[place] is not None]
        for place in range(len(panel.places))
    ]
    for series in panel.series:
        here = [index for index, value in enumerate(series.values) if value is not None]
        axes.bar(
            [
                place + (groups[place].index(series.name) - (len(groups[place]) - 1) / 2) * width
                for place in here
            ],
            [series.values[index] for index in here],
            width,
            label=series.name,
            color=colours[series.name],
            yerr=_errors(series, here),
            error_kw={"elinewidth": 0.7, "ecolor": "#333333"},
        )
    axes.set_xticks(range(len(panel.places)), panel.places)
    if max(map(len, panel.places), default=0) > 12:
        axes.tick_params(axis="x", rotation=25)
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")
    axes.set_xlim(-0.6, len(panel.places) - 0.4)
    axes.tick_params(axis="x", length=0)


def _lines(axes: Any, panel: Panel, colours: dict[str, str]) -> None:
    # Places are evenly spaced, as for a logarithmic axis with 1, 10, 100.
    for number, series in enumerate(panel.series):
        here = [index for index, value in enumerate(series.values) if value is not None]
        axes.errorbar(
            here,
            [series.values[index] for index in here],
            yerr=_errors(series, here),
            label=series.name,
            color=colours[series.name],
            marker=MARKERS[number % len(MARKERS)],
            markersize=5 if series.name != "kloop" else 7,
            linewidth=1.2 if series.name != "kloop" else 2.2,
            linestyle="--" if series.name == "floor" else "-",
            elinewidth=0.7,
        )
    axes.set_xticks(range(len(panel.places)), panel.places)


def _errors(series: Series, here: list[int]) -> list[list[float]] | None:
    if not series.lower or not series.upper:
        return None
    below, above = [], []
    for index in here:
        value, low, high = series.values[index], series.lower[index], series.upper[index]
        assert value is not None
        below.append(0.0 if low is None else max(0.0, value - low))
        above.append(0.0 if high is None else max(0.0, high - value))
    return [below, above]
