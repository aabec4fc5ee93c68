"""Counts the cores that this process may use. Imports no torch."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")


def count_cores(root: Path = _ROOT) -> int:
    """CPU cores that this process may run on: fewer than the machine has where a container or `taskset` says so.

    A quota counts as cores, rounded up: of 150% of a CPU (`docker run --cpus 1.5`) two threads make use, and a third
    would only wait for them. Read as https://docs.kernel.org/admin-guide/cgroup-v2.html and
    https://docs.kernel.org/scheduler/sched-bwc.html (cgroup v1) describe it.

    Args:
        root: where `proc` and `sys` are mounted.
    """
    return max(1, min([count_allowed(), *(math.ceil(quota) for quota in _read_quotas(root))]))


def count_allowed() -> int:
    """CPU cores that this process may run on, for however little time."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_quotas(root: Path) -> Iterator[float]:
    """CPUs worth of time that the groups of this process may take, where they say so."""
    for folder in _list_groups(root):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            yield float(quota) / float(period)  # no quota is "max", a ValueError
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota_us = float((folder / "cpu.cfs_quota_us").read_text())
            if quota_us > 0:  # -1 is none
                yield quota_us / float((folder / "cpu.cfs_period_us").read_text())


def _list_groups(root: Path) -> Iterator[Path]:
    """Folders of the control groups that this process is in: of version 1 and 2, up to where they are mounted.

    A container mounts its own group at the top although its path may be that of the host: the top is always read.
    """
    mount = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        for top in (mount / controllers, mount / "cpu") if controllers else (mount, mount / "unified"):
            group = top / path.strip("/")
            yield from (folder for folder in (group, *group.parents) if folder == top or top in folder.parents)
