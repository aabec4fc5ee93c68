"""Measured profiles of the present machine, kept in the store."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from mpcompile.cost.calibration import FITTED, FULL, QUICK, Grid, Profile, calibrate
from mpcompile.cost.devices import find_device
from mpcompile.cost.rates import Rates, declare_rates
from mpcompile.segment import Backend, BuildConfig
from mpcompile.store import Store

FORMAT = 1
"""Changes with what is measured or fitted, so that profiles of before are not found."""
MEASURED = (*FITTED, "reshape_s")
PRESENT_MACHINE = "cpu"


def find_profile(
    backend: Backend,
    precision: str,
    config: BuildConfig,
    store: Store,
    on_step: Callable[[float], None] = lambda _: None,
    thorough: bool = False,
    fresh: bool = False,
) -> Profile:
    """The present machine as it was measured before, else measured now.

    Args:
        backend: whose engines are timed.
        precision: of the engines.
        config: of the engines.
        store: where profiles are kept.
        on_step: told the share done.
        thorough: about a minute of measuring; otherwise a thorough profile is used where there is one,
            and some seconds are spent where there is none.
        fresh: measures although a profile is kept.

    Raises:
        BackendError: when an engine cannot be built.
    """
    declared = declare_rates(find_device(PRESENT_MACHINE), precision)
    key = {
        "kind": "profile",
        "format": FORMAT,
        "backend": backend.name,
        "precision": precision,
        "fingerprint": backend.fingerprint(),
        "threads": config.num_threads,
    }

    def measure(grids: Sequence[Grid]) -> dict[str, np.ndarray]:
        return _to_arrays(calibrate(backend, precision, config, declared, grids, on_step=on_step))

    full, quick = {**key, "grid": repr(FULL)}, {**key, "grid": repr(QUICK)}
    if thorough:
        if fresh:
            store.remove(full)
        return _from_arrays(store.fetch(full, lambda: measure(FULL)), declared, backend.name)
    kept = store.find_maybe(full)
    return _from_arrays(kept or store.fetch(quick, lambda: measure(QUICK)), declared, backend.name)


def _to_arrays(profile: Profile) -> dict[str, np.ndarray]:
    rates = {name: np.array(getattr(profile.rates, name)) for name in MEASURED}
    facts = {name: np.array(getattr(profile, name)) for name in ("median_error", "p95_error", "num_samples")}
    return {**rates, **facts}


def _from_arrays(arrays: dict[str, np.ndarray], declared: Rates, backend_name: str) -> Profile:
    values = {name: array.item() for name, array in arrays.items()}
    rates = dataclasses.replace(
        declared, name=f"this machine, {backend_name}, {declared.name}", **{name: values.pop(name) for name in MEASURED}
    )
    return Profile(rates, **values)
