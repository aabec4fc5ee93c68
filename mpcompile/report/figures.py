"""Plotly figures of a report. Imports plotly; colours of text and grid come from the page (see `style`).

Every label stands beside what it labels, so that nothing is read off a legend; hover texts hold the rest.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from mpcompile.contract.front import MeasuredPoint
from mpcompile.report.report import GAINS, Report

BLUE, PALE, ORANGE, GREY = "#2b7bba", "rgba(43, 123, 186, 0.36)", "#d9772b", "#8a929a"
"""Blue and orange differ for every kind of colour vision; all have 3:1 contrast on a white and on a dark page."""
LOG_FROM = 4.0
"""A range whose ends differ by this factor gets a logarithmic axis."""
TICKS = ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5), (1, 1.5, 2, 3, 4, 5, 7), (1, 1.2, 1.4, 1.6, 2, 2.5, 3, 4, 5, 6, 8))
"""Where a decade may have ticks; the first that gives an axis four of them is taken."""
ROW_PX = 30


def draw_waterfall(report: Report) -> go.Figure:
    """From the original's time to the result's: a bar per step, as wide as its factor on a logarithmic axis."""
    figure, before = go.Figure(), 1e3 * report.original_s
    rows = ["original", *report.gains, "result"]
    ends = [before]
    for name, gain in report.gains.items():
        after = before / gain
        low, high = min(before, after), max(before, after)
        figure.add_bar(
            base=[low], x=[high - low], y=[name], orientation="h", width=0.62,
            marker={"color": BLUE if gain >= 1.0 else ORANGE, "line": {"width": 0}},
            hovertemplate=f"<b>{name}</b>: {GAINS.get(name, name)}<br>{before:.2f} ms to {after:.2f} ms, "
            f"{_factor(gain)}<extra></extra>",
        )  # fmt: skip
        figure.add_scatter(
            x=[high], y=[name], mode="text", text=[f" {_factor(gain)}"], textposition="middle right", hoverinfo="skip",
            cliponaxis=False,
        )  # fmt: skip
        before = after
        ends.append(after)
    for row, value in enumerate(ends):
        figure.add_scatter(
            x=[value, value], y=rows[row : row + 2], mode="lines", line={"color": GREY, "width": 1, "dash": "dot"},
            hoverinfo="skip",
        )  # fmt: skip
    _add_end(figure, "original", 1e3 * report.original_s, GREY)
    _add_end(figure, "result", 1e3 * report.measured_s, BLUE)
    figure.update_xaxes(**_time_axis(_widen(ends), "ms per batch", log=True))
    figure.update_yaxes(categoryorder="array", categoryarray=rows[::-1], showgrid=False)
    return _finish(figure, height=44 * len(rows) + 70, left=70, right=88)


def draw_front(report: Report) -> go.Figure:
    """The operating points in time and in accuracy, or agreement without labels, or in time alone without texts."""
    points, chosen = report.operating_points, report.operating_points[report.chosen]
    known = _quality(chosen) is not None
    heights = [100 * (_quality(point) or 0.0) for point in points]
    original_ms, original_height = 1e3 * report.original_s, 100 * (_original_quality(report) or 0.0)
    target_ms = original_ms / report.target_speedup
    low, high = min([*heights, original_height]), max([*heights, original_height])
    space = max(0.08 * (high - low), 0.25)
    low, high = low - 2 * space, high + 3 * space
    figure = go.Figure()
    figure.add_scatter(
        x=[target_ms, target_ms], y=[low, high - space], mode="lines+text", hoverinfo="skip",
        line={"color": GREY, "width": 1, "dash": "dash"},
        text=["", f" asked: {report.target_speedup:g}x"], textposition="middle right",
    )  # fmt: skip
    best = _find_unbeaten(report.operating_points) if known else []
    figure.add_scatter(
        x=[1e3 * point.measured_s for point in best], y=[100 * (_quality(point) or 0.0) for point in best],
        mode="lines", line={"color": PALE, "width": 3, "shape": "hv"}, hoverinfo="skip", name="front",
    )  # fmt: skip
    _add_points(figure, points, [1e3 * point.measured_s for point in points], heights)
    times = [original_ms, target_ms, *(1e3 * point.measured_s for point in points)]
    axis = _time_axis(_widen(times), "ms per batch")
    place = _place(axis, original_ms), original_height
    mark = _Mark("original", GREY, "<b>original</b> as passed in", (0, -20))
    _add_mark(figure, (original_ms, original_height), place, mark)
    place = _place(axis, 1e3 * chosen.measured_s), heights[report.chosen]
    # To the right and below lie only points that this one beats; at the right end there is no room.
    left_end, right_end = axis["range"]
    is_right = place[0] > left_end + 0.75 * (right_end - left_end)
    _mark_chosen(figure, chosen, heights[report.chosen], place, (-30 if is_right else 14, 46))
    figure.update_xaxes(**axis)
    figure.update_yaxes(title=_quality_title(report), range=[low, high], visible=known)
    return _finish(figure, height=360 if known else 200, left=58 if known else 16)


def draw_pyramid(report: Report) -> go.Figure:
    """A bar per layer, as wide as the tokens of a text that runs it; its dark part counts every text asked."""
    names = ["embeddings", *(f"layer {layer.layer + 1}" for layer in report.pyramid)]
    running = [1.0, *(layer.running for layer in report.pyramid)]
    tokens = [float(report.workload["mean_length"]), *(layer.tokens_kept for layer in report.pyramid)]
    leaving = [share - after for share, after in zip(running, [*running[1:], 0.0], strict=True)]
    work = [share * left for share, left in zip(running, tokens, strict=True)]
    hover = [
        f"<b>{name}</b><br>{100 * share:.1f}% of the texts run it<br>{left:.1f} tokens left of each of them"
        f"<br>{part:.1f} tokens per text asked<br>{100 * gone:.1f}% of the texts leave behind it"
        for name, share, left, part, gone in zip(names, running, tokens, work, leaving, strict=True)
    ]
    figure = go.Figure()
    for widths, colour, name in ((tokens, PALE, "per text that runs it"), (work, BLUE, "per text asked")):
        figure.add_bar(
            base=[-width / 2 for width in widths], x=widths, y=names, orientation="h", width=0.78, name=name,
            marker={"color": colour, "line": {"width": 0}}, text=hover, textposition="none",
            hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
    columns = (
        (0.22, "tokens<br>left", [f"{left:.1f}" if left else "-" for left in tokens]),
        (0.75, "texts<br>run it", [f"{100 * share:.0f}%" for share in running]),
    )
    for place, heading, shown in columns:
        figure.add_scatter(
            x=[place] * (len(names) + 1), y=[*names, " "], mode="text", text=[*shown, heading], xaxis="x2",
            hoverinfo="skip", cliponaxis=False,
        )  # fmt: skip
    half = 0.52 * max(tokens)
    hidden = {"showgrid": False, "showticklabels": False}
    figure.update_layout(
        barmode="overlay",
        xaxis={"title": "width of a bar: tokens", "range": [-half, half], "domain": [0.0, 0.6], **hidden},
        xaxis2={"range": [0, 1], "domain": [0.62, 1.0], "anchor": "y", **hidden},
        yaxis={"categoryorder": "array", "categoryarray": [*names, " "], "showgrid": False},
    )
    return _finish(figure, height=ROW_PX * (len(names) + 1) + 80, left=86)


def draw_predicted(report: Report) -> go.Figure:
    """Predicted time of every operating point against measured time."""
    points, chosen = report.operating_points, report.operating_points[report.chosen]
    ends = _widen([1e3 * second for point in points for second in (point.predicted_s, point.measured_s)])
    figure = go.Figure()
    figure.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": GREY, "width": 1}, hoverinfo="skip", name="identity"
    )
    _add_points(
        figure, points, [1e3 * point.measured_s for point in points], [1e3 * point.predicted_s for point in points]
    )
    x_axis, y_axis = _time_axis(ends, "measured, ms per batch"), _time_axis(ends, "predicted, ms per batch")
    place = _place(x_axis, 1e3 * chosen.measured_s), _place(y_axis, 1e3 * chosen.predicted_s)
    away = (-56, -14) if chosen.predicted_s > chosen.measured_s else (-24, 40)  # from the line
    _mark_chosen(figure, chosen, 1e3 * chosen.predicted_s, place, away)
    figure.update_xaxes(**x_axis)
    figure.update_yaxes(**y_axis)
    return _finish(figure, height=360, left=58)


def median_error(points: Sequence[MeasuredPoint]) -> float:
    """Median of |predicted / measured - 1|."""
    return statistics.median(abs(point.predicted_s / point.measured_s - 1.0) for point in points)


def _quality(point: MeasuredPoint) -> float | None:
    return point.agreement if point.accuracy is None else point.accuracy


def _original_quality(report: Report) -> float | None:
    """The original's accuracy on the texts that the front was chosen on; its agreement with itself without labels."""
    point = report.operating_points[report.chosen]
    if point.accuracy is None or point.drop is None:
        return None if point.agreement is None else 1.0
    return point.accuracy + point.drop


def _quality_title(report: Report) -> str:
    labelled = report.operating_points[report.chosen].accuracy is not None
    return "accuracy, %" if labelled else "answers as the original, %"


def _find_unbeaten(points: Sequence[MeasuredPoint]) -> list[MeasuredPoint]:
    """Points that no other one beats on both time and accuracy as measured, fastest first."""
    best: list[MeasuredPoint] = []
    for point in sorted(points, key=lambda point: (point.measured_s, -(_quality(point) or 0.0))):
        if not best or (_quality(point) or 0.0) > (_quality(best[-1]) or 0.0):
            best.append(point)
    return best


def _describe(point: MeasuredPoint) -> str:
    """All facts of a point, for hovering."""
    settings = point.point
    lines = [
        f"{1e3 * point.measured_s:.2f} ms measured, {1e3 * point.predicted_s:.2f} ms predicted",
        f"{point.speedup:.2f}x on the clock, {point.flops_ratio:.2f}x in flops",
        *(f"{100 * value:.2f}% {name}" for name, value in _shares(point)),
        f"{point.mean_exit_layer:.1f} layers on average, exits {settings.describe_exits()}",
        f"keeps {' '.join(f'{ratio:g}' for ratio in settings.keep_ratios) or 'all'}",
    ]
    return "<br>".join(lines)


def _shares(point: MeasuredPoint) -> list[tuple[str, float]]:
    named = (("accuracy", point.accuracy), ("answered as the original", point.agreement))
    return [(name, value) for name, value in named if value is not None]


def _factor(gain: float) -> str:
    if f"{gain:.2f}" == "1.00":
        return "no change"
    return f"{gain:.2f}x faster" if gain >= 1.0 else f"{1 / gain:.2f}x slower"


def _add_end(figure: go.Figure, row: str, value: float, colour: str) -> None:
    """One end of the waterfall: a time, not a step, so a mark without a length."""
    figure.add_scatter(
        x=[value], y=[row], mode="markers+text", marker={"color": colour, "size": 12, "symbol": "diamond"},
        text=[f"  {value:.2f} ms"], textposition="middle right", cliponaxis=False,
        hovertemplate=f"<b>{row}</b>: {value:.2f} ms per batch<extra></extra>",
    )  # fmt: skip


def _add_points(figure: go.Figure, points: Sequence[MeasuredPoint], x: list[float], y: list[float]) -> None:
    figure.add_scatter(
        x=x, y=y, mode="markers", marker={"color": BLUE, "size": 9}, name="operating points",
        text=[_describe(point) for point in points], hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip


def _mark_chosen(
    figure: go.Figure, chosen: MeasuredPoint, y: float, place: tuple[float, float], offset_px: tuple[int, int]
) -> None:
    label, hover = f"<b>chosen, {chosen.speedup:.1f}x</b>", f"<b>chosen</b><br>{_describe(chosen)}"
    _add_mark(figure, (1e3 * chosen.measured_s, y), place, _Mark(label, ORANGE, hover, offset_px))


class _Mark(NamedTuple):
    """A marker's label, colour and hover text, and how far right of and below it the label is, in pixels."""

    label: str
    colour: str
    hover: str
    offset_px: tuple[int, int]


def _add_mark(figure: go.Figure, at: tuple[float, float], place: tuple[float, float], mark: _Mark) -> None:
    """A large marker at (x, y) and a label beside it; `place` is (x, y) for annotations."""
    figure.add_scatter(
        x=at[:1], y=at[1:], mode="markers", marker={"color": mark.colour, "size": 13}, name=mark.label,
        cliponaxis=False, hovertemplate=f"{mark.hover}<extra></extra>",
    )  # fmt: skip
    figure.add_annotation(
        x=place[0], y=place[1], text=mark.label, ax=mark.offset_px[0], ay=mark.offset_px[1], showarrow=True,
        arrowhead=0, arrowwidth=1, arrowcolor=mark.colour, standoff=6,
    )  # fmt: skip


def _place(axis: Mapping[str, Any], value: float) -> float:
    """Where an annotation has to be put: plotly wants the logarithm on a logarithmic axis, but only there."""
    return math.log10(value) if axis.get("type") == "log" else value


def _widen(values: Sequence[float]) -> list[float]:
    """Ends of a range with some space around its values."""
    low, high = min(values), max(values)
    if high / low >= LOG_FROM:
        return [low / (space := (high / low) ** 0.08), high * space]
    space = max(0.08 * (high - low), 0.02 * high)
    return [max(low - space, 0.0), high + space]


def _time_axis(ends: Sequence[float], title: str, log: bool = False) -> dict[str, Any]:
    """Settings of a time axis, logarithmic where the range asks for it."""
    low, high = ends
    if not log and (low <= 0.0 or high / low < LOG_FROM):
        return {"title": title, "range": [low, high]}
    for steps in TICKS:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [tick for decade in decades for step in steps if low <= (tick := step * 10.0**decade) <= high]
        if len(ticks) >= 4:
            break
    labels = [f"{tick:g}" for tick in ticks]
    ends = [math.log10(low), math.log10(high)]
    return {"title": title, "type": "log", "range": ends, "tickvals": ticks, "ticktext": labels}


def _finish(figure: go.Figure, height: int, left: int, right: int = 16) -> go.Figure:
    """The layout that all figures share; the page sets the colours of text and grid."""
    figure.update_layout(
        template="none", height=height, showlegend=False, autosize=True,
        margin={"l": left, "r": right, "t": 8, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif", "size": 13},
        hoverlabel={"bgcolor": "#1f2a36", "bordercolor": "#1f2a36", "font": {"color": "#ffffff", "size": 13}},
        dragmode=False,
    )  # fmt: skip
    figure.update_xaxes(fixedrange=True, zeroline=False, ticks="", title_standoff=12, title_font_size=13)
    figure.update_yaxes(fixedrange=True, zeroline=False, ticks="", title_standoff=8, title_font_size=13)
    return figure
