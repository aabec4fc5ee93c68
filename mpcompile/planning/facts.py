"""What a plan asks of a model, kept in the store: a folder that was planned for before is not opened again.

Without torch and transformers, whose imports take seconds, until something has to be looked up in the model itself.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpcompile.compile.texts.examples import Examples, load_examples
from mpcompile.contract.task import Task
from mpcompile.cost.regions import GraphWork
from mpcompile.errors import SettingError
from mpcompile.progress import StageProgress
from mpcompile.store.results import Store
from mpcompile.store.source import digest_source

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mpcompile.compile.original import Original
    from mpcompile.graph.capture import CapturedModel

DEFAULT_LENGTH = 128
"""Tokens of an example when neither texts nor a length are given: what public BERT latencies are given for."""
_HEADER_SIZE_BYTES = 8
"""Of the length that a safetensors file starts with (https://huggingface.co/docs/safetensors)."""


@dataclass(frozen=True)
class ModelFacts:
    """What a plan asks of a model.

    Attributes:
        task: what it answers.
        max_length: tokens that it reads at most.
        num_parameters: of the model as it was loaded.
        work: of its graph and of all that can be inserted into it.
    """

    task: Task
    max_length: int
    num_parameters: int
    work: GraphWork

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**vars(self), "task": self.task.to_json(), "work": self.work.to_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ModelFacts:
        """The facts that `to_json` described."""
        return cls(**{**values, "task": Task.from_json(values["task"]), "work": GraphWork.from_json(values["work"])})


class PlannedModel:
    """A model to plan for, opened when the store does not know what is asked.

    Args:
        model: a transformers model, a path to one or a hub id.
        tokenizer: of texts; None for the one beside the model.
        store: keeps the facts of a model in a folder, and the lengths of texts by its own tokenizer.
        bars: draws the stages.
    """

    def __init__(
        self,
        model: PreTrainedModel | str | Path,
        tokenizer: PreTrainedTokenizerBase | None,
        store: Store,
        bars: StageProgress,
    ) -> None:
        self._model, self._tokenizer, self._store, self._bars = model, tokenizer, store, bars
        self._digest = _digest_folder_maybe(model)

    @property
    def name(self) -> str:
        """For messages."""
        return str(self._model) if isinstance(self._model, str | Path) else type(self._model).__name__

    def find_facts(self, fusion: str) -> ModelFacts:
        """Facts of the model.

        Args:
            fusion: rules to count its work with, of `cost.fusion.FUSIONS`.

        Raises:
            CaptureError: when it is not an encoder that is understood.
            SettingError: when it is no model at all.
        """
        key = {"kind": "facts of a model", "fusion": fusion}
        return ModelFacts.from_json(self._fetch(key, self._digest, lambda: self._open(fusion).to_json()))

    def find_lengths(self, facts: ModelFacts, texts: Any, seq_len: int | None) -> np.ndarray:
        """Tokens of the workload's examples, (N,) int64.

        Args:
            facts: of the model.
            texts: texts or where they are, see `optimize`; None for `seq_len`.
            seq_len: tokens of every example; None without texts for 128 or what the model reads.

        Raises:
            DataError: when texts are malformed.
            SettingError: when both are given, the length is not allowed, or texts have no tokenizer.
        """
        longest = facts.max_length
        if texts is None:
            length = min(DEFAULT_LENGTH, longest) if seq_len is None else seq_len
            if not isinstance(length, int) or isinstance(length, bool) or not 2 <= length <= longest:
                raise SettingError(f"seq_len: {length!r}; a whole number from 2 to {longest}, what the model reads")
            return np.array([length])
        if seq_len is not None:
            raise SettingError(
                f"seq_len: {seq_len!r} beside texts; texts have lengths of their own: give one of the two"
            )
        examples = load_examples(texts)
        key = {"kind": "lengths of texts", "texts": examples.texts, "text_pairs": examples.text_pairs}
        own = self._digest if self._tokenizer is None else None
        lengths = self._fetch(key, own, lambda: self._count_tokens(examples, longest))
        return np.array(lengths, np.int64)

    def _fetch(self, key: dict[str, Any], digest: str | None, compute: Callable[[], Any]) -> Any:
        """JSON values from the store, or computed where there is no digest to keep them under."""
        if digest is None:
            return compute()
        return self._store.fetch_json({**key, "model": digest, "source": digest_source()}, compute)

    def _open(self, fusion: str) -> ModelFacts:
        from mpcompile.cost.work import estimate_work

        captured = self._captured
        with self._bars.stage("count the work"):
            work = estimate_work(captured, fusion, self._store)
        num_parameters = sum(value.numel() for value in self._original.model.parameters())
        return ModelFacts(captured.task, captured.max_length, num_parameters, work)

    def _count_tokens(self, examples: Examples, longest: int) -> list[int]:
        from mpcompile.runtime.tokens import Tokenizer

        found = self._original.tokenizer
        if found is None:
            raise SettingError(f"tokenizer: none found beside {self.name}, and texts need one; give a length instead")
        encoded = Tokenizer.from_transformers(found, longest).encode(examples.texts, examples.text_pairs)
        return [max(len(tokens), 1) for tokens in encoded]

    @functools.cached_property
    def _original(self) -> Original:
        from mpcompile.compile.original import open_original

        return open_original(self._model, self._tokenizer)

    @functools.cached_property
    def _captured(self) -> CapturedModel:
        from mpcompile.graph.capture import capture

        original = self._original
        with self._bars.stage("capture"), original.evaluating():
            return capture(original.model, original.pooling.normalise)


def _digest_folder_maybe(model: PreTrainedModel | str | Path) -> str | None:
    """SHA-256 of what decides the facts of a model in a folder: every file there, and the configs one level below.

    Of safetensors the header is read alone: work depends on the shapes of weights, and not on what they are.
    None for anything that is no folder.
    """
    folder = Path(model).expanduser() if isinstance(model, str | Path) else None
    if folder is None or not folder.is_dir():
        return None
    sha = hashlib.sha256()
    for path in sorted([*folder.iterdir(), *folder.glob("*/*.json"), *folder.glob("*/*.safetensors")]):
        if path.is_file():
            sha.update(f"{path.relative_to(folder).as_posix()}\0".encode())
            sha.update(_digest_file(path))
    return sha.hexdigest()


def _digest_file(path: Path) -> bytes:
    with path.open("rb") as file:
        if path.suffix != ".safetensors":
            return hashlib.file_digest(file, "sha256").digest()
        size = int.from_bytes(file.read(_HEADER_SIZE_BYTES), "little")
        header = file.read(min(size, path.stat().st_size))
        return hashlib.sha256(header).digest()
