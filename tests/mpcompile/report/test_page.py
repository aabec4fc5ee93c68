"""Tests of the page: it holds everything, loads nothing, and shows what users wrote as text."""

import base64
import dataclasses
import hashlib
import json
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from mpcompile.report.page import find_missing_maybe, render_page
from mpcompile.report.records import SampleText
from mpcompile.report.report import Report
from mpcompile.runtime.model import OptimizedModel

pytest.importorskip("plotly", reason="plotly draws the figures")

BAD = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
FIGURES = ["waterfall", "pyramid", "front", "predicted"]


class Page(HTMLParser):
    """Elements of a page, its script blocks and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside, self.text = tag, f"{self.text} "
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside, self.text = "", self.text if tag == "script" else f"{self.text} "

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            attributes, before = self.scripts[-1]
            self.scripts[-1] = (attributes, before + data)
        elif self._inside != "style":
            self.text += data

    def figures(self) -> dict[str, dict[str, object]]:
        """Embedded figures by name."""
        blocks = [(a["id"] or "", text) for a, text in self.scripts if a.get("type") == "application/json"]
        return {name.removesuffix("-data"): json.loads(text) for name, text in blocks}


def shown(report: Report) -> str:
    return " ".join(Page(render_page(report)).text.split())


# ---------------------------------------------------------------------------------- what it shows


def test_every_figure_is_embedded(report: Report) -> None:
    assert list(Page(render_page(report)).figures()) == FIGURES


@pytest.mark.parametrize(
    "part",
    [
        "2.00x asked: 2x, measured",
        "4.00 ms per batch of 1; original 8.00 ms",
        "99.00% of 8 held-out texts, without labels",
        "5.00 points, with 95% confidence",
        "1.25 \N{MULTIPLICATION SIGN} 1.60 \N{MULTIPLICATION SIGN} 1.00 = 2.00",
        "Predicted against measured: median error 12%",
        "batch size 1",
        "backend openvino",
        "precision f32",
        "ran all 3 layers",
    ],
)
def test_facts_of_the_report_are_shown(report: Report, part: str) -> None:
    assert part in shown(report)


def test_accuracy_is_shown_with_labels(report: Report) -> None:
    text = shown(dataclasses.replace(report, accuracy=0.875, original_accuracy=0.9))
    assert "87.50%" in text and "original 90.00%, on 8 held-out texts" in text


def test_model_is_named(report: Report) -> None:
    assert shown(report).startswith("tiny, 2.0x faster tiny")


def test_notes_are_shown(report: Report) -> None:
    assert "engines were rebuilt" in shown(report.with_notes("engines were rebuilt"))


def test_every_point_is_in_the_table(report: Report) -> None:
    rows = render_page(report).split("<table>")[1].split("</table>")[0].count("<tr")
    assert rows == 1 + len(report.operating_points)


def test_page_says_what_it_leaves_out_without_texts(report_without_texts: Report) -> None:
    text = shown(report_without_texts)
    assert "No texts were given: no exits were trained, what pruning costs in accuracy is unknown" in text
    assert "No texts were given, so that the accuracy is unknown and there is no axis for it." in text


def test_page_of_an_older_report_says_what_it_lacks(report: Report) -> None:
    values = report.to_json()
    for name in ("model", "pyramid", "samples", "max_drop"):
        del values[name]
    page = Page(render_page(Report.from_json(values)))
    assert list(page.figures()) == ["waterfall", "front", "predicted"]
    assert "written by a version of mpcompile that did not record it" in page.text


def test_page_of_a_real_report_is_drawn_from_its_json(optimized: OptimizedModel) -> None:
    report = optimized.report
    again = Report.from_json(json.loads(json.dumps(report.to_json())))
    assert render_page(again) == render_page(report)


# ---------------------------------------------------------------------------------- it loads nothing


def test_no_element_refers_to_anything(report: Report) -> None:
    references = {"src", "href", "srcset", "data", "action", "poster", "background"}
    for tag, attributes in Page(render_page(report)).elements:
        assert not references & set(attributes), tag
        assert tag not in ("link", "iframe", "object", "embed", "base")


def test_style_sheet_loads_nothing(report: Report) -> None:
    style = render_page(report).split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style


def test_policy_allows_the_two_scripts_and_nothing_to_load(report: Report) -> None:
    page = Page(render_page(report))
    policy = next(a["content"] or "" for tag, a in page.elements if tag == "meta" and "http-equiv" in a)
    scripts = [text for attributes, text in page.scripts if "type" not in attributes]
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"].split() == hashes and len(hashes) == 2


# ---------------------------------------------------------------------------------- what users wrote is text


@pytest.mark.parametrize("place", ["token", "answer", "note", "model", "machine", "measured_on"])
def test_markup_is_shown_as_text(report: Report, sample: SampleText, place: str) -> None:
    token = dataclasses.replace(sample.tokens[1], text=BAD)
    changes = {
        "token": {"samples": (dataclasses.replace(sample, tokens=(token,)),)},
        "answer": {"samples": (dataclasses.replace(sample, answer=BAD),)},
        "note": {"notes": (BAD,)},
        "model": {"model": {**report.model, "name": BAD}},
        "machine": {"machine": {BAD: BAD}},
        "measured_on": {"measured_on": BAD},
    }
    page, before = Page(render_page(dataclasses.replace(report, **changes[place]))), Page(render_page(report))
    assert len(page.scripts) == len(before.scripts)
    assert not [tag for tag, _ in page.elements if tag == "img"]
    assert BAD in page.text


def test_figure_cannot_end_its_script_element(report: Report) -> None:
    page = Page(render_page(dataclasses.replace(report, gains={BAD: 2.0})))
    assert list(page.figures()) == FIGURES
    assert BAD in json.dumps(page.figures()["waterfall"], ensure_ascii=False)


# ---------------------------------------------------------------------------------- plotly


def test_missing_plotly_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    assert find_missing_maybe() == "plotly, which draws the figures, is not installed: pip install mpcompile[build]"


def test_nothing_is_missing_here() -> None:
    assert find_missing_maybe() is None


@pytest.mark.parametrize(
    "module", ["mpcompile", "mpcompile.report.report", "mpcompile.runtime.load", "mpcompile.report.page"]
)
def test_import_leaves_plotly_and_torch_alone(module: str) -> None:
    program = f"import {module}, sys\nassert not {{'plotly', 'torch'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_warnings_stand_before_notes(report: Report) -> None:
    page = render_page(dataclasses.replace(report, warnings=("2 points & more",), notes=("something",)))
    assert page.index("2 points &amp; more") < page.index("something")
