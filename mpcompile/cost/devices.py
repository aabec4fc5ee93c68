"""Devices that are described in a file: peaks, sizes and overheads, each with its source. SI units.

`devices.toml` beside this module describes the known ones. A file is checked when it is read, against what
a slip gives: GB/s for B/s, a peak with sparsity for a dense one, a row copied from another card.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpcompile.cost.device import Device
from mpcompile.cost.device_checks import check_device
from mpcompile.errors import SettingError

_PACKAGED = Path(__file__).with_name("devices.toml")
_PEAKS = "peak_flops_per_s"


def load_devices(path: Path | None = None) -> dict[str, Device]:
    """Reads and checks a file of devices.

    Args:
        path: like `devices.toml`, which is the default.

    Raises:
        SettingError: when the file is not TOML, or a field is missing, unknown, of the wrong type, without
            a source or impossible.
    """
    path = path or _PACKAGED
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingError(
            f"{path}: {error.strerror or error}; a readable file like {_PACKAGED} is expected"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"{path}: not TOML: {error}; correct it after the example of {_PACKAGED}") from error
    if not tables:
        raise SettingError(f"{path}: holds no device; one table per device is expected, such as [h100]")
    devices = {name: _build_device(name, table, str(path)) for name, table in tables.items()}
    for device in devices.values():
        check_device(device, str(path))
    return devices


def find_device(name: str, path: Path | None = None) -> Device:
    """The device of a name.

    Args:
        name: as in the file.
        path: see `load_devices`.

    Raises:
        SettingError: when the file has no such device, and as `load_devices`.
    """
    devices = load_devices(path)
    if name in devices:
        return devices[name]
    close = difflib.get_close_matches(str(name).lower().replace("_", "-").replace(" ", "-"), devices, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise SettingError(
        f"device: {name!r} is not known; {hint}Known are {', '.join(sorted(devices))}. "
        f"Describe another in a file like {path or _PACKAGED}"
    )


def _build_device(name: str, table: object, file: str) -> Device:
    """Checks that the fields are there, and no others; their values are `check_device`'s."""
    fields = [field.name for field in dataclasses.fields(Device) if field.name != "name"]
    if not isinstance(table, dict):
        raise SettingError(f"{file}: {name}: {table!r}; a table of {', '.join(fields)} is expected: write [{name}]")
    for field in fields:
        if field not in table:
            raise SettingError(f"{file}: {name}.{field}: missing; every device has {', '.join(fields)}: add it")
    for field in table:
        if field not in fields:
            close = difflib.get_close_matches(field, fields, n=1)
            fix = f"write {close[0]}" if close else "remove it"
            raise SettingError(f"{file}: {name}.{field}: unknown; known are {', '.join(fields)}: {fix}")
    for field in (_PEAKS, "sources"):
        if not isinstance(table[field], dict):
            raise SettingError(f"{file}: {name}.{field}: {table[field]!r}; a table is expected: write [{name}.{field}]")
    return Device(name=name, **{**table, "sources": _flatten(table["sources"])})


def _flatten(sources: Mapping[str, Any]) -> dict[str, Any]:
    """`peak_flops_per_s.f16 = "..."` is a table in a table for TOML."""
    flat: dict[str, Any] = {}
    for field, source in sources.items():
        if isinstance(source, dict):
            flat |= {f"{field}.{key}": value for key, value in source.items()}
        else:
            flat[field] = source
    return flat
