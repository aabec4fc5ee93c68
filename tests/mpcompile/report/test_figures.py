"""Tests of the figures: the numbers that they draw are those of the report."""

import dataclasses
from typing import Any

import pytest

pytest.importorskip("plotly", reason="plotly draws the figures")

from mpcompile.report.figures import BLUE, ORANGE, draw_front, draw_predicted, draw_pyramid, draw_waterfall
from mpcompile.report.figures import median_error as find_median_error
from mpcompile.report.report import Report


def find_trace(figure: Any, name: str) -> Any:
    return next(trace for trace in figure.data if trace.name is not None and name in trace.name)


def steps(report: Report) -> list[tuple[str, float, float, str]]:
    """Name, ends in ms and colour of each step of the waterfall."""
    bars = [trace for trace in draw_waterfall(report).data if trace.type == "bar"]
    return [(bar.y[0], bar.base[0], bar.base[0] + bar.x[0], bar.marker.color) for bar in bars]


def texts(figure: Any) -> list[str]:
    """All that is written in a figure."""
    traces = [trace for trace in figure.data if trace.type == "scatter" and "text" in trace.mode]
    inside = [text.strip() for trace in traces for text in trace.text]
    return inside + [annotation.text for annotation in figure.layout.annotations]


# ---------------------------------------------------------------------------------- where the speed comes from


def test_each_step_starts_where_the_one_before_ended(report: Report) -> None:
    found = {name: (low, high) for name, low, high, _ in steps(report)}
    assert found["engine"] == pytest.approx((6.4, 8.0))
    assert found["exits"] == pytest.approx((4.0, 6.4))
    assert found["pruning"] == pytest.approx((4.0, 4.0))


def test_each_step_is_labelled_with_its_factor(report: Report) -> None:
    assert {"1.25x faster", "1.60x faster", "no change", "8.00 ms", "4.00 ms"} <= set(texts(draw_waterfall(report)))


def test_a_step_that_costs_time_is_another_colour(report: Report) -> None:
    slower = dataclasses.replace(report, gains={"engine": 2.5, "exits": 1.0, "pruning": 0.8})
    assert [colour for *_, colour in steps(slower)] == [BLUE, BLUE, ORANGE]
    assert "1.25x slower" in texts(draw_waterfall(slower))


def test_factors_are_drawn_on_a_logarithmic_axis(report: Report) -> None:
    axis = draw_waterfall(report).layout.xaxis
    assert axis.type == "log"
    assert axis.title.text == "ms per batch"


# ---------------------------------------------------------------------------------- the front


def test_every_point_is_drawn_in_ms_and_percent(report: Report) -> None:
    points = find_trace(draw_front(report), "operating points")
    assert points.x == pytest.approx([8.0, 5.0, 4.0, 8.0 / 1.8])
    assert points.y == pytest.approx([100.0, 99.6, 99.0, 95.0])


def test_chosen_point_is_marked(report: Report) -> None:
    chosen = find_trace(draw_front(report), "chosen")
    assert (chosen.x[0], chosen.y[0]) == pytest.approx((4.0, 99.0))
    assert "<b>chosen, 2.0x</b>" in texts(draw_front(report))


def test_target_is_a_line_at_the_time_that_was_asked(report: Report) -> None:
    line = next(trace for trace in draw_front(report).data if trace.text and "asked: 2x" in trace.text[1])
    assert line.x == pytest.approx([4.0, 4.0])


def test_line_joins_the_points_that_no_other_one_beats(report: Report) -> None:
    assert find_trace(draw_front(report), "front").x == pytest.approx([4.0, 5.0, 8.0])


def test_accuracy_is_drawn_where_there_are_labels(report: Report) -> None:
    points = tuple(dataclasses.replace(p, accuracy=0.9 - (p.drop or 0.0)) for p in report.operating_points)
    figure = draw_front(dataclasses.replace(report, operating_points=points))
    assert find_trace(figure, "operating points").y == pytest.approx([90.0, 89.6, 89.0, 85.0])
    assert find_trace(figure, "original").y == pytest.approx([90.0])
    assert figure.layout.yaxis.title.text == "accuracy, %"


def test_agreement_is_drawn_without_labels(report: Report) -> None:
    assert draw_front(report).layout.yaxis.title.text == "answers as the original, %"


def test_there_is_no_axis_of_accuracy_without_texts(report_without_texts: Report) -> None:
    figure = draw_front(report_without_texts)
    assert figure.layout.yaxis.visible is False
    assert find_trace(figure, "operating points").x == pytest.approx([8.0, 5.0, 4.0, 8.0 / 1.8])


@pytest.mark.parametrize(("original_s", "kind"), [(0.009, None), (0.08, "log")])
def test_axis_is_logarithmic_where_the_range_asks_for_it(report: Report, original_s: float, kind: str | None) -> None:
    assert draw_front(dataclasses.replace(report, original_s=original_s)).layout.xaxis.type == kind


def test_hover_text_holds_the_facts_of_a_point(report: Report) -> None:
    text = find_trace(draw_front(report), "operating points").text[2]
    for fact in ("4.00 ms measured, 4.50 ms predicted", "2.00x on the clock", "exits 1 3", "keeps 0.7 0.5"):
        assert fact in text


# ---------------------------------------------------------------------------------- the pyramid


def test_bars_are_as_wide_as_the_tokens_that_are_left(report: Report) -> None:
    bars = find_trace(draw_pyramid(report), "per text that runs it")
    assert list(bars.y) == ["embeddings", "layer 1", "layer 2", "layer 3"]
    assert bars.x == pytest.approx([12.5, 9.0, 10.0, 5.0])


def test_dark_bars_count_every_text_asked(report: Report) -> None:
    assert find_trace(draw_pyramid(report), "per text asked").x == pytest.approx([12.5, 9.0, 4.0, 2.0])


def test_tokens_and_shares_are_written_beside_the_bars(report: Report) -> None:
    assert {"12.5", "10.0", "100%", "40%"} <= set(texts(draw_pyramid(report)))


# ---------------------------------------------------------------------------------- predicted and measured


def test_prediction_is_drawn_over_the_measurement(report: Report) -> None:
    points = find_trace(draw_predicted(report), "operating points")
    assert points.x == pytest.approx([8.0, 5.0, 4.0, 8.0 / 1.8])
    assert points.y == pytest.approx([9.0, 9.0 / 1.6, 4.5, 5.0])


def test_identity_line_goes_from_corner_to_corner(report: Report) -> None:
    figure = draw_predicted(report)
    line = find_trace(figure, "identity")
    assert list(line.x) == list(line.y) == list(figure.layout.xaxis.range) == list(figure.layout.yaxis.range)


def test_median_error_is_relative_to_the_measurement(report: Report) -> None:
    assert find_median_error(report.operating_points) == pytest.approx(0.125)


# ---------------------------------------------------------------------------------- all of them


def test_time_axes_name_their_unit(report: Report) -> None:
    for figure in (draw_waterfall(report), draw_front(report), draw_predicted(report)):
        assert "ms per batch" in figure.layout.xaxis.title.text
