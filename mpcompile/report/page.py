"""report.html: a report as one page that loads nothing. Needs plotly, which it imports only when it draws."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpcompile.report.report import Report
from mpcompile.report.style import SCRIPT, STYLE
from mpcompile.report.words import render_samples

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

PAGE = "report.html"
"""Name of the page in an artifact."""

_NO_TEXTS = (
    "No texts were given: no exits were trained, what pruning costs in accuracy is unknown, "
    "and there are no words to show."
)
_OLD = "This report was written by a version of mpcompile that did not record it. Optimize again to see it."


def find_missing_maybe() -> str | None:
    """What has to be installed before a page can be drawn, None when nothing is missing."""
    if importlib.util.find_spec("plotly") is not None:
        return None
    return "plotly, which draws the figures, is not installed: pip install mpcompile[build]"


def write_page_maybe(path: Path, report: Report) -> str | None:
    """Writes the report as a page in the place of an older one; says why where none can be drawn.

    No page is better than that of another artifact, so that an older one goes in any case.
    """
    path.unlink(missing_ok=True)
    missing = find_missing_maybe()
    if missing is not None:
        return f"{path.name} was left out: {missing}"
    path.write_text(render_page(report), "utf-8")
    return None


def render_page(report: Report) -> str:
    """The whole page as HTML; everything in it comes from the report.

    Its policy forbids the browser to load anything and to run any script but the two that are hashed in it, so
    that no text of a report can be more than text.
    """
    from plotly.offline import get_plotlyjs

    scripts = (get_plotlyjs(), SCRIPT)
    hashes = " ".join(f"'sha256-{_hash(script)}'" for script in scripts)
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {hashes}; base-uri 'none'"
    name = escape(str(report.model.get("name", "model")))
    sections = (_render_notes, _render_pictures, _render_front_table, _render_words, _render_facts)
    body = "\n".join(section(report) for section in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}, {report.measured_speedup:.1f}x faster</title>
<style>{STYLE}</style>
</head>
<body>
<main>
{_render_header(report, name)}
{body}
<footer>This page holds everything that it shows and loads nothing.</footer>
</main>
<script>{scripts[0]}</script>
<script>{scripts[1]}</script>
</body>
</html>
"""


@dataclass(frozen=True)
class _Picture:
    """A figure with its words; the caption is HTML."""

    name: str
    title: str
    caption: str
    figure: Figure | None


def _render_pictures(report: Report) -> str:
    return f'<div class="figures">{"".join(map(_render_picture, _pictures(report)))}</div>'


def _pictures(report: Report) -> tuple[_Picture, ...]:
    from mpcompile.report import figures

    factors = " &times; ".join(f"{gain:.2f}" for gain in report.gains.values())
    has_texts = report.agreement is not None
    error = 100 * figures.median_error(report.operating_points)
    return (
        _Picture(
            "waterfall",
            "Where the speed comes from",
            f"Each step divides the time by its factor: {factors} = {report.measured_speedup:.2f}. "
            "The scale is logarithmic, so that equal factors are equally wide.",
            figures.draw_waterfall(report),
        ),
        _Picture(
            "pyramid",
            "The pyramid",
            _describe_pyramid(report) if report.pyramid else _OLD,
            figures.draw_pyramid(report) if report.pyramid else None,
        ),
        _Picture(
            "front",
            "Time against accuracy" if has_texts else "Time of the operating points",
            "Operating points on the texts that they were chosen on; the line joins those that no other one beats on "
            "both."
            if has_texts
            else "No texts were given, so that the accuracy is unknown and there is no axis for it.",
            figures.draw_front(report),
        ),
        _Picture(
            "predicted",
            f"Predicted against measured: median error {error:.0f}%",
            "Operating points are searched with the times that the cost model predicts, and chosen by the measured "
            "ones. On the line both are equal.",
            figures.draw_predicted(report),
        ),
    )


def _describe_pyramid(report: Report) -> str:
    start = "Texts enter" if report.agreement is not None else "Requests of random tokens enter"
    return (
        f"{start} at the bottom. A bar is as wide as the tokens left of a text that runs the layer; the dark part is "
        "what is left per text asked."
    )


def _render_picture(picture: _Picture) -> str:
    head = f"<figure><h2>{picture.title}</h2><p class='caption'>{picture.caption}</p>"
    if picture.figure is None:
        return f"{head}</figure>"
    return (
        f'{head}<div class="plot" id="{picture.name}"></div>'
        f'<script type="application/json" id="{picture.name}-data">{_embed(picture.figure.to_json())}</script></figure>'
    )


def _embed(text: str) -> str:
    """JSON that cannot end the script element which it stands in."""
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _render_header(report: Report, name: str) -> str:
    size = report.workload["batch_size"]
    times = f"per batch of {size}; original {1e3 * report.original_s:.2f} ms"
    tiles = [
        ("speed", f"{report.measured_speedup:.2f}x", f"asked: {report.target_speedup:g}x, measured"),
        ("time", f"{1e3 * report.measured_s:.2f} ms", times),
        _quality_tile(report),
    ]
    if report.certified_drop is not None:
        confidence = f"points, with {100 * report.confidence:g}% confidence, on texts like those given"
        tiles.append(("lost at most", f"{100 * report.certified_drop:.2f}", confidence))
    shown = "".join(
        f'<div class="tile"><span class="name">{escape(title)}</span><b>{escape(value)}</b>'
        f"<small>{escape(detail)}</small></div>"
        for title, value, detail in tiles
    )
    layers = f"{report.model['num_layers']} encoder layers, " if "num_layers" in report.model else ""
    machine = " ".join(str(report.machine[key]) for key in ("backend", "precision") if key in report.machine)
    lead = escape(f"{layers}compiled for {machine}")
    return f'<h1>{name}</h1><p class="lead">{lead}</p><div class="tiles">{shown}</div>'


def _quality_tile(report: Report) -> tuple[str, str, str]:
    if report.agreement is None:
        return "accuracy", "unknown", "no texts were given, so nothing was checked"
    if report.accuracy is None or report.original_accuracy is None:
        why = "without labels" if report.task.has_classes else report.task.describe_agreement()
        return "answers as the original", f"{100 * report.agreement:.2f}%", f"of {report.measured_on}, {why}"
    detail = f"original {100 * report.original_accuracy:.2f}%, on {report.measured_on}"
    return "accuracy", f"{100 * report.accuracy:.2f}%", detail


def _render_notes(report: Report) -> str:
    """Warnings, then notes."""
    return "".join(
        f'<aside class="{name}"><ul>{"".join(f"<li>{escape(said)}</li>" for said in lines)}</ul></aside>'
        for name, lines in (("warnings", report.warnings), ("notes", report.notes))
        if lines
    )


def _render_front_table(report: Report) -> str:
    names = ("speedup", "ms", "predicted ms", "flops", "accuracy %", "as original %", "layers", "exits", "keeps")
    rows = []
    for i, row in sorted(enumerate(report.operating_points), key=lambda item: item[1].speedup):
        point = row.point
        cells = (
            f"{row.speedup:.2f}x",
            f"{1e3 * row.measured_s:.2f}",
            f"{1e3 * row.predicted_s:.2f}",
            f"{row.flops_ratio:.1f}x",
            _percent(row.accuracy),
            _percent(row.agreement),
            f"{row.mean_exit_layer:.1f}",
            point.describe_exits(),
            " ".join(f"{ratio:g}" for ratio in point.keep_ratios) or "all",
        )
        marked = ' class="chosen"' if i == report.chosen else ""
        rows.append(f"<tr{marked}>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    head = "".join(f"<th>{name}</th>" for name in names)
    return (
        "<details><summary>All operating points as a table</summary>"
        f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div></details>'
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _render_words(report: Report) -> str:
    if not report.samples:
        reason = _NO_TEXTS if report.agreement is None else _OLD
        return f'<section><h2>What the model still reads</h2><p class="caption">{reason}</p></section>'
    caption = (
        "Some of the texts that nothing was chosen on, as many from each exit; one that is answered differently than "
        "by the original is among them wherever there was one. A layer <mark>keeps</mark> some words and "
        "<del>drops</del> others; a dot stands for those dropped before."
    )
    samples = render_samples(report.samples, report.model["num_layers"])
    return (
        f'<section><h2>What the model still reads</h2><p class="caption">{caption}</p>'
        f'<div class="samples">{samples}</div></section>'
    )


def _render_facts(report: Report) -> str:
    workload = {key: f"{value:.1f}" if isinstance(value, float) else value for key, value in report.workload.items()}
    asked = {} if report.max_drop is None else {"max_drop": f"{100 * report.max_drop:g} points"}
    return f"<section><h2>How it was measured</h2>{_render_list({**workload, **asked, **report.machine})}</section>"


def _render_list(facts: Mapping[str, Any]) -> str:
    items = (f"<dt>{escape(key.replace('_', ' '))}</dt><dd>{escape(str(value))}</dd>" for key, value in facts.items())
    return f"<dl>{''.join(items)}</dl>"
