"""The systems that bench_cpu.py compares, each as a function from a batch to logits."""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

import mpcompile
from mpcompile.compile.original import open_original
from mpcompile.compile.texts.examples import load_examples
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.graph.capture import capture
from mpcompile.runtime.tokens import Tokenizer

Batch = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class System:
    """Something that classifies batches.

    Attributes:
        name: of its rows.
        prepare: turns arrays into what it takes, outside the clock.
        run: logits (B, C) of what `prepare` gave.
        facts: for its rows.
        max_texts: texts that its accuracy is measured on, fewer where it computes what the original does.
    """

    name: str
    prepare: Callable[[Batch], Any]
    run: Callable[[Any], np.ndarray]
    facts: dict[str, Any] = field(default_factory=dict)
    max_texts: int = 10**9


def eager(model: str) -> System:
    """The original as users run it."""
    original = open_original(_load(model), None)
    prepare = _tensors(_load(model))
    num_threads = original.find_threads([prepare(_ones((8, 64)))])
    facts = {"num_threads": num_threads}
    return System("original (HF eager)", prepare, lambda inputs: original.run(inputs, num_threads), facts)


def compiled(model: str) -> System:
    """torch.compile with dynamic shapes, the default otherwise."""
    fast = torch.compile(_load(model), dynamic=True)
    system = System("torch.compile", _tensors(_load(model)), lambda inputs: _run_torch(fast, inputs), {}, 500)
    for shape in ((2, 9), (1, 17), (32, 40)):
        system.run(system.prepare(_ones(shape)))
    return system


def onnx_runtime(model: str) -> System:
    """ONNX Runtime's CPU provider on the exported model."""
    import onnxruntime

    captured = capture(_load(model))
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=captured.max_length)
    example = {name: torch.from_numpy(_ones((2, 9))[name]) for name in captured.input_names}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            _Logits(_load(model)), tuple(example.values()), path, input_names=list(example), dynamo=True, verbose=False,
            dynamic_shapes=[{0: batch, 1: length} for _ in example],
        )  # fmt: skip
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def prepare(batch: Batch) -> dict[str, np.ndarray]:
        return {port.name: batch[port.name] for port in session.get_inputs()}

    return System("ONNX Runtime", prepare, lambda inputs: session.run(None, inputs)[0], {}, 500)


def openvino(model: str, precision: str) -> System:
    """OpenVINO on the whole model, as its own documentation converts it."""
    return _compile_openvino(f"OpenVINO {precision}", _convert(model), model, precision)


def openvino_int8(model: str, train: str, tokenizer: Tokenizer, num_texts: int = 300) -> System:
    """OpenVINO int8: NNCF post-training quantisation of the whole model, calibrated on train texts."""
    import nncf

    converted, names = _convert(model), _names(_load(model))
    examples = load_examples(train)
    examples = examples.take(range(min(num_texts, len(examples))))
    batches = [tokenizer.pad([tokens]) for tokens in tokenizer.encode(examples.texts, examples.text_pairs)]
    data = nncf.Dataset([[batch[name] for name in names] for batch in batches])
    quantised = nncf.quantize(converted, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(batches))
    return _compile_openvino("OpenVINO int8 (NNCF)", quantised, model, "f32")


def grouped(system: System, rows: int = 8) -> System:
    """A system whose batches are sorted by length and cut into groups of `rows`, each padded to its own longest text.

    What users of sentence-transformers have, which sorts all texts before it cuts them into batches.
    """

    def prepare(batch: Batch) -> list[tuple[np.ndarray, Any]]:
        lengths = batch["attention_mask"].sum(1)
        order = np.argsort(-lengths, kind="stable")
        groups = [order[start : start + rows] for start in range(0, len(order), rows)]
        cut = [{key: value[group, : lengths[group].max()] for key, value in batch.items()} for group in groups]
        whole = [{key: np.ascontiguousarray(value) for key, value in each.items()} for each in cut]
        return [(group, system.prepare(each)) for group, each in zip(groups, whole, strict=True)]

    def run(groups: list[tuple[np.ndarray, Any]]) -> np.ndarray:
        answers = [system.run(inputs) for _, inputs in groups]
        return np.concatenate(answers)[np.argsort(np.concatenate([group for group, _ in groups]))]

    return System(f"{system.name}, grouped by length", prepare, run, {**system.facts, "rows": rows}, system.max_texts)


def at_point(
    optimized: mpcompile.OptimizedModel, point: OperatingPoint, name: str, facts: dict[str, Any] | None = None
) -> System:
    """mpcompile at an operating point of its engines."""
    facts = {"point": point.to_json(), **(facts or {})}
    return System(name, dict, lambda batch: optimized.runtime.run(batch, point).logits, facts)


def prepare_calls(system: System, batches: Sequence[Batch]) -> list[Callable[[], np.ndarray]]:
    """A call per batch, prepared outside the clock."""
    return [functools.partial(system.run, system.prepare(batch)) for batch in batches]


def layer_ratio(model: str, student: str) -> float:
    """Flops of a model over those of a student of the same width: they are in the layers."""
    return _load(model).config.num_hidden_layers / _load(student).config.num_hidden_layers


def host_overhead(optimized: mpcompile.OptimizedModel, batches: Sequence[Batch]) -> dict[str, float]:
    """Time of a call of the model that is not spent inside engines, at the point optimized for."""
    optimized.set_speedup(optimized.report.target_speedup)
    runtime, inside = optimized.runtime, [0.0]
    engines = runtime.engines

    def timed(engine: Any) -> Any:
        def call(inputs: Batch) -> Any:
            start = time.perf_counter()
            outputs = engine(inputs)
            inside[0] += time.perf_counter() - start
            return outputs

        return call

    totals = []
    runtime.engines = tuple(timed(engine) for engine in engines)
    try:
        for batch in [*batches, *batches]:
            inside[0] = 0.0
            start = time.perf_counter()
            optimized(**batch)
            totals.append((time.perf_counter() - start, inside[0]))
    finally:
        runtime.engines = engines
    total, engine_s = np.array(totals[len(batches) :]).T
    outside = float(np.median(total - engine_s))
    return {
        "outside_s": outside,
        "total_s": float(total.mean()),
        "share": float((total - engine_s).sum() / total.sum()),
    }


class _Logits(torch.nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> Any:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **types).logits


@functools.cache
def _load(model: str) -> PreTrainedModel:
    return AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32).eval()


@functools.cache
def _names(model: PreTrainedModel) -> tuple[str, ...]:
    return capture(model).input_names


def _tensors(model: PreTrainedModel) -> Callable[[Batch], dict[str, torch.Tensor]]:
    names = _names(model)
    return lambda batch: {name: torch.from_numpy(batch[name]) for name in names}


def _run_torch(model: Any, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    with torch.inference_mode():
        return model(**inputs).logits.numpy()


def _ones(shape: tuple[int, int]) -> dict[str, np.ndarray]:
    ones = np.ones(shape, np.int64)
    return {"input_ids": ones * 5, "attention_mask": ones, "token_type_ids": ones * 0}


def _convert(model: str) -> Any:
    import openvino as ov

    loaded = _load(model)
    names = _names(loaded)
    example = {name: torch.from_numpy(_ones((2, 9))[name]) for name in names}
    shapes = {name: {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=512)} for name in names}
    program = torch.export.export(_Logits(loaded), (), example, dynamic_shapes=shapes)
    return ov.convert_model(program)


def _compile_openvino(name: str, model: Any, source: str, precision: str) -> System:
    import openvino as ov

    core = ov.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise RuntimeError("this CPU has no bf16")
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    names = _names(_load(source))

    def run(inputs: list[np.ndarray]) -> np.ndarray:
        for position, value in enumerate(inputs):
            request.set_input_tensor(position, ov.Tensor(value, shared_memory=True))
        request.infer()
        return request.get_output_tensor(0).data.copy()

    return System(name, lambda batch: [batch[key] for key in names], run)
