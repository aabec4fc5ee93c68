"""Draws accuracy against time: what was measured on test texts, and the fronts on held-out texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

ALLOWED_POINTS = 0.5


def draw_fronts(tasks: Sequence[dict[str, Any]], path: Path) -> None:
    """A column per task; a row per batch size with the systems on test texts, and at last the fronts on held-out texts.

    Args:
        tasks: as `bench_tasks.py` keeps them.
        path: PNG to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    sizes = sorted({row["batch_size"] for row in tasks[0]["rows"]})
    shape = (len(sizes) + 1, len(tasks))
    figure, axes = pyplot.subplots(
        *shape, figsize=(3.6 * shape[1], 3.2 * shape[0]), squeeze=False, layout="constrained"
    )
    for column, task in enumerate(tasks):
        for line, size in enumerate(sizes):
            _draw_systems(axes[line][column], [row for row in task["rows"] if row["batch_size"] == size])
            axes[line][column].set_title(f"{task['name']}, batch {size}, test texts")
        _draw_held_out(axes[-1][column], task["front"], task["chosen"])
        axes[-1][column].set_title(f"{task['name']}, front on held-out texts")
    for axis in axes.flat:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}x"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.invert_yaxis()
        axis.axhline(ALLOWED_POINTS, color="grey", linewidth=0.8, linestyle="--")
        axis.grid(alpha=0.3, which="both")
        axis.set_xlabel("times as fast as the original")
        axis.set_ylabel("points of accuracy lost")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_systems(axis: Any, rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        marker = "*" if row["system"].startswith("mpcompile") else "o"
        axis.scatter(row["speedup"], 100 * row["drop"], marker=marker, s=90, label=row["system"])


def _draw_held_out(axis: Any, front: list[dict[str, Any]], chosen: dict[str, Any]) -> None:
    ordered = sorted(front, key=lambda row: row["speedup"])
    axis.plot([row["speedup"] for row in ordered], [100 * row["drop"] for row in ordered], marker=".", color="C5")
    axis.scatter(chosen["speedup"], 100 * chosen["drop"], marker="*", s=90, color="C5")
    axis.set_ylim(-1.5, 6.0)
