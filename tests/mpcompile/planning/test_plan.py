"""Tests of `plan`: the tiny BERT on devices that are not at hand, and on this one."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import mpcompile
from mpcompile.backends.openvino.backend import OpenVinoBackend
from mpcompile.contract.backend import Target
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.contract.precision import fastest_float
from mpcompile.cost import calibration
from mpcompile.cost.devices import load_devices
from mpcompile.cost.expected import ExpectedTime, total_seconds
from mpcompile.cost.forecast import Forecast
from mpcompile.cost.model import CostModel
from mpcompile.cost.profiles import find_profile
from mpcompile.cost.rates import Profile, Rates, declare_rates
from mpcompile.cost.regions import GraphWork
from mpcompile.errors import BackendError, CaptureError, DataError, SettingError, TargetUnreachable
from mpcompile.planning import plan as planning
from mpcompile.store.results import Store
from tests.models import MAX_POSITIONS

PlanTiny = Callable[..., Forecast]
DEVICES = load_devices()
MEASURED_CALL_S = 7.0
DEVICES_FILE = Path(planning.__file__).parents[1] / "cost" / "devices.toml"


def describe(device: str, name: str, **changes: str) -> str:
    """A devices file of one of the packaged devices under another name, lines of it replaced."""
    lines = DEVICES_FILE.read_text("utf-8").splitlines()
    start = lines.index(f"[{device}]")
    (*_, end) = (i for i, line in enumerate(lines) if line.startswith(f"[{device}."))
    end = next((i for i in range(end + 1, len(lines)) if lines[i].startswith("[")), len(lines))
    text = "\n".join(lines[start:end]).replace(f"[{device}", f"[{name}")
    for field, value in changes.items():
        (old,) = (line for line in text.splitlines() if line.startswith(f"{field} = ") and '"' not in line)
        text = text.replace(old, f"{field} = {value}")
    return text + "\n"


# ---------------------------------------------------------------------------------- what is planned


@pytest.mark.parametrize("device", DEVICES)
def test_every_known_device_is_planned_for(plan_tiny: PlanTiny, device: str) -> None:
    plan = plan_tiny(device)
    assert (plan.device, plan.speedup, plan.point.exit_layers) == (device, 1.0, (3,))
    assert 0.0 < plan.floor_s <= plan.unpruned_s < 1.0
    assert plan.reachable_speedup >= 1.0
    assert plan.precision == ("f16" if DEVICES[device].kind == "gpu" else fastest_float(OpenVinoBackend().precisions()))
    assert device in str(plan)


@pytest.mark.parametrize(("device", "precision"), [("l4", "int8"), ("t4", "f32"), ("h100", "fp8"), ("cpu", "f32")])
def test_times_are_those_of_the_cost_model(
    plan_tiny: PlanTiny, works: dict[str, GraphWork], device: str, precision: str
) -> None:
    plan = plan_tiny(device, precision=precision, seq_len=17, batch_size=5)
    work = works["TensorRT" if DEVICES[device].kind == "gpu" else "OpenVINO"]
    cost = CostModel(work, declare_rates(DEVICES[device], precision), max_length=MAX_POSITIONS)
    assert plan.precision == precision
    assert plan.unpruned_s == pytest.approx(float(cost.predict_unpruned(5, np.float64(17))))


def test_plan_is_predicted_afresh_to_the_same_number(
    plan_tiny: PlanTiny, works: dict[str, GraphWork], tiny_tokenizer: PreTrainedTokenizerFast, tiny_texts: list[str]
) -> None:
    options = {"precision": "f32", "batch_size": 32, "texts": tiny_texts, "tokenizer": tiny_tokenizer}
    plan = plan_tiny("cpu", 1.3, **options)
    lengths = np.array([len(tiny_tokenizer(text)["input_ids"]) for text in tiny_texts])
    cost = CostModel(works["OpenVINO"], declare_rates(DEVICES["cpu"], "f32"), max_length=MAX_POSITIONS)
    expected = ExpectedTime(cost, lengths, 32)
    survival = [(1 - plan.exit_share) ** index for index in range(len(plan.point.exit_layers))]
    assert plan.mean_length == lengths.mean()
    assert plan.unpruned_s == total_seconds(expected.predict(OperatingPoint((3,)), [1.0]))
    assert plan.predicted_s == pytest.approx(total_seconds(expected.predict(plan.point, survival)))
    assert plan.segments == expected.predict(plan.point, survival)
    assert plan.speedup >= 1.3


def test_target_out_of_reach_is_refused_with_the_best_that_is_not(plan_tiny: PlanTiny) -> None:
    with pytest.raises(TargetUnreachable, match=r"target_speedup=100: the best reachable on l4 f16 is 1x"):
        plan_tiny("l4", 100)


def test_length_is_128_or_what_the_model_reads(plan_tiny: PlanTiny) -> None:
    assert plan_tiny().mean_length == MAX_POSITIONS


def test_texts_of_pairs_are_planned_for(
    plan_tiny: PlanTiny, tiny_tokenizer: PreTrainedTokenizerFast, tiny_texts: list[str]
) -> None:
    pairs = [(text, "ban del") for text in tiny_texts]
    plan = plan_tiny(texts=pairs, tokenizer=tiny_tokenizer)
    lengths = [len(tiny_tokenizer(*pair)["input_ids"]) for pair in pairs]
    assert plan.mean_length == np.mean(lengths)


def test_same_plan_is_made_again(plan_tiny: PlanTiny) -> None:
    assert plan_tiny("cpu", 1.2) == plan_tiny("cpu", 1.2)


def test_mode_of_the_model_is_left_as_it_was(plan_tiny: PlanTiny, tiny_bert: PreTrainedModel) -> None:
    tiny_bert.train()
    try:
        plan_tiny()
        assert tiny_bert.training
    finally:
        tiny_bert.eval()


def test_weights_take_what_their_precision_takes(plan_tiny: PlanTiny, tiny_bert: PreTrainedModel) -> None:
    parameters = sum(parameter.numel() for parameter in tiny_bert.parameters())
    for precision, size in (("f32", 4), ("f16", 2), ("int8", 1)):
        assert plan_tiny(precision=precision).memory.weights == parameters * size


def test_activations_are_those_of_the_longest_text(
    plan_tiny: PlanTiny, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = ["ban", "ban " * 20, "ban del"]
    activations = plan_tiny(texts=texts, tokenizer=tiny_tokenizer).memory.activations
    assert activations == plan_tiny(seq_len=22).memory.activations > plan_tiny(seq_len=21).memory.activations


def test_progress_is_drawn_on_standard_error(plan_tiny: PlanTiny, capfd: pytest.CaptureFixture[str]) -> None:
    plan_tiny()
    assert capfd.readouterr() == ("", "")
    plan_tiny(progress=True)
    out, err = capfd.readouterr()
    assert out == "" and "count the work" in err and "search" in err


# ---------------------------------------------------------------------------------- devices of the user


def test_device_of_a_file_of_the_user_is_planned_for(plan_tiny: PlanTiny, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(describe("l4", "my-card", engine_overhead_s="9.0e-4"))
    plan = plan_tiny("my-card", devices=path)
    assert plan.device == "my-card"
    assert plan.floor_s - plan_tiny("l4").floor_s == pytest.approx(9.0e-4 - DEVICES["l4"].engine_overhead_s)


def test_device_without_room_is_said(plan_tiny: PlanTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(describe("l4", "small", memory_bytes="1_000_000_000"))
    assert not any(note.startswith("memory:") for note in plan_tiny("small", devices=path).notes)
    monkeypatch.setitem(planning.CONTEXT_BYTES, "gpu", 8.1e8)
    (note,) = (note for note in plan_tiny("small", devices=path).notes if note.startswith("memory:"))
    assert note == "memory: 0.81 GB are needed of the 1.00 GB of small; take a smaller batch or precision"


@pytest.mark.parametrize("device", ["nano", "L4 ", "", "jetson_orin_nano"])
def test_unknown_device_lists_the_known(plan_tiny: PlanTiny, device: str) -> None:
    with pytest.raises(SettingError) as error:
        plan_tiny(device)
    assert str(error.value).startswith(f"device: {device!r} is not known; ")
    assert all(name in str(error.value) for name in DEVICES)


def test_device_that_the_file_of_the_user_lacks_is_not_taken_from_ours(plan_tiny: PlanTiny, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(describe("l4", "my-card"))
    with pytest.raises(SettingError, match=r"device: 'l4' is not known; .*Known are my-card\."):
        plan_tiny("l4", devices=path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no device"),
        ("[small\n", "not TOML"),
        ("[small]\nkind = 'gpu'\n", r"small\.variant: missing"),
        (
            describe("l4", "small", peak_bytes_per_s="300.0"),
            r"small\.peak_bytes_per_s: 300\.0; .*write bytes per second",
        ),
        (describe("l4", "small", memory_bytes="-1"), r"small\.memory_bytes: -1; "),
    ],
    ids=["empty", "half", "missing field", "GB for bytes", "negative"],
)
def test_bad_devices_file_is_explained(plan_tiny: PlanTiny, tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(content)
    with pytest.raises(SettingError, match=message) as error:
        plan_tiny("small", devices=path)
    assert str(path) in str(error.value)


def test_devices_file_that_is_not_there_is_named(plan_tiny: PlanTiny, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"nowhere\.toml: No such file"):
        plan_tiny("small", devices=tmp_path / "nowhere.toml")


# ---------------------------------------------------------------------------------- values that are not allowed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_speedup": 0}, "target_speedup: 0; a number from 1 to 100 is expected"),
        ({"target_speedup": float("nan")}, "target_speedup: nan; a number from 1 to 100"),
        ({"target_speedup": 1000}, "target_speedup: 1000; a number from 1 to 100"),
        ({"target_speedup": True}, "target_speedup: True; a number from 1 to 100"),
        ({"batch_size": 0}, "batch_size: 0; a whole number from 1 to 4096 is expected"),
        ({"batch_size": True}, "batch_size: True; a whole number from 1 to 4096"),
        ({"batch_size": 1.5}, r"batch_size: 1\.5; a whole number from 1 to 4096"),
        ({"batch_size": 4097}, "batch_size: 4097; a whole number from 1 to 4096"),
        ({"seq_len": 1}, "seq_len: 1; a whole number from 2 to 40, what the model reads"),
        ({"seq_len": 10**6}, "seq_len: 1000000; a whole number from 2 to 40"),
        ({"seq_len": True}, "seq_len: True; a whole number from 2 to 40"),
        ({"seq_len": "12"}, "seq_len: '12'; a whole number from 2 to 40"),
        ({"seq_len": 12, "texts": ["ban"]}, "seq_len: 12 beside texts; .*give one of the two"),
        ({"texts": ["ban"]}, "tokenizer: none found beside .*; give a length instead"),
        ({"precision": "f64"}, "precision: 'f64'; l4 has f32, .*int8: choose one of these or auto"),
        ({"precision": None}, "precision: None; l4 has f32"),
        ({"device": "a100", "precision": "fp8"}, "precision: 'fp8'; a100 has f32, tf32, f16, bf16, int8"),
    ],
    ids=str,
)
def test_value_that_is_not_allowed_is_refused(
    plan_tiny: PlanTiny, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        plan_tiny(**options)
    assert list(tmp_path.iterdir()) == []


def test_values_are_checked_before_the_model_is_looked_at() -> None:
    for options in ({"batch_size": 0}, {"precision": "f64"}, {"devices": "/nowhere.toml"}):
        with pytest.raises(SettingError):
            mpcompile.plan("/no/such/model", "l4", 2.0, **options)


def test_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="nowhere: no such folder"):
        mpcompile.plan(tmp_path / "nowhere", "l4", 2.0, progress=False)


@pytest.mark.parametrize("texts", [[], ["ban", 5], "no such file.csv"], ids=str)
def test_bad_texts_are_refused(plan_tiny: PlanTiny, tiny_tokenizer: PreTrainedTokenizerFast, texts: Any) -> None:
    with pytest.raises(DataError):
        plan_tiny(texts=texts, tokenizer=tiny_tokenizer)


# ---------------------------------------------------------------------------------- this machine


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Measures this machine in a precision: a call of an engine takes it seconds."""

    def calibrate(_: object, declared: Rates, *args: object, **options: object) -> Profile:
        return Profile(dataclasses.replace(declared, engine_s=MEASURED_CALL_S), 0.04, 0.2, 12)

    def measure(precision: str) -> None:
        find_profile(Target(OpenVinoBackend(), precision), Store(tmp_path / "cache"))

    monkeypatch.setattr(calibration, "calibrate", calibrate)
    return measure


def test_profile_of_this_machine_is_used_where_one_is_kept(
    plan_tiny: PlanTiny, measured: Callable[[str], None]
) -> None:
    declared = plan_tiny("cpu", precision="f32")
    measured("f32")
    plan = plan_tiny("cpu", precision="f32")
    assert plan.notes == ("times follow from a measured profile of this machine, median error 4%",)
    assert plan.unpruned_s - declared.unpruned_s == pytest.approx(
        MEASURED_CALL_S - DEVICES["cpu"].engine_overhead_s, rel=1e-6
    )


def test_declared_numbers_of_this_machine_are_said_to_be_that(
    plan_tiny: PlanTiny, measured: Callable[[str], None]
) -> None:
    measured("f32")
    assert "run mpcompile calibrate" in plan_tiny("cpu", precision="int8").notes[0]
    assert "run mpcompile calibrate" in plan_tiny("cpu", precision="f32", cache_dir="/nowhere").notes[0]


def test_profile_of_this_machine_is_not_that_of_others(plan_tiny: PlanTiny, measured: Callable[[str], None]) -> None:
    measured("f32")
    plan = plan_tiny("l4", precision="f32")
    assert plan.unpruned_s < 1.0
    assert plan.notes[0].startswith("times follow from datasheets (devices.toml)")


def test_precision_of_this_machine_is_the_one_that_is_measured(
    plan_tiny: PlanTiny, measured: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenVinoBackend, "precisions", lambda _: ("f32",))
    measured("f32")
    plan = plan_tiny("cpu")
    assert plan.precision == "f32"
    assert "measured profile" in plan.notes[0]


def test_this_machine_is_planned_for_without_its_backend(plan_tiny: PlanTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise BackendError("openvino: not installed")

    monkeypatch.setattr(planning, "find_backend", missing)
    assert plan_tiny("cpu").precision == "bf16"
