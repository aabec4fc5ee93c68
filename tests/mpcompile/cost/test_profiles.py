"""Tests of kept profiles: a machine is measured once for a backend, a precision and a number of threads."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mpcompile.backends.torch.eager import EagerBackend
from mpcompile.contract.backend import Backend, BuildConfig, Target
from mpcompile.cost import calibration
from mpcompile.cost.grids import FULL, QUICK, Grid
from mpcompile.cost.profiles import find_kept_profile, find_present_device, find_profile
from mpcompile.cost.rates import Profile, Rates
from mpcompile.store.results import Store

CONFIG = BuildConfig()


class Counted:
    """Stands in for `calibrate`: notes what it is asked for, and finds another machine each time."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, int | None]] = []
        self.grids: list[Sequence[Grid]] = []

    def __call__(
        self,
        target: Target,
        declared: Rates,
        grids: Sequence[Grid],
        on_step: Callable[[float], None],
    ) -> Profile:
        on_step(1.0)
        self.asked.append((target.backend.name, target.precision, target.config.num_threads))
        self.grids.append(grids)
        rates = dataclasses.replace(declared, launch_s=float(len(self.grids)), reshape_s=0.5)
        return Profile(rates, median_error=0.05, p95_error=0.2, num_samples=7)


class OtherVersion(EagerBackend):
    """The same backend after an update."""

    def fingerprint(self) -> dict[str, str]:
        return {"torch": "another"}


class OtherBackend(EagerBackend):
    name = "another"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counted = Counted()
    monkeypatch.setattr(calibration, "calibrate", counted)
    return counted


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def find(
    store: Store,
    backend: Backend | None = None,
    precision: str = "f32",
    config: BuildConfig = CONFIG,
    thorough: bool = False,
    fresh: bool = False,
) -> Profile:
    return find_profile(Target(backend or EagerBackend(), precision, config), store, thorough=thorough, fresh=fresh)


def test_machine_is_measured_once(counted: Counted, store: Store) -> None:
    first, second = find(store), find(store)
    assert first == second
    assert counted.grids == [QUICK]


def test_profile_is_found_again_in_another_process(counted: Counted, store: Store) -> None:
    assert find(store) == find(Store(store.directory))
    assert len(counted.grids) == 1


def test_profile_says_what_was_measured(counted: Counted, store: Store) -> None:
    profile = find(store)
    assert (profile.rates.launch_s, profile.rates.reshape_s) == (1.0, 0.5)
    assert (profile.median_error, profile.p95_error, profile.num_samples) == (0.05, 0.2, 7)
    assert profile.rates.name == "this machine, eager, cpu f32"


def test_what_is_not_measured_is_as_declared(counted: Counted, store: Store) -> None:
    assert (find(store).rates.num_units, find(store).rates.overlap) == (1, 0.0)


def test_thorough_profile_is_measured_on_the_full_grid(counted: Counted, store: Store) -> None:
    find(store, thorough=True)
    find(store, thorough=True)
    assert counted.grids == [FULL]


def test_thorough_profile_is_preferred_to_a_quick_one(counted: Counted, store: Store) -> None:
    quick, thorough = find(store), find(store, thorough=True)
    assert quick != thorough
    assert find(store) == thorough


def test_thorough_profile_spares_the_quick_one(counted: Counted, store: Store) -> None:
    find(store, thorough=True)
    find(store)
    assert counted.grids == [FULL]


def test_quick_profile_is_not_thorough_enough(counted: Counted, store: Store) -> None:
    find(store)
    find(store, thorough=True)
    assert counted.grids == [QUICK, FULL]


def test_fresh_measures_again(counted: Counted, store: Store) -> None:
    old, new = find(store, thorough=True), find(store, thorough=True, fresh=True)
    assert (old.rates.launch_s, new.rates.launch_s) == (1.0, 2.0)
    assert find(store, thorough=True) == find(store) == new


def test_fresh_measures_a_quick_profile_again(counted: Counted, store: Store) -> None:
    find(store)
    find(store, fresh=True)
    assert counted.grids == [QUICK, QUICK]


def test_every_precision_has_its_profile(counted: Counted, store: Store) -> None:
    find(store)
    find(store, precision="bf16")
    assert counted.asked == [("eager", "f32", None), ("eager", "bf16", None)]
    assert find(store).rates.launch_s == 1.0 and find(store, precision="bf16").rates.launch_s == 2.0


@pytest.mark.parametrize("backend", [OtherVersion(), OtherBackend()], ids=["version", "backend"])
def test_another_backend_is_measured_anew(counted: Counted, store: Store, backend: Backend) -> None:
    find(store)
    find(store, backend=backend)
    assert len(counted.grids) == 2


def test_another_number_of_threads_is_measured_anew(counted: Counted, store: Store) -> None:
    find(store)
    find(store, config=BuildConfig(num_threads=1))
    assert counted.asked == [("eager", "f32", None), ("eager", "f32", 1)]


def test_progress_is_told(counted: Counted, store: Store) -> None:
    shares: list[float] = []
    find_profile(Target(EagerBackend(), "f32", CONFIG), store, shares.append)
    assert shares == [1.0]


def test_kept_profile_is_found(counted: Counted, store: Store) -> None:
    profile = find(store)
    assert find_kept_profile(Target(EagerBackend(), "f32", CONFIG), store) == profile


def test_kept_profile_that_is_thorough_is_preferred(counted: Counted, store: Store) -> None:
    find(store)
    thorough = find(store, thorough=True)
    assert find_kept_profile(Target(EagerBackend(), "f32", CONFIG), store) == thorough


def test_nothing_is_measured_where_a_kept_profile_will_do(counted: Counted, store: Store) -> None:
    assert find_kept_profile(Target(EagerBackend(), "f32", CONFIG), store) is None
    assert counted.grids == []


def test_full_store_costs_a_measurement_and_no_error(counted: Counted, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in place of the folder")
    assert find(Store(tmp_path / "file")).num_samples == 7


class OnGpu(EagerBackend):
    """A backend on a GPU of a name."""

    device_kind = "gpu"

    def __init__(self, gpu: str) -> None:
        self._gpu = gpu

    def fingerprint(self) -> dict[str, str]:
        return {"tensorrt": "tensorrt 10.3", "gpu": self._gpu}


@pytest.mark.parametrize(
    ("gpu", "name"),
    [
        ("NVIDIA A100-SXM4-80GB 8.0", "a100"),
        ("NVIDIA L4 8.9", "l4"),
        ("NVIDIA L40S 8.9", "l40s"),
        ("NVIDIA GeForce RTX 4090 8.9", "rtx-4090"),
        ("a GPU of the future 20.0", "a100"),
    ],
)
def test_fit_on_a_gpu_starts_from_what_is_declared_of_it(gpu: str, name: str) -> None:
    assert find_present_device(OnGpu(gpu)).name == name


def test_fit_on_a_cpu_starts_from_the_declared_cpu() -> None:
    assert find_present_device(EagerBackend()).name == "cpu"


def test_gpu_is_calibrated_in_a_precision_that_cpus_lack(counted: Counted, store: Store) -> None:
    assert find(store, OnGpu("NVIDIA L4 8.9"), "f16").rates.activation_bytes == 2
