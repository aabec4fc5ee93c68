"""The model as the user hands it in: an object, a path or a hub id; and its tokenizer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpcompile.errors import CaptureError, SettingError
from mpcompile.store import digest_arrays
from mpcompile.timing import measure_interleaved

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Original:
    """The model to beat.

    Attributes:
        model: as passed in; loaded in fp32 where a path or id was given.
        tokenizer: passed in or found beside it, None when there is none.
        name: for messages.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    name: str

    def digest(self) -> str:
        """SHA-256 of its weights and config."""
        weights = {name: _to_numpy(value) for name, value in self.model.state_dict().items()}
        return digest_arrays(
            {**weights, "config": np.frombuffer(self.model.config.to_json_string().encode(), np.uint8)}
        )

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode, undone at the end, module by module."""
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training

    def run(self, batch: dict[str, Any], num_threads: int | None = None) -> np.ndarray:
        """Logits (B, C) of tensors ready for it, on so many CPU threads (None: as torch is set)."""
        import torch

        before = torch.get_num_threads()
        if num_threads not in (None, before):
            torch.set_num_threads(num_threads or before)
        try:
            with torch.inference_mode():
                logits: np.ndarray = self.model(**batch).logits.float().cpu().numpy()
            return logits
        finally:
            if torch.get_num_threads() != before:
                torch.set_num_threads(before)

    def find_threads(self, batches: Sequence[dict[str, Any]]) -> int:
        """CPU threads that it runs fastest on: as many as torch is set to, or one.

        OpenMP's threads wait for each other spinning: where another process has a core, two of them can be
        many times slower than one, and a baseline that slow would make any result look good.
        """
        import torch

        def calls(num_threads: int) -> list[Callable[[], object]]:
            return [lambda batch=batch: self.run(batch, num_threads) for batch in batches]  # type: ignore[misc]

        choices = sorted({1, torch.get_num_threads()})
        timings = measure_interleaved({str(n): calls(n) for n in choices}, runs=2)
        return min(choices, key=lambda n: timings[str(n)].median_s)

    def prepare(self, batch: dict[str, np.ndarray], names: tuple[str, ...]) -> dict[str, Any]:
        """Arrays as tensors where the model is."""
        import torch

        return {name: torch.from_numpy(batch[name]).to(self.model.device) for name in names}


def open_original(model: PreTrainedModel | str | Path, tokenizer: PreTrainedTokenizerBase | None) -> Original:
    """Loads what is not loaded yet.

    Raises:
        CaptureError: when a path or id holds no sequence classifier.
        SettingError: when the model is none of the three.
    """
    if isinstance(model, str | Path):
        return _open_path(str(model), tokenizer)
    if not hasattr(model, "config"):
        raise SettingError(
            f"model: got {type(model).__name__}; expected a transformers sequence classifier, a path to one or a hub id"
        )
    if tokenizer is None:
        place = str(getattr(model, "name_or_path", "") or "")
        tokenizer = _find_tokenizer_maybe(place) if place and Path(place).is_dir() else None
    return Original(model, tokenizer, type(model).__name__)


def _open_path(place: str, tokenizer: PreTrainedTokenizerBase | None) -> Original:
    import torch
    from transformers import AutoModelForSequenceClassification

    if place.startswith((".", "/", "~")) and not Path(place).expanduser().is_dir():
        raise CaptureError(f"{place}: no such folder; expected one with config.json and model.safetensors, or a hub id")
    path = Path(place).expanduser()
    where = str(path) if path.is_dir() else place
    try:
        # fp32, whatever was saved: the original is timed in what it runs fastest in on a CPU.
        model = AutoModelForSequenceClassification.from_pretrained(where, dtype=torch.float32)
    except Exception as error:  # transformers raises whatever hub, safetensors and the config raise
        raise CaptureError(f"{place}: cannot load a sequence classifier from there: {error}") from error
    model.eval()
    return Original(model, tokenizer or _find_tokenizer_maybe(where), place)


def _find_tokenizer_maybe(place: str) -> PreTrainedTokenizerBase | None:
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place)
    except Exception:  # whatever is missing there, the caller says so if texts need a tokenizer
        return None
    return tokenizer


def _to_numpy(value: Any) -> np.ndarray:
    import torch

    value = value.detach().cpu().contiguous()
    array: np.ndarray = (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()
    return array
