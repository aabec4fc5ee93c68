"""`plan`: forecasts what would meet a target on a device, from a model and the name of the device."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpcompile.backends import find_backend
from mpcompile.contract.backend import Target
from mpcompile.contract.front import check_target
from mpcompile.contract.options import takes
from mpcompile.contract.task import Task
from mpcompile.cost.device import Device
from mpcompile.cost.devices import find_device
from mpcompile.cost.forecast import Forecast, Memory
from mpcompile.cost.model import CostModel
from mpcompile.cost.profiles import PRESENT_MACHINE, find_kept_profile
from mpcompile.cost.rates import Profile, declare_rates
from mpcompile.errors import BackendError, SettingError
from mpcompile.planning.facts import ModelFacts, PlannedModel
from mpcompile.planning.planner import PlannedPoint, Planner, count_activation_bytes
from mpcompile.planning.settings import PlanSettings
from mpcompile.progress import StageProgress
from mpcompile.store.results import Store

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CONTEXT_BYTES = {"gpu": 5e8, "cpu": 2e8}
"""Driver, libraries and runtime in memory, estimates: a CUDA context with TensorRT's kernels takes 0.3 to 0.8 GB
(https://github.com/NVIDIA/TensorRT/issues/1858), OpenVINO with Python about 0.2 GB."""
FUSION_ON = {"gpu": "TensorRT", "cpu": "OpenVINO"}
"""Rules of `cost.fusion.FUSIONS` that engines on a kind of device follow: the fastest backend there."""
ROOMY = 0.8
"""Share of the memory that may be filled before the plan warns."""


@takes(PlanSettings)
def plan(
    model: PreTrainedModel | str | Path,
    device: str,
    target_speedup: float,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    texts: Any = None,
    **options: Any,
) -> Forecast:
    """Plans a model for a device that need not be at hand: nothing is trained, built or timed.

    Args:
        model: a transformers sequence classifier, a path to one or a hub id.
        device: a name of the devices file, such as "jetson-orin-nano".
        target_speedup: times the unpruned model through the same kind of engines on that device; 1 to 100.
        tokenizer: found beside the model when it is a path or id; needed for texts alone.
        texts: whose lengths to plan for; see `optimize`.
        **options: see `PlanSettings`.

    Raises:
        SettingError: when an option has a value that is not allowed, or the device is not known.
        CaptureError: when the model is not an encoder that is understood.
        DataError: when texts are malformed.
        TargetUnreachable: when the target is out of reach; with the floor and the best reachable number.
    """
    check_target(target_speedup)
    settings = PlanSettings.read("plan", options)
    found = find_device(device, settings.devices)
    precision = _choose_precision(found, settings.precision)
    store = Store(settings.cache_dir)
    with StageProgress(settings.progress) as bars:
        planned = PlannedModel(model, tokenizer, store, bars)
        facts = planned.find_facts(FUSION_ON[found.kind])
        lengths = planned.find_lengths(facts, texts, settings.seq_len)
        cost, notes = _cost_model(facts, found, precision, store)
        planner = Planner(cost, lengths, settings.batch_size, facts.task.has_exits)
        with bars.stage("search") as stage:
            candidate, reachable = planner.plan(target_speedup, stage)
    memory = _estimate_memory(facts, cost, found, candidate, settings.batch_size, int(lengths.max()))
    return Forecast(
        model=planned.name,
        device=found.name,
        precision=precision,
        batch_size=settings.batch_size,
        mean_length=float(lengths.mean()),
        target_speedup=target_speedup,
        unpruned_s=planner.unpruned_s,
        floor_s=planner.floor_s,
        reachable_speedup=reachable,
        speedup=planner.unpruned_s / candidate.seconds,
        point=dataclasses.replace(candidate.point, precision=precision),
        exit_share=candidate.exit_share,
        segments=candidate.segments,
        memory=memory,
        fixed_share=planner.fixed_share(),
        notes=(*notes, *_exit_notes(facts.task), *_memory_notes(memory, found)),
    )


def _choose_precision(device: Device, precision: str) -> str:
    if precision == "auto":
        native = _list_native() if device.name == PRESENT_MACHINE else ("f16", "bf16", "f32")
        return next(name for name in native if name in device.peak_flops_per_s)
    if precision not in device.peak_flops_per_s:
        allowed = ", ".join(device.peak_flops_per_s)
        raise SettingError(f"precision: {precision!r}; {device.name} has {allowed}: choose one of these or auto")
    return precision


def _list_native() -> tuple[str, ...]:
    """Precisions of this machine, the fastest first: what `mpcompile calibrate` measures, too."""
    try:
        precisions = find_backend("auto").precisions()
        return tuple(name for name in precisions[::-1] if name != "int8")
    except BackendError:
        return ("bf16", "f32")


def _cost_model(facts: ModelFacts, device: Device, precision: str, store: Store) -> tuple[CostModel, tuple[str, ...]]:
    """The cost model on a device: measured where it is this machine and was measured, else declared."""
    rates = declare_rates(device, precision)
    note = (
        f"times follow from datasheets (devices.toml); time of arithmetic scaled by {device.arithmetic_scale:g}, "
        f"{device.sources['arithmetic_scale']}"
    )
    if device.name == PRESENT_MACHINE:
        profile = _find_profile(precision, store)
        note = "times follow from declared numbers; run mpcompile calibrate on the machine for measured ones"
        if profile is not None:
            rates = profile.rates
            note = f"times follow from a measured profile of this machine, median error {profile.median_error:.0%}"
    return CostModel(facts.work, rates, max_length=facts.max_length), (note,)


def _find_profile(precision: str, store: Store) -> Profile | None:
    """This machine's, where it can run that precision at all."""
    try:
        backend = find_backend("auto")
    except BackendError:
        return None
    return find_kept_profile(Target(backend, precision), store)


def _estimate_memory(
    facts: ModelFacts, cost: CostModel, device: Device, candidate: PlannedPoint, batch_size: int, seq_len: int
) -> Memory:
    return Memory(
        weights=float(facts.num_parameters * cost.rates.activation_bytes),
        activations=count_activation_bytes(cost, candidate.point, batch_size, seq_len),
        context=CONTEXT_BYTES[device.kind],
        device=float(device.memory_bytes),
    )


def _exit_notes(task: Task) -> tuple[str, ...]:
    return () if task.has_exits else (task.explain_no_exits(),)


def _memory_notes(memory: Memory, device: Device) -> tuple[str, ...]:
    if memory.total <= ROOMY * memory.device:
        return ()
    return (
        f"memory: {memory.total / 1e9:.2f} GB are needed of the {memory.device / 1e9:.2f} GB of {device.name}; "
        "take a smaller batch or precision",
    )
