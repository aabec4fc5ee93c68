"""Saves the original and loads it again, before anything slow: what is packed must answer as what was captured."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mpcompile.compile.original import Original, open_original
from mpcompile.errors import CaptureError
from mpcompile.graph.capture import list_input_names
from mpcompile.graph.sentence import is_encoder
from mpcompile.store.scratch import is_of_disk, scratch_directory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NUM_ROWS, NUM_TOKENS = 4, 16
TOLERANCE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest difference of an answer, as a share of the largest one: the copy is loaded in fp32."""
MERGE = "merge them into the weights first: model = model.merge_and_unload(), of a model that peft.PeftModel loaded"


def check_adapters(model: object) -> None:
    """Refuses adapters, which are saved without the model that they belong to.

    Raises:
        CaptureError: when the model is one of PEFT, or has layers of adapters inside.
    """
    if hasattr(model, "merge_and_unload"):
        raise CaptureError(f"model: {type(model).__name__} is a model with adapters; {MERGE}")
    modules = getattr(model, "named_modules", None)
    names = [] if modules is None else [name for name, _ in modules()]
    found = [name for name in names if "lora_" in name or "adapter" in name.split(".")]
    if found:
        raise CaptureError(f"model: {type(model).__name__} has adapters inside ({found[0]}, ...); {MERGE}")


def check_saved(original: Original) -> None:
    """Refuses a model that answers otherwise once it was saved and loaded, as an artifact does to build engines again.

    Raises:
        CaptureError: when it does, or when it cannot be saved or loaded.
    """
    name = type(original.model).__name__
    with scratch_directory() as folder:
        try:
            save_original(original.model, folder)
        except Exception as error:  # transformers raises whatever the config and the weights raise
            if is_of_disk(error):
                raise
            raise CaptureError(f"{name}: cannot be saved: save_pretrained says: {error}") from error
        try:
            with _without_bars():
                loaded = open_original(folder, None)
        except CaptureError as error:
            raise CaptureError(f"{name}: cannot be loaded once it was saved: {error}") from error
    difference, largest = _compare(original, Original(loaded.model, None, name, original.pooling))
    if not difference <= TOLERANCE.get(str(original.model.dtype).removeprefix("torch."), 1e-3) * largest:
        kind = "AutoModel" if is_encoder(original.model) else "AutoModelForSequenceClassification"
        raise CaptureError(
            f"{name}: saved with save_pretrained and loaded with {kind} it is a {type(loaded.model).__name__} that "
            f"answers otherwise (by up to {difference:.3g}, of {largest:.3g}): engines could not be built again from "
            "the artifact. Give the model as a class of transformers, with a head of its own merged into that class"
        )


def save_original(model: PreTrainedModel, directory: Path) -> None:
    """Saves the model as Hugging Face does, without the traces that this leaves in its config, and silently."""
    before = dict(vars(model.config))
    try:
        with _without_bars():
            model.save_pretrained(directory)
    finally:
        vars(model.config).clear()
        vars(model.config).update(before)


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Progress bars of transformers are off."""
    from transformers.utils import logging as transformers_logging

    are_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if are_on:
            transformers_logging.enable_progress_bar()


def _compare(original: Original, loaded: Original) -> tuple[float, float]:
    """The largest difference of an answer to random tokens, and the largest answer."""
    length = min(NUM_TOKENS, int(getattr(original.model.config, "max_position_embeddings", NUM_TOKENS)) // 2)
    ids = np.random.default_rng(0).integers(0, original.model.config.vocab_size, (NUM_ROWS, max(length, 2)))
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    loaded.model.to(device=original.model.device)  # type: ignore[call-arg]
    names = list_input_names(original.model)
    with loaded.evaluating():
        ours, theirs = (each.run(each.prepare(batch, names)) for each in (loaded, original))
    return float(np.abs(ours - theirs).max()), max(float(np.abs(theirs).max()), 1e-6)
