"""Tests of the workload of tuning: texts that exits were trained on are not timed where there are others."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mpcompile.compile.texts.examples import Examples
from mpcompile.compile.texts.known import write_known
from mpcompile.report.report import Report
from mpcompile.runtime.artifact import REPORT, read_manifest
from mpcompile.runtime.tokens import Tokenizer
from mpcompile.tuning.batches import build_tuning_workload
from tests.models import WORDS

TEXTS = [f"{first} {second}" for first in WORDS[:10] for second in WORDS[10:20]]


@pytest.fixture
def known(artifact: Path, tmp_path: Path) -> Path:
    """The handmade artifact with half of the texts known."""
    folder = Path(shutil.copytree(artifact, tmp_path / "known"))
    write_known(folder, Examples(tuple(TEXTS[:50])))
    return folder


def drawn(artifact: Path, known: Path, texts: list[str]) -> set[tuple[int, ...]]:
    manifest = read_manifest(artifact)
    report = Report.from_json(json.loads((artifact / REPORT).read_text()))
    workload = build_tuning_workload(known, manifest, report, texts, 4, 0)
    rows = [row for batch in workload.batches for row in batch["input_ids"]]
    return {tuple(int(i) for i in np.trim_zeros(row, "b")) for row in rows}


def ids_of(artifact: Path, texts: list[str]) -> set[tuple[int, ...]]:
    return {tuple(tokens.ids.tolist()) for tokens in Tokenizer.load(artifact).encode(texts)}


def test_texts_that_exits_were_trained_on_are_not_timed(artifact: Path, known: Path) -> None:
    assert drawn(artifact, known, TEXTS) <= ids_of(artifact, TEXTS[50:])


def test_where_there_are_no_others_a_warning_says_so(
    artifact: Path, known: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert drawn(artifact, known, TEXTS[:51]) & ids_of(artifact, TEXTS[:50])
    assert "exits were trained on 50 of the 51" in caplog.text
