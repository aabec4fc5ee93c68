"""Texts that exit heads were trained on, remembered by an artifact: on them more texts leave early than on others."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from mpcompile.compile.texts.examples import Examples
from mpcompile.runtime.artifact import KNOWN_TEXTS


def list_rows(examples: Examples) -> list[tuple[str, str]]:
    """What texts are known by: each with what stands beside it, or with an empty text."""
    return list(zip(examples.texts, examples.text_pairs or [""] * len(examples), strict=True))


def write_known(directory: Path, examples: Examples) -> None:
    """Writes digests of texts into an artifact: not the texts themselves, which may be confidential."""
    save_file({"digests": np.unique(_digest(examples))}, directory / KNOWN_TEXTS)


def leave_out_known(directory: Path, examples: Examples) -> Examples:
    """The texts that the exit heads of an artifact were not trained on; of an artifact that does not say, all."""
    path = directory / KNOWN_TEXTS
    if not path.is_file():
        return examples
    return examples.take(np.flatnonzero(~np.isin(_digest(examples), load_file(path)["digests"])))


def _digest(examples: Examples) -> np.ndarray:
    """The first 64 bits of the SHA-256 of each text or pair, (N,)."""
    digests = [hashlib.sha256("\0".join(row).encode()).digest()[:8] for row in list_rows(examples)]
    return np.frombuffer(b"".join(digests), np.uint64)
