"""Tests of the cores that are counted: affinity and the quotas of control groups."""

import os
from pathlib import Path

import pytest

from mpcompile.backends.cores import count_cores
from mpcompile.backends.openvino import backend


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


def quota(group: str, quota_us: int) -> dict[str, str]:
    """Files of a group of version 1."""
    folder = f"sys/fs/cgroup/{group}"
    return {f"{folder}/cpu.cfs_quota_us": str(quota_us), f"{folder}/cpu.cfs_period_us": "100000"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, 8, id="no-groups"),
        pytest.param({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "200000 100000"}, 2, id="v2-container"),
        pytest.param({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, 8, id="v2-no-quota"),
        pytest.param({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}, 2, id="v2-rounded-up"),
        pytest.param({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "5000 100000"}, 1, id="v2-little"),
        pytest.param(
            {
                "proc/self/cgroup": "0::/user.slice/job.scope",
                "sys/fs/cgroup/user.slice/cpu.max": "300000 100000",
                "sys/fs/cgroup/user.slice/job.scope/cpu.max": "max 100000",
            },
            3,
            id="v2-of-a-group-above",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/docker/12ab\n2:memory:/docker/12ab",
                **quota("cpu,cpuacct", 400_000),
            },
            4,
            id="v1-container-with-the-host's-path",
        ),
        pytest.param(
            {"proc/self/cgroup": "1:cpu:/job", **quota("cpu/job", 100_000), **quota("cpu", -1)}, 1, id="v1-group"
        ),
        pytest.param({"proc/self/cgroup": "2:memory:/job", **quota("memory/job", 100_000)}, 8, id="another-controller"),
        pytest.param({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "1600000 100000"}, 8, id="more-than-there"),
    ],
)
def test_a_quota_counts_as_cores(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert count_cores(write(tmp_path, files)) == expected


def test_openvino_takes_no_more_threads_than_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "count_cores", lambda: 1)
    assert backend.OpenVinoBackend().count_threads() == 1
