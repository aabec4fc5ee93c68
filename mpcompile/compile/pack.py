"""Packs a compiled model: writes everything that it needs into one directory."""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file
from torch import Tensor

from mpcompile.compile.context import Context
from mpcompile.graph.capture import CapturedModel
from mpcompile.graph.sentence import Pooling, write_pooling
from mpcompile.report.page import PAGE, write_page_maybe
from mpcompile.report.report import Report
from mpcompile.runtime.artifact import BACKBONE, EXITS, MODEL, REPORT, Manifest, write_manifest, write_plans
from mpcompile.runtime.model import OptimizedModel
from mpcompile.runtime.requests import ModelSignature
from mpcompile.runtime.runtime import Runner
from passes import ExitHead

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def pack_model(
    context: Context, runtime: Runner, plans: Sequence[bytes], heads: Mapping[int, ExitHead], report: Report
) -> OptimizedModel:
    """Writes the artifact into a temporary directory, which goes when the returned model does."""
    captured = context.captured
    signature = ModelSignature(
        captured.input_names,
        captured.num_labels,
        captured.max_length,
        captured.vocab_size,
        captured.id2label,
        context.task,
        captured.separator_id,
    )
    directory = Path(tempfile.mkdtemp(prefix="mpcompile-"))
    try:
        write_plans(directory, plans)
        _save_original(context.original.model, directory / MODEL)
        if context.task.kind == "embedding":
            write_pooling(directory / MODEL, _pooling(context), captured.hidden_size)
        save_file(head_weights(heads), directory / EXITS)
        if context.settings.adapt == "finetune":
            save_file(_backbone_weights(captured), directory / BACKBONE)
        if context.tokenizer is not None:
            context.tokenizer.save(directory)
        missing = write_page_maybe(directory / PAGE, report)
        report = report if missing is None else report.with_notes(missing)
        (directory / REPORT).write_text(json.dumps(report.to_json(), indent=2) + "\n", "utf-8")
        manifest = Manifest(
            backend=context.backend.name,
            fingerprint=context.backend.fingerprint(),
            versions=find_versions(),
            signature=signature,
            segments=runtime.segments,
            split_tokens=runtime.split_tokens,
            has_tokenizer=context.tokenizer is not None,
        )
        write_manifest(directory, manifest)
        model = OptimizedModel(runtime, signature, report, context.tokenizer, directory)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    weakref.finalize(model, shutil.rmtree, directory, ignore_errors=True)
    return model


def _pooling(context: Context) -> Pooling:
    """That of the original, as its encoder lies in the folder itself and reads as much as our tokenizer gives."""
    length = None if context.tokenizer is None else context.tokenizer.max_length
    return Pooling(context.original.pooling.normalise, max_length=length)


def _save_original(model: PreTrainedModel, directory: Path) -> None:
    """Saves the model as Hugging Face does, without the traces that this leaves in its config, and silently."""
    from transformers.utils import logging as transformers_logging

    before, bars = dict(vars(model.config)), transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model.save_pretrained(directory)
    finally:
        vars(model.config).clear()
        vars(model.config).update(before)
        if bars:
            transformers_logging.enable_progress_bar()


def head_weights(heads: Mapping[int, ExitHead]) -> dict[str, Tensor]:
    """Weights of exit heads as `LAYER.hidden.weight` and so on."""
    return {f"{layer}.{name}": value for layer, head in heads.items() for name, value in head.state_dict().items()}


def _backbone_weights(captured: CapturedModel) -> dict[str, Tensor]:
    """Weights of a captured model by their names in its graph, tied ones once."""
    return {name: value.detach().contiguous() for name, value in captured.graph_module.named_parameters()}


def find_versions() -> dict[str, str]:
    """Versions of what makes an artifact."""
    versions = {"python": platform.python_version()}
    for name in ("mpcompile", "torch", "transformers"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
