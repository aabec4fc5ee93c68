"""Measured profiles of the present machine, kept in the store. Imports no torch until something is measured."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

import numpy as np

from mpcompile.contract.backend import Backend, Target
from mpcompile.cost.device import Device
from mpcompile.cost.devices import find_device, load_devices
from mpcompile.cost.grids import FULL, QUICK, Grid
from mpcompile.cost.rates import FITTED, Profile, Rates, declare_rates
from mpcompile.store.results import Store

FORMAT = 2
"""Changes with what is measured or fitted, so that profiles of before are not found."""
MEASURED = (*FITTED, "reshape_s")
PRESENT_MACHINE = "cpu"
USUAL_GPU = "a100"
"""Whose declared numbers stand for those of a GPU that `devices.toml` does not describe."""


def find_profile(
    target: Target,
    store: Store,
    on_step: Callable[[float], None] = lambda _: None,
    thorough: bool = False,
    fresh: bool = False,
) -> Profile:
    """The present machine as it was measured before, else measured now.

    Args:
        target: what the timed engines are built for.
        store: where profiles are kept.
        on_step: told the share done.
        thorough: about a minute of measuring; otherwise a thorough profile is used where there is one,
            and some seconds are spent where there is none.
        fresh: measures although a profile is kept.

    Raises:
        BackendError: when an engine cannot be built.
    """
    declared = declare_rates(find_present_device(target.backend), target.precision)
    for grids in () if fresh else (FULL,) if thorough else (FULL, QUICK):
        kept = store.find_maybe(_key(target, grids))
        if kept is not None:
            return _from_arrays(kept, declared, target.backend.name)
    from mpcompile.cost.calibration import calibrate  # needs torch, which a profile that is kept does without

    grids = FULL if thorough else QUICK
    arrays = _to_arrays(calibrate(target, declared, grids, on_step=on_step))
    store.keep(_key(target, grids), arrays)
    return _from_arrays(arrays, declared, target.backend.name)


def find_kept_profile(target: Target, store: Store) -> Profile | None:
    """The present machine as it was measured before, None when it was not; measures nothing."""
    for grids in (FULL, QUICK):
        arrays = store.find_maybe(_key(target, grids))
        if arrays is not None:
            declared = declare_rates(find_present_device(target.backend), target.precision)
            return _from_arrays(arrays, declared, target.backend.name)
    return None


def find_present_device(backend: Backend) -> Device:
    """The device that a backend's engines run on, as it is declared: where fits start, and what they leave as it is."""
    if backend.device_kind == load_devices()[PRESENT_MACHINE].kind:
        return find_device(PRESENT_MACHINE)
    words = set(re.findall(r"[a-z0-9]+", " ".join(backend.fingerprint().values()).lower()))
    fitting = [name for name in load_devices() if words.issuperset(name.split("-"))]
    return find_device(fitting[0] if fitting else USUAL_GPU)


def _key(target: Target, grids: Sequence[Grid]) -> dict[str, object]:
    return {
        "kind": "profile",
        "format": FORMAT,
        "backend": target.backend.name,
        "precision": target.precision,
        "fingerprint": target.backend.fingerprint(),
        "threads": target.config.num_threads,
        "grid": repr(grids),
    }


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


def describe_profile(profile: Profile) -> str:
    """A profile for people."""
    rates = profile.rates
    rows = {
        "profile": rates.name,
        "matrix products": f"{rates.matmul_flops_per_s / 1e9:.0f} Gflop/s",
        "fused attention": f"{rates.attention_flops_per_s / 1e9:.0f} Gflop/s",
        "everything else": f"{rates.vector_flops_per_s / 1e9:.0f} Gflop/s",
        "main memory": f"{rates.memory_bytes_per_s / 1e9:.0f} GB/s",
        "cache": f"{rates.cache_bytes_per_s / 1e9:.0f} GB/s up to {rates.cache_bytes / 1e6:.0f} MB",
        "a kernel": f"{rates.launch_s * 1e6:.1f} us, {rates.reshape_s * 1e6:.1f} us more after other sizes",
        "a call of an engine": f"{rates.engine_s * 1e6:.1f} us",
        "predicted against measured": f"median error {profile.median_error:.1%}, 95th percentile "
        f"{profile.p95_error:.1%}, over the {profile.num_samples} engines and sizes that it was fitted to",
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())
