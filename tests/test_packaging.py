"""Tests of the wheel: what is in it, and nothing else."""

import importlib.util
import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.paths import ROOT

PACKAGES = ("mpcompile", "passes")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names of the files in the wheel, built from a copy so that nothing is left in the checkout."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools, which builds the wheel, is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    skipped = shutil.ignore_patterns(
        ".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", "results"
    )
    shutil.copytree(ROOT, source, ignore=skipped, symlinks=True)
    if importlib.util.find_spec("build") is not None:
        command = ["build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    else:
        command = ["pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), str(source)]
    done = subprocess.run([sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        return file.namelist()


def test_wheel_holds_two_packages_and_its_metadata(wheel: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert len(tops) == len(PACKAGES) + 1


def test_wheel_holds_every_module_of_its_packages(wheel: list[str]) -> None:
    modules = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert {name for name in wheel if name.endswith(".py")} == modules


def test_wheel_holds_the_devices_and_no_other_data(wheel: list[str]) -> None:
    data = {name for name in wheel if name.split("/")[0] in PACKAGES and not name.endswith(".py")}
    assert data == {"mpcompile/cost/devices.toml"}


@pytest.mark.parametrize("folder", ["tests", "bench", "scripts", "docs"])
def test_wheel_leaves_out_what_is_for_developers(wheel: list[str], folder: str) -> None:
    assert not [name for name in wheel if folder in name.split("/")]


def test_wheel_holds_the_licence(wheel: list[str]) -> None:
    assert [name for name in wheel if name.endswith("/LICENSE")]


def test_wheel_installs_the_command(wheel: list[str]) -> None:
    assert [name for name in wheel if name.endswith(".dist-info/entry_points.txt")]
