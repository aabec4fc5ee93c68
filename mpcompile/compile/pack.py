"""Packs a compiled model: writes everything that it needs into one directory."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from mpcompile.compile.chains import Built, head_weights
from mpcompile.compile.job import Job, Model
from mpcompile.compile.outcome import find_versions
from mpcompile.compile.saving import save_original
from mpcompile.compile.texts.known import write_known
from mpcompile.compile.texts.parts import Texts
from mpcompile.graph.capture import CapturedModel
from mpcompile.graph.sentence import Pooling, write_pooling
from mpcompile.report.page import PAGE, write_page_maybe
from mpcompile.report.report import Report
from mpcompile.runtime.artifact import BACKBONE, EXITS, MODEL, REPORT, Manifest, write_manifest, write_plans
from mpcompile.runtime.model import OptimizedModel
from mpcompile.runtime.requests import ModelSignature
from mpcompile.store.scratch import explaining_scratch, make_scratch_directory


def pack_model(job: Job, model: Model, built: Built, report: Report, parts: Texts | None = None) -> OptimizedModel:
    """Writes the artifact into a temporary directory, which goes when the returned model does.

    Args:
        job: tokenizer and settings.
        model: the model that is deployed.
        built: its engines.
        report: of the run.
        parts: the texts; digests of those that exit heads were trained on are kept.
    """
    directory = make_scratch_directory()
    try:
        manifest = _describe(job, model, built)
        with explaining_scratch():
            missing = write_page_maybe(directory / PAGE, report)
            report = report if missing is None else report.with_notes(missing)
            _write(directory, job, model, built)
            if parts is not None and (built.chosen.heads or built.chosen.ngrams):
                write_known(directory, parts.taught)
            (directory / REPORT).write_text(json.dumps(report.to_json(), indent=2) + "\n", "utf-8")
            write_manifest(directory, manifest)
        packed = OptimizedModel(built.runtime, manifest.signature, report, job.tokenizer, directory)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    weakref.finalize(packed, shutil.rmtree, directory, ignore_errors=True)
    return packed


def _describe(job: Job, model: Model, built: Built) -> Manifest:
    captured, backend = model.captured, built.target.backend
    return Manifest(
        backend=backend.name,
        fingerprint=backend.fingerprint(),
        versions=find_versions(),
        signature=ModelSignature(
            captured.input_names,
            captured.num_labels,
            captured.max_length,
            captured.vocab_size,
            captured.id2label,
            model.task,
            captured.separator_id,
        ),
        segments=built.runtime.segments,
        split_tokens=built.runtime.split_tokens,
        has_tokenizer=job.tokenizer is not None,
    )


def _write(directory: Path, job: Job, model: Model, built: Built) -> None:
    """Plans, weights and tokenizer."""
    write_plans(directory, built.plans)
    save_original(job.original.model, directory / MODEL)
    if model.task.kind == "embedding":
        # The encoder lies in the folder itself here, and reads as much as our tokenizer gives.
        length = None if job.tokenizer is None else job.tokenizer.max_length
        pooling = Pooling(job.original.pooling.normalise, max_length=length)
        write_pooling(directory / MODEL, pooling, model.captured.hidden_size)
    save_file(head_weights(built.chosen.heads), directory / EXITS)
    if built.runtime.first_exit is not None:
        built.runtime.first_exit.classifier.save(directory)
    if job.settings.adapt == "finetune":
        save_file(_backbone_weights(model.captured), directory / BACKBONE)
    if job.tokenizer is not None:
        job.tokenizer.save(directory)


def _backbone_weights(captured: CapturedModel) -> dict[str, Tensor]:
    """Weights of a captured model by their names in its graph, tied ones once."""
    return {name: value.detach().contiguous() for name, value in captured.graph_module.named_parameters()}
