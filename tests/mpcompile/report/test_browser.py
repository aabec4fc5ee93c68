"""The page in a real browser, headless and without a network. Skips where there is no Chromium."""

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mpcompile.report.page import render_page
from mpcompile.report.records import SampleText
from mpcompile.report.report import Report
from mpcompile.runtime.model import OptimizedModel

pytest.importorskip("plotly", reason="plotly draws the figures")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: `make browser` installs Debian's, as root")
TIMEOUT_S = 120


def browse(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Opens a page in a browser that resolves no name."""
    assert CHROMIUM is not None
    fixed = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--virtual-time-budget=10000"]
    offline = ["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr"]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    command = [CHROMIUM, *fixed, *offline, profile, *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)


def open_page(report: Report, folder: Path, *options: str) -> tuple[str, list[str]]:
    """Elements of the page after its scripts ran, without the scripts, and what the console said."""
    path = folder / "report.html"
    path.write_text(render_page(report), "utf-8")
    done = browse(path, "--dump-dom", *options)
    body = re.sub(r"<script.*?</script>", "", done.stdout.split("<body>", 1)[1], flags=re.DOTALL)
    return body, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def figure_of(body: str, name: str) -> str:
    """What was drawn for a figure."""
    return re.split(r"<figure>|</figure>", body.split(f'id="{name}"', 1)[1])[0]


def test_figures_are_drawn_and_nothing_is_complained_about(report: Report, tmp_path: Path) -> None:
    body, console = open_page(report, tmp_path)
    assert console == []
    assert "could not be drawn" not in body
    for name in ("waterfall", "pyramid", "front", "predicted"):
        assert 'class="main-svg"' in figure_of(body, name), name
    assert len(re.findall('class="trace bars"', figure_of(body, "waterfall"))) == 3
    assert len(re.findall('class="point"', figure_of(body, "pyramid"))) == 2 * 4
    assert "chosen, 2.0x" in figure_of(body, "front")
    assert "measured, ms per batch" in figure_of(body, "predicted")


def test_page_of_a_real_report_is_drawn(optimized: OptimizedModel, tmp_path: Path) -> None:
    body, console = open_page(optimized.report, tmp_path)
    assert console == []
    assert len(re.findall(r'class="plot js-plotly-plot"', body)) == 4
    assert len(re.findall('<article class="sample">', body)) == len(optimized.report.samples)


def test_page_without_texts_is_drawn(report_without_texts: Report, tmp_path: Path) -> None:
    body, console = open_page(report_without_texts, tmp_path)
    assert console == []
    assert 'class="main-svg"' in figure_of(body, "front")


def test_figures_fit_a_narrow_window(report: Report, tmp_path: Path) -> None:
    body, _ = open_page(report, tmp_path, "--window-size=500,900")
    widths = [float(width) for width in re.findall(r'class="main-svg"[^>]* width="([\d.]+)"', body)]
    assert widths and max(widths) <= 500


def test_script_in_a_text_does_not_run(report: Report, sample: SampleText, tmp_path: Path) -> None:
    bad = "</script><script>document.body.innerHTML = 'hacked'</script><img src=x onerror=\"alert(1)\">"
    token = dataclasses.replace(sample.tokens[1], text=bad)
    samples = (dataclasses.replace(sample, tokens=(token, *sample.tokens[2:])),)
    body, console = open_page(dataclasses.replace(report, samples=samples), tmp_path)
    assert console == []
    assert "&lt;script&gt;document.body.innerHTML = 'hacked'&lt;/script&gt;" in body


def test_browser_refuses_what_the_page_would_load(report: Report, tmp_path: Path) -> None:
    """Shows that an empty console is worth something: the policy does refuse, and the console says so."""
    path = tmp_path / "report.html"
    tampered = render_page(report).replace("<footer>", '<img src="http://example.com/a.png"><footer>')
    path.write_text(tampered, "utf-8")
    done = browse(path, "--dump-dom")
    assert "Content Security Policy" in done.stderr


def test_screenshot_is_taken(report: Report, tmp_path: Path) -> None:
    path, picture = tmp_path / "report.html", tmp_path / "report.png"
    path.write_text(render_page(report), "utf-8")
    browse(path, f"--screenshot={picture}", "--window-size=1280,2000")
    assert picture.stat().st_size > 50_000
