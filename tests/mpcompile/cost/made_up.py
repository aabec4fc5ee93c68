"""A forecast and profiles that were made up."""

import contextlib
from pathlib import Path

import pytest

from mpcompile.backends import find_backend
from mpcompile.contract.backend import Target
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.cost.forecast import Forecast, Memory, SegmentTime
from mpcompile.cost.profiles import find_profile
from mpcompile.cost.rates import Profile, Rates
from mpcompile.errors import BackendError
from mpcompile.store.results import Store


def make_forecast() -> Forecast:
    """A forecast with every field filled: 8 ms unpruned, 2 ms in two engines."""
    return Forecast(
        model="tiny",
        device="l4",
        precision="f16",
        batch_size=8,
        mean_length=21.5,
        target_speedup=4,
        unpruned_s=0.008,
        floor_s=0.001,
        reachable_speedup=5.97,
        speedup=4.0,
        point=OperatingPoint((2, 6), (0.0,), (1, 3), (0.5, 1.0)),
        exit_share=0.7,
        segments=(SegmentTime(0, 2, 1.0, 21.5, 11.0, 0.0015), SegmentTime(2, 6, 0.3, 11.0, 11.0, 0.0005)),
        memory=Memory(weights=2e8, activations=1e8, context=5e8, device=24e9),
        fixed_share=0.25,
        notes=("the first [bold] note", "the second"),
    )


def declare_profile(_: object, declared: Rates, *__: object, **___: object) -> Profile:
    """Declared numbers in place of what `calibrate` would measure."""
    return Profile(declared, 0.0, 0.0, 9)


def keep_declared_profiles(folder: Path) -> None:
    """Puts declared numbers into a store as the measured profiles of this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mpcompile.cost.calibration.calibrate", declare_profile)
        for name in ("openvino", "eager"):
            with contextlib.suppress(BackendError):
                backend = find_backend(name)
                for precision in backend.precisions():
                    find_profile(Target(backend, precision), Store(folder))
