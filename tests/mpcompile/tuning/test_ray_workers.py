"""Tests of measuring on a Ray cluster: two nodes, both on this machine."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mpcompile.errors import SettingError

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install mpcompile[ray]")

from mpcompile.tuning import tune  # noqa: E402
from mpcompile.tuning.measurer import MeasureFailed, Reply  # noqa: E402
from mpcompile.tuning.ray_workers import RayChannel, open_channels, pack_directory, unpack_directory  # noqa: E402
from mpcompile.tuning.variant import Variant  # noqa: E402
from tests.mpcompile.cost.made_up import keep_declared_profiles  # noqa: E402
from tests.mpcompile.tuning.test_bench import BATCHES, PROFILE, Job  # noqa: E402

pytestmark = pytest.mark.slow
START = Variant(1, "f32")
START_S = 240.0
"""A fresh interpreter with torch, on a machine that has other things to do."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of two nodes of one CPU each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster.address
    cluster.shutdown()


@pytest.fixture
def job(eager_artifact: Path, cache_dir: Path) -> Job:
    return Job(eager_artifact, START, BATCHES, PROFILE, cache_dir)


def test_candidates_are_spread_over_two_nodes(
    address: str, eager_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, call = set(), RayChannel.call

    def note(channel: RayChannel, method: str, arguments: Sequence[Any], timeout_s: float) -> Reply:
        used.add((channel.name, method))
        return call(channel, method, arguments, timeout_s)

    monkeypatch.setattr(RayChannel, "call", note)
    keep_declared_profiles(tmp_path / "cache")
    result = tune(
        eager_artifact, tmp_path / "out", batch_size=4, max_trials=2, budget_s=600.0, trial_timeout_s=START_S,
        ray=address, progress=False, cache_dir=tmp_path / "cache",
    )  # fmt: skip
    assert result.counts.total == 2 and not result.failures
    assert len({name for name, method in used if method == "measure_round"}) == 2
    assert (tmp_path / "out" / "manifest.json").is_file()
    assert not ray.is_initialized()


def test_process_that_hangs_is_replaced(address: str, job: Job) -> None:
    with open_channels(address, job) as channels:
        assert len(channels) == 2
        channel = channels[0]
        assert channel.call("identify_start", (), START_S).value
        with pytest.raises(MeasureFailed, match=r"retime hung: no answer from Ray node .* for 0.01 s"):
            channel.call("retime", (START,), 0.01)
        assert channel.call("identify_start", (), START_S).value
        reply = channel.call("build", ((Variant(99, "f32"),),), START_S)
        assert reply.reason is not None and reply.reason.startswith("IndexError")
        channel.close()


def test_address_without_a_cluster_is_an_error_of_the_user(job: Job) -> None:
    with (
        pytest.raises(SettingError, match=r"--ray 'nowhere': cannot connect: .*expected 'local', 'auto'"),
        open_channels("nowhere", job),
    ):
        pass


def test_directory_is_packed_whole(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(b"123")
    unpack_directory(pack_directory(tmp_path), tmp_path / "out")
    assert (tmp_path / "out" / "a" / "b" / "c").read_bytes() == b"123"
