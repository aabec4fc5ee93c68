"""Checkpoints of a long training: whole or absent, and used only by the run that wrote them."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from mpcompile.store.results import digest, digest_arrays, replace_file

logger = logging.getLogger(__name__)

ABANDONED_S = 30 * 24 * 3600.0
"""Checkpoints that no run has touched for this long are deleted."""
STALE_S = 3600.0


@dataclass(frozen=True)
class State:
    """A training at one moment.

    Attributes:
        tensors: weights and what the optimizer remembers of them, by name.
        progress: counters, as JSON values.
    """

    tensors: dict[str, Tensor]
    progress: dict[str, Any]


class Checkpoint:
    """The last state of one run, in one file that is replaced in one move.

    The file is named after the digest of everything that decides the run's result, so that a run
    never takes up another's; two processes of the same run may both write it.

    Args:
        directory: made when the first state is saved.
        key: everything that the result depends on, as JSON values.
    """

    def __init__(self, directory: Path, key: Mapping[str, object]) -> None:
        self._digest = digest(key)
        self.path = directory / f"{self._digest}.safetensors"

    def save(self, state: State) -> None:
        """Puts a state in place of the last one; a disk that is full or read-only is a warning."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.tensors.items()}
        header = {"run": self._digest, "content": _digest(tensors), "progress": json.dumps(state.progress)}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.path, lambda name: save_file(tensors, name, header))
            self._sweep()
        except (OSError, SafetensorError) as error:
            logger.warning("%s: cannot keep a checkpoint (%s); if stopped, training starts anew", self.path, error)

    def load_maybe(self) -> State | None:
        """The last state, or None; a file that is damaged or of another run is put aside, and a warning says where."""
        try:
            content = self.path.read_bytes()  # at once: safe_open reads twice, and finds another file then
            header, tensors = _read_header(content), load(content)
            if header["run"] != self._digest:
                raise ValueError(f"it is of run {header['run']}")
            if header["content"] != _digest(tensors):
                raise ValueError("its content is not what was written")
            state = State(tensors, json.loads(header["progress"]))
        except FileNotFoundError:
            return None
        except (SafetensorError, ValueError, KeyError, OSError) as error:
            self.set_aside(str(error))
            return None
        logger.info("training goes on from %s", self.path)
        return state

    def set_aside(self, reason: str) -> None:
        """Renames a file that cannot be used, and says so."""
        aside = self.path.with_suffix(".damaged")
        with contextlib.suppress(OSError):
            os.replace(self.path, aside)
        logger.warning("%s: cannot go on from this checkpoint (%s); training starts anew, it is now %s",
                       self.path, reason, aside)  # fmt: skip

    def remove(self) -> None:
        """Deletes the file, once the result is kept elsewhere."""
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _sweep(self) -> None:
        """Deletes what killed processes left, and checkpoints of runs that were not resumed."""
        for pattern, age_s in (("writing-*", STALE_S), ("*.safetensors", ABANDONED_S), ("*.damaged", ABANDONED_S)):
            for path in self.path.parent.glob(pattern):
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > age_s:
                        path.unlink()


def _read_header(content: bytes) -> dict[str, str]:
    """What `save_file` was given beside the tensors."""
    size = int.from_bytes(content[:8], "little")
    header: dict[str, str] = json.loads(content[8 : 8 + size])["__metadata__"]
    return header


def _digest(tensors: Mapping[str, Tensor]) -> str:
    return digest_arrays({name: value.numpy() for name, value in tensors.items()})
