"""The original: the model as the user hands it in (an object, a path or a hub id), and its tokenizer."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpcompile.backends.cores import count_cores
from mpcompile.cost.timing import measure_interleaved
from mpcompile.errors import CaptureError, SettingError
from mpcompile.graph.sentence import Pooling, is_encoder, pool_mean, read_json_maybe, read_pooling_maybe
from mpcompile.store.results import digest_arrays

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GPU = "cuda"
VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
"""Files of a folder that hold the vocabulary of a tokenizer; without one transformers makes up an empty one."""


@dataclass(frozen=True)
class Original:
    """The model to beat.

    Attributes:
        model: as passed in; loaded in fp32 where a path or id was given.
        tokenizer: passed in or found beside it, None when there is none.
        name: for messages.
        pooling: of an encoder without a head, which answers with the mean over the tokens of a text.
        missing: why no tokenizer was found; empty where there is one.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    name: str
    pooling: Pooling = field(default=Pooling())
    missing: str = ""

    def describe_place(self) -> str:
        """Device and dtype, such as `cuda:0 in float16`."""
        return f"{self.model.device} in {str(self.model.dtype).removeprefix('torch.')}"

    @property
    def separator_id(self) -> int | None:
        """The token that its tokenizer puts between the texts of a pair; None when that is not known."""
        found = getattr(self.tokenizer, "sep_token_id", None)
        return None if found is None else int(found)

    def digest(self) -> str:
        """SHA-256 of its weights and config."""
        weights = {name: _to_numpy(value) for name, value in self.model.state_dict().items()}
        config = self.model.config.to_json_string() + ("normalised" if self.pooling.normalise else "")
        return digest_arrays({**weights, "config": np.frombuffer(config.encode(), np.uint8)})

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode and at most as many threads as there are cores, both undone at the end."""
        import torch

        threads, num_cores = torch.get_num_threads(), count_cores()
        if num_cores < threads:  # torch does not know the quota of a container
            torch.set_num_threads(num_cores)
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            yield
        finally:
            if num_cores < threads:
                torch.set_num_threads(threads)
            for module, training in modes:
                module.training = training

    def run(self, batch: dict[str, Any], num_threads: int | None = None) -> np.ndarray:
        """Logits (B, C) of a batch of tensors, on `num_threads` CPU threads (None: as torch is set).

        Of an encoder without a head, the vectors (B, D).
        """
        import torch

        before = torch.get_num_threads()
        if num_threads not in (None, before):
            torch.set_num_threads(num_threads or before)
        try:
            with torch.inference_mode():
                outputs = self.model(**batch, return_dict=True)
                if is_encoder(self.model):
                    hidden = outputs.last_hidden_state.float()
                    answer = pool_mean(hidden, batch["attention_mask"], self.pooling.normalise)
                else:
                    answer = outputs.logits.float()
            logits: np.ndarray = answer.cpu().numpy()
            return logits
        finally:
            if torch.get_num_threads() != before:
                torch.set_num_threads(before)

    def find_threads(self, batches: Sequence[dict[str, Any]]) -> int:
        """CPU threads that it runs fastest on: as many as torch is set to, as there are cores, or one.

        An engine takes all cores whatever OMP_NUM_THREADS says, so that the original may, too.

        OpenMP's threads wait for each other spinning: where another process has a core, two of them can be
        many times slower than one, and a baseline that slow would make any result look good.
        """
        import torch

        def calls(num_threads: int) -> list[Callable[[], object]]:
            return [partial(self.run, batch, num_threads) for batch in batches]

        choices = sorted({1, torch.get_num_threads(), count_cores()})
        timings = measure_interleaved({str(n): calls(n) for n in choices}, runs=2)
        return min(choices, key=lambda n: timings[str(n)].median_s)

    def prepare(self, batch: dict[str, np.ndarray], names: tuple[str, ...]) -> dict[str, Any]:
        """Arrays as tensors where the model is."""
        import torch

        return {name: torch.from_numpy(batch[name]).to(self.model.device) for name in names}


def place_original(
    original: Original, device_kind: str, batches: Sequence[dict[str, np.ndarray]], names: tuple[str, ...]
) -> Original:
    """The original as it is timed: where the engines run, in the dtype that it is fastest in there.

    On the CPU, and where torch sees no GPU, that is the original itself. A model on the CPU, or in fp32, beside engines
    on a GPU would make any result look good.

    Args:
        original: as passed in; left as it is.
        device_kind: "cpu" or "gpu", see `Backend`.
        batches: to time it on.
        names: what it reads of a batch.
    """
    import torch

    if device_kind != "gpu" or not torch.cuda.is_available():
        return original
    copies: dict[str, Original] = {}
    for dtype in (original.model.dtype, torch.float16, torch.bfloat16):
        model = copy.deepcopy(original.model).to(device=GPU, dtype=dtype)  # type: ignore[call-arg]
        copies[str(dtype)] = dataclasses.replace(original, model=model)
    calls = {
        name: [partial(each.run, each.prepare(batch, names)) for batch in batches] for name, each in copies.items()
    }
    timings = measure_interleaved(calls, runs=2)
    return copies[min(copies, key=lambda name: timings[name].median_s)]


def open_original(model: PreTrainedModel | str | Path, tokenizer: PreTrainedTokenizerBase | None) -> Original:
    """Loads a model from a path or hub id, and finds its tokenizer; an object is taken as it is.

    Raises:
        CaptureError: when a path or id holds no sequence classifier and no encoder.
        SettingError: when the model is none of the three.
    """
    if isinstance(model, str | Path):
        return _open_path(str(model), tokenizer)
    if not hasattr(model, "config"):
        raise SettingError(
            f"model: got {type(model).__name__}; expected a transformers sequence classifier or encoder, a path to one "
            "or a hub id"
        )
    if tokenizer is None:
        place = str(getattr(model, "name_or_path", "") or "")
        missing = "it came as an object"
        if place and Path(place).is_dir():
            tokenizer, missing = _find_tokenizer(place)
        return Original(model, tokenizer, type(model).__name__, missing=missing)
    return Original(model, tokenizer, type(model).__name__)


def _open_path(place: str, tokenizer: PreTrainedTokenizerBase | None) -> Original:
    import torch

    if place.startswith((".", "/", "~")) and not Path(place).expanduser().is_dir():
        raise CaptureError(f"{place}: no such folder; expected one with config.json and model.safetensors, or a hub id")
    path = Path(place).expanduser()
    where = str(path) if path.is_dir() else place
    loader, pooling = _find_loader(where)
    folder = {"subfolder": pooling.subfolder} if pooling.subfolder else {}
    try:
        # fp32, whatever was saved: the original is timed in what it runs fastest in on a CPU.
        model = loader.from_pretrained(where, dtype=torch.float32, **folder)
    except Exception as error:  # transformers raises whatever hub, safetensors and the config raise
        raise CaptureError(f"{place}: cannot load a sequence classifier or encoder from there: {error}") from error
    model.eval()
    missing = ""
    if tokenizer is None:
        tokenizer, missing = _find_tokenizer(where, **folder)
        if tokenizer is not None and pooling.max_length is not None:
            tokenizer.model_max_length = min(tokenizer.model_max_length, pooling.max_length)
    # As text: where Python takes file names for ASCII, as with LC_ALL=C, the other letters of a path are no Unicode.
    return Original(model, tokenizer, os.fsencode(place).decode("utf-8", "replace"), pooling, missing)


def _find_loader(place: str) -> tuple[Any, Pooling]:
    """What loads a model: its config says whether it is a classifier or an encoder, or its modules.json does.

    Raises:
        CaptureError: when it is a model of another kind.
    """
    from transformers import AutoModel, AutoModelForSequenceClassification

    config = read_json_maybe(place, "config.json", needs_hub=True) or {}
    (architecture, *_) = config.get("architectures") or [""]
    if architecture.endswith("ForSequenceClassification"):
        return AutoModelForSequenceClassification, Pooling()
    pooling = read_pooling_maybe(place)
    if pooling is not None:
        return AutoModel, pooling
    if architecture.endswith("Model"):
        return AutoModel, Pooling()
    if architecture:
        raise CaptureError(
            f"{place}: config.json says {architecture}; expected a ...ForSequenceClassification model, an encoder such "
            "as BertModel or a folder of sentence-transformers"
        )
    return AutoModelForSequenceClassification, Pooling()


def _find_tokenizer(place: str, **options: str) -> tuple[PreTrainedTokenizerBase | None, str]:
    """The tokenizer beside a model, or None and what is missing there: the caller says so if texts need one."""
    from transformers import AutoTokenizer

    folder = Path(place, options.get("subfolder", ""))
    if folder.is_dir() and not any((folder / name).is_file() for name in VOCABULARIES):
        return None, f"looked for {', '.join(VOCABULARIES[:-1])} and {VOCABULARIES[-1]}"
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place, **options)
    except Exception as error:  # transformers raises whatever hub, files and missing packages raise
        reason = " ".join(str(error).split())
        return None, f"AutoTokenizer says: {reason[:300]}"
    return tokenizer, ""


def _to_numpy(value: Any) -> np.ndarray:
    import torch

    value = value.detach().cpu().contiguous()
    array: np.ndarray = (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()
    return array
