"""Measuring processes on the nodes of a Ray cluster; the artifact travels there, no disk is shared."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mpcompile.errors import SettingError, TuningError
from mpcompile.store.scratch import make_scratch_directory
from mpcompile.tuning.bench import Bench, Job
from mpcompile.tuning.measurer import MeasureFailed, Reply, attempt

try:
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise TuningError("--ray: Ray is not installed; pip install mpcompile[ray]") from error

_LEAVE_S = 2.0


class RemoteBench:
    """A `Bench` on a node, as a Ray actor.

    Args:
        archive: the artifact, see `pack_directory`.
        job: what to measure; its directory is where the artifact lay.
    """

    def __init__(self, archive: bytes, job: Job) -> None:
        self._folder = make_scratch_directory()
        unpack_directory(archive, self._folder)
        self._bench = attempt(Bench, dataclasses.replace(job, directory=self._folder))

    def call(self, method: str, arguments: Sequence[Any]) -> Reply:
        """Calls a method of the bench."""
        return (
            self._bench if self._bench.reason is not None else attempt(getattr(self._bench.value, method), *arguments)
        )

    def leave(self) -> None:
        """Removes the copy of the artifact."""
        shutil.rmtree(self._folder, ignore_errors=True)


class RayChannel:
    """Calls a `Bench` on a node of a cluster, all of whose CPUs it takes: other work would disturb it.

    Args:
        node: as `ray.nodes` describes it.
        payload: reference to archive and job, see `RemoteBench`.
    """

    def __init__(self, node: dict[str, Any], payload: Sequence[Any]) -> None:
        self.name = f"Ray node {node['NodeManagerAddress']} ({node['NodeID'][:8]})"
        self._node, self._payload = node, payload
        self._actor: Any = None

    def call(self, method: str, arguments: Sequence[Any], timeout_s: float) -> Reply:
        """Calls a method of the bench.

        Raises:
            MeasureFailed: when the node does not reply in time, which ends the process there, or the process dies.
        """
        try:
            if self._actor is None:
                self._actor = self._start()
            reply: Reply = ray.get(self._actor.call.remote(method, tuple(arguments)), timeout=timeout_s)
            return reply
        except GetTimeoutError as error:
            self._kill()
            raise MeasureFailed(
                f"{method.replace('_', ' ')} hung: no answer from {self.name} for {timeout_s:g} s, which may have "
                "other Ray work on its CPUs (more with --trial-timeout-s)"
            ) from error
        except RayError as error:
            self._kill()
            raise MeasureFailed(f"the process on {self.name} died: {str(error).strip().splitlines()[-1]}") from error

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        if self._actor is not None:
            with contextlib.suppress(RayError):
                ray.get(self._actor.leave.remote(), timeout=_LEAVE_S)
        self._kill()

    def _start(self) -> Any:
        options = {
            "num_cpus": self._node["Resources"]["CPU"],
            "scheduling_strategy": NodeAffinitySchedulingStrategy(self._node["NodeID"], soft=False),
        }
        return ray.remote(RemoteBench).options(**options).remote(*self._payload)

    def _kill(self) -> None:
        actor, self._actor = self._actor, None
        if actor is not None:
            ray.kill(actor)


@contextlib.contextmanager
def open_channels(address: str, job: Job) -> Iterator[list[RayChannel]]:
    """A channel to each node that has a CPU; a connection to the cluster that was made here is closed again.

    Args:
        address: "local" starts Ray on this machine, "auto" finds the cluster that this machine is part of.
        job: what to measure.

    Raises:
        SettingError: when there is no cluster at the address, or it has no CPUs.
    """
    is_own = not ray.is_initialized()
    if is_own:
        _connect(address)
    try:
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0.0) > 0.0]
        if not nodes:
            raise SettingError(f"--ray {address!r}: none of its nodes is alive and has a CPU")
        payload = (ray.put(pack_directory(job.directory)), ray.put(job))
        yield [RayChannel(node, payload) for node in nodes]
    finally:
        if is_own:
            ray.shutdown()


def pack_directory(directory: Path) -> bytes:
    """A directory as an uncompressed tar archive: weights do not compress."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(directory, ".")
    return buffer.getvalue()


def unpack_directory(archive: bytes, directory: Path) -> None:
    """Writes what `pack_directory` packed to a directory."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        # NOTE: Python 3.11.0 to 3.11.3 have neither filters nor an argument for them.
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        tar.extractall(directory)


def _connect(address: str) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that starts here reports nothing to Ray's makers
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SettingError(
            f"--ray {address!r}: cannot connect: {reason}; expected 'local', 'auto' or an address such as "
            "ray://host:10001, with Ray of the same version there"
        ) from error
