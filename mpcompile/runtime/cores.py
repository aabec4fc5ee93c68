"""Counts the cores that this process may use."""

from __future__ import annotations

import os


def count_cores() -> int:
    """CPU cores that this process may run on: fewer than the machine has where a container or `taskset` says so."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
