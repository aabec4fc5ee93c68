"""Tests of build settings: checked, kept in artifacts, and used where they were tuned."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpcompile
from mpcompile.contract.backend import BuildConfig
from mpcompile.contract.profile import OptimizationProfile, Range
from mpcompile.errors import ArtifactError, SettingError
from mpcompile.runtime.artifact import CHECKSUM, MANIFEST, Manifest, read_manifest, write_manifest
from mpcompile.runtime.lanes import Lanes

PROFILE = OptimizationProfile(Range(1, 8, 32), Range(2, 16, 24))


@pytest.fixture
def make_tuned(artifact: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes an artifact whose manifest was changed."""

    def make(**changes: Any) -> Path:
        folder = Path(shutil.copytree(artifact, tmp_path / "tuned"))
        write_manifest(folder, Manifest(**{**vars(read_manifest(folder)), **changes}))
        return folder

    return make


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the text of a manifest, with the checksum that belongs to it."""
    import hashlib

    values = json.loads((folder / MANIFEST).read_text())
    change(values)
    text = json.dumps(values)
    (folder / MANIFEST).write_text(text)
    (folder / CHECKSUM).write_text(f"{hashlib.sha256(text.encode()).hexdigest()}  {MANIFEST}\n")


@pytest.mark.parametrize(("num_threads", "num_streams"), [(0, 1), (-1, 1), (None, 0), (2, 3), (1, 2)])
def test_config_that_cannot_be_is_refused(num_threads: int | None, num_streams: int) -> None:
    with pytest.raises(SettingError, match="a whole number from 1"):
        BuildConfig(num_threads, num_streams)


def test_manifest_keeps_config_and_profile(make_tuned: Callable[..., Path]) -> None:
    manifest = read_manifest(make_tuned(config=BuildConfig(2, 2), profile=PROFILE))
    assert manifest.config == BuildConfig(2, 2) and manifest.profile == PROFILE


def test_manifest_of_before_has_the_default_config(make_tuned: Callable[..., Path]) -> None:
    folder = make_tuned()
    rewrite(folder, lambda values: (values.pop("config"), values.pop("profile")))
    manifest = read_manifest(folder)
    assert manifest.config == BuildConfig() and manifest.profile is None
    assert mpcompile.load(folder).report.notes == ()


def test_manifest_with_a_config_that_cannot_be_is_refused(make_tuned: Callable[..., Path]) -> None:
    folder = make_tuned()
    rewrite(folder, lambda values: values["config"].update(num_streams=0))
    with pytest.raises(ArtifactError, match="lacks what its format needs"):
        read_manifest(folder)


def test_tuned_streams_are_used(make_tuned: Callable[..., Path], artifact: Path, tiny_texts: list[str]) -> None:
    tuned = mpcompile.load(make_tuned(config=BuildConfig(2, 2)))
    assert isinstance(tuned.runtime, Lanes) and len(tuned.runtime.runtimes) == 2
    logits, exits = tuned.classify(tiny_texts)
    expected, expected_exits = mpcompile.load(artifact).classify(tiny_texts)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    np.testing.assert_array_equal(exits, expected_exits)


def test_threads_asked_for_override_those_tuned(make_tuned: Callable[..., Path]) -> None:
    folder = make_tuned(config=BuildConfig(2, 2))
    assert not isinstance(mpcompile.load(folder, num_threads=1).runtime, Lanes)
    assert isinstance(mpcompile.load(folder, num_threads=2).runtime, Lanes)


def test_threads_that_cannot_be_are_refused(artifact: Path) -> None:
    with pytest.raises(SettingError, match="num_threads: 0"):
        mpcompile.load(artifact, num_threads=0)


def test_settings_of_another_machine_are_not_used(make_tuned: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_tuned(config=BuildConfig(2, 2))
    rewrite(folder, lambda values: values["fingerprint"].update(cpu="Intel 8086"))
    loaded = mpcompile.load(folder, cache_dir=tmp_path / "cache")
    assert not isinstance(loaded.runtime, Lanes)
    assert any("tuned for another machine or version (2 threads, 2 streams)" in note for note in loaded.report.notes)
