"""Tests of measured rates: rates made up are found again in what they predict, and tiny engines are timed."""

import dataclasses
import json
import math
from collections.abc import Sequence

import numpy as np
import pytest

from mpcompile.backends.torch.eager import EagerBackend
from mpcompile.contract.backend import BuildConfig, Target
from mpcompile.contract.segment import Segment
from mpcompile.cost import calibration
from mpcompile.cost.calibration import calibrate, describe_fit, fit_rates
from mpcompile.cost.devices import find_device
from mpcompile.cost.grid_bench import GridBench, Sample, describe_sample, make_call, measure_steady, random_encoder
from mpcompile.cost.grids import FULL, HELD_OUT, QUICK, Grid
from mpcompile.cost.rates import FITTED, Profile, Rates, declare_rates
from mpcompile.cost.regions import GraphWork, Work
from mpcompile.graph.capture import CapturedModel
from mpcompile.graph.segments import partition
from tests.models import build_head

DECLARED = declare_rates(find_device("cpu"), "f32")
FACTORS = dict(zip(FITTED, (0.5, 0.4, 2.0, 0.7, 0.6, 0.8, 3.0, 4.0, 2.0), strict=True))
TRUE = dataclasses.replace(DECLARED, **{name: getattr(DECLARED, name) * factor for name, factor in FACTORS.items()})
"""A machine unlike the declared one in everything that is fitted."""


def sample(
    kind: str = "pointwise",
    product: tuple[float, ...] = (0, 0, 0, 0),
    vector_flops: float = 0.0,
    weight_bytes: float = 0.0,
    activation_bytes: float = 0.0,
    num_launches: int = 1,
) -> Sample:
    """An engine of one kind of kernel, not yet measured."""
    work = Work((kind,), (1,), (num_launches,), (product,), (vector_flops,), (weight_bytes,), (activation_bytes,))
    return Sample("made up", (work,), weight_bytes, num_launches, 1.0)


SIZES = np.geomspace(1.0, 100.0, 16)
PRODUCTS = [sample("matmul", (1, 64 * size, 256, 256)) for size in SIZES]
ATTENTIONS = [sample("attention", (1, 64 * size, 256, 256)) for size in SIZES]
LOOPS = [sample("attention", (round(20 * size), 4, 8, 4)) for size in SIZES]
VECTORS = [sample(vector_flops=1e7 * size) for size in SIZES]
MOVES = [sample(activation_bytes=1e6 * size) for size in (*SIZES, *100 * SIZES)]
STREAMS = [sample(weight_bytes=1e6 * size) for size in (*SIZES, *100 * SIZES)]
LAUNCHES = [sample(num_launches=round(size)) for size in SIZES]
ALL = [sample(activation_bytes=3e5 * size) for size in SIZES]
LARGE = [sample(weight_bytes=1e8 * size, activation_bytes=1e8 * size) for size in SIZES]
LAUNCHES = [sample(num_launches=round(size)) for size in SIZES]
ALL = [*PRODUCTS, *ATTENTIONS, *LOOPS, *VECTORS, *MOVES, *STREAMS, *LAUNCHES]


def measure(samples: Sequence[Sample], rates: Rates = TRUE, noise: float = 0.0) -> list[Sample]:
    """Samples as a machine of some rates takes them."""
    rng = np.random.default_rng(0)
    return [
        dataclasses.replace(each, measured_s=each.predict(rates) * math.exp(noise * rng.standard_normal()))
        for each in samples
    ]


def errors(fitted: Rates, true: Rates = TRUE) -> dict[str, float]:
    """How far each fitted number is off, in log."""
    return {name: abs(math.log(getattr(fitted, name) / getattr(true, name))) for name in FITTED}


# The fit.


def test_rates_are_found_again_in_what_they_predict() -> None:
    assert max(errors(fit_rates(measure(ALL), DECLARED)).values()) < 0.03


def test_rates_are_found_again_in_noise() -> None:
    assert max(errors(fit_rates(measure(ALL, noise=0.05), DECLARED)).values()) < 0.15


def test_declared_rates_that_are_right_stay() -> None:
    fitted = fit_rates(measure(ALL, DECLARED), DECLARED)
    assert max(errors(fitted, DECLARED).values()) < 1e-3


@pytest.mark.parametrize(
    ("left_out", "rate"),
    [(PRODUCTS, "matmul_flops_per_s"), (VECTORS, "vector_flops_per_s"), (LOOPS + ATTENTIONS, "attention_flops_per_s")],
    ids=["products", "vectors", "attention"],
)
def test_rate_that_no_engine_depends_on_stays_as_declared(left_out: list[Sample], rate: str) -> None:
    fitted = fit_rates(measure([each for each in ALL if each not in left_out], noise=0.05), DECLARED)
    assert getattr(fitted, rate) == pytest.approx(getattr(DECLARED, rate), rel=1e-3)


def test_disturbed_measurement_hardly_changes_the_fit() -> None:
    clean = measure(ALL, noise=0.05)
    disturbed = [dataclasses.replace(clean[5], measured_s=10 * clean[5].measured_s), *clean[:5], *clean[6:]]
    before, after = fit_rates(clean, DECLARED), fit_rates(disturbed, DECLARED)
    assert max(errors(after, before).values()) < 0.05


def test_what_is_not_fitted_stays_as_declared() -> None:
    fitted = fit_rates(measure(ALL), DECLARED)
    assert dataclasses.replace(fitted, **{name: getattr(DECLARED, name) for name in FITTED}) == DECLARED


def test_order_of_samples_does_not_matter() -> None:
    samples = measure(ALL, noise=0.05)
    assert errors(fit_rates(samples[::-1], DECLARED), fit_rates(samples, DECLARED)) == pytest.approx(
        dict.fromkeys(FITTED, 0.0), abs=1e-3
    )


def test_errors_of_a_fit_are_those_of_its_samples() -> None:
    samples = [
        dataclasses.replace(each, measured_s=each.predict(TRUE) / (1 + error))
        for each, error in zip(ALL, (0.1, -0.2, 0.3, 0.0, 0.05), strict=False)
    ]
    profile = describe_fit(TRUE, samples)
    assert profile.rates == TRUE
    assert profile.num_samples == 5
    assert profile.median_error == pytest.approx(0.1)
    assert profile.p95_error == pytest.approx(np.percentile([0.0, 0.05, 0.1, 0.2, 0.3], 95))


def test_profile_is_plain_json() -> None:
    told = json.loads(json.dumps(Profile(TRUE, 0.1, 0.2, 5).to_json()))
    assert (told["median_error"], told["p95_error"], told["num_samples"]) == (0.1, 0.2, 5)
    assert told["rates"]["launch_s"] == TRUE.launch_s


# Samples.


def test_engine_takes_its_call_and_its_parts() -> None:
    rates = dataclasses.replace(DECLARED, engine_s=5.0, launch_s=1.0, product_s=0.0)
    (part,) = LAUNCHES[0].parts
    assert dataclasses.replace(LAUNCHES[0], parts=(part, part)).predict(rates) == pytest.approx(5.0 + 2 * 1.0)


@pytest.fixture(scope="module")
def segments(captured: CapturedModel) -> tuple[Segment, ...]:
    return partition(captured, {1: build_head(1)}, (1,))


def test_sample_says_what_was_measured(tiny_work: GraphWork, segments: tuple[Segment, ...]) -> None:
    described = describe_sample(tiny_work, segments, (1, 4, 10, 0.5), 2.5)
    assert described.name == "layers 1-3, batch 4, length 10, keep 0.5"
    assert described.measured_s == 2.5


def test_sample_has_the_work_of_its_segment(tiny_work: GraphWork, segments: tuple[Segment, ...]) -> None:
    described = describe_sample(tiny_work, segments, (1, 4, 10, 0.5), 1.0)
    # Entry, attention, prune, feed-forward, attention, feed-forward, classifier: the last three on 5 tokens.
    assert len(described.parts) == 7
    rows = [float(part.products[part.kinds.index("matmul")][1]) for part in described.parts if "matmul" in part.kinds]
    assert rows == [40, 20, 20, 20, 4]


def test_sample_has_the_weights_and_launches_of_its_segment(
    tiny_work: GraphWork, segments: tuple[Segment, ...]
) -> None:
    first, second = (describe_sample(tiny_work, segments, (index, 4, 10, 0.5), 1.0) for index in (0, 1))
    layer = tiny_work.attention[0].weight_bytes + tiny_work.feed_forward[0].weight_bytes
    assert second.weight_bytes == 2 * layer + tiny_work.classifier.weight_bytes
    kernels = tiny_work.attention[0].num_launches + tiny_work.feed_forward[0].num_launches
    assert first.num_launches == tiny_work.embeddings.num_launches + kernels + tiny_work.exits[1].num_launches


# Grids.


def test_grid_is_all_pairs_that_are_not_too_many_tokens() -> None:
    grid = Grid(32, 2, (1, 4), (8, 16), (0.5,), max_tokens=32)
    assert list(grid.shapes()) == [(1, 8), (1, 16), (4, 8)]


def test_held_out_grid_shares_no_engine_with_the_fitted_ones() -> None:
    widths = {grid.hidden_size for grid in (*FULL, *QUICK)}
    assert not widths & {grid.hidden_size for grid in HELD_OUT}


@pytest.mark.parametrize("grid", [*QUICK, *FULL, *HELD_OUT], ids=lambda grid: str(grid.hidden_size))
def test_heads_divide_the_width_of_every_grid(grid: Grid) -> None:
    assert grid.hidden_size % grid.num_heads == 0
    assert len(list(grid.shapes())) > 5


# Engines.

GRID = Grid(hidden_size=16, num_heads=2, batch_sizes=(1, 2), lengths=(3, 5), keep_ratios=(0.4, 0.8), max_tokens=6)
"""Three sizes; the second engine prunes to two ratios: nine calls."""
KEYS = [(0, *size, 1.0) for size in ((1, 3), (1, 5), (2, 3))] + [
    (1, *size, ratio) for size in ((1, 3), (1, 5), (2, 3)) for ratio in (0.4, 0.8)
]


@pytest.fixture(scope="module")
def encoder() -> CapturedModel:
    return random_encoder(GRID.hidden_size, GRID.num_heads)


@pytest.fixture(scope="module")
def bench(encoder: CapturedModel) -> GridBench:
    return GridBench(Target(EagerBackend(), "f32"), GRID, encoder)


def test_random_encoder_is_of_the_size_asked_for(encoder: CapturedModel) -> None:
    assert (encoder.hidden_size, encoder.num_layers, encoder.max_length) == (16, 3, 512)


def test_engines_have_an_exit_and_a_prune(bench: GridBench) -> None:
    assert [segment.exit_layer for segment in bench.segments] == [1, 3]
    assert [segment.prune_layers for segment in bench.segments] == [(), (1,)]


def test_every_engine_is_called_at_every_size_and_ratio(bench: GridBench) -> None:
    assert sorted(bench.calls()) == sorted(KEYS)


@pytest.mark.parametrize("ratio", [0.4, 1.0])
def test_call_runs_its_engine_at_its_size(bench: GridBench, ratio: float) -> None:
    for segment in bench.segments:
        engine = EagerBackend().load(b"", segment, BuildConfig())
        outputs = make_call(segment, engine, 2, 5, ratio)()
        assert outputs["logits"].shape == (2, 2)
        assert np.isfinite(outputs["logits"]).all()


def test_call_gives_an_engine_its_inputs_and_no_others(bench: GridBench) -> None:
    for segment in bench.segments:
        given = make_call(segment, lambda inputs: inputs, 3, 10, 0.4)()
        assert tuple(given) == segment.input_names


def test_call_prunes_to_its_ratio(bench: GridBench) -> None:
    given = make_call(bench.segments[1], lambda inputs: inputs, 3, 10, 0.4)()
    assert given["num_kept_1"].tolist() == [4, 4, 4] and given["slots_1"].tolist() == [0, 1, 2, 3]


def test_call_has_no_padding(bench: GridBench) -> None:
    given = [make_call(segment, lambda inputs: inputs, 3, 10, 0.4)() for segment in bench.segments]
    assert given[0]["attention_mask"].all() and not given[1]["mask"].any()


def test_call_repeats_the_same_inputs(bench: GridBench) -> None:
    first, second = (make_call(bench.segments[1], lambda inputs: inputs, 2, 5, 0.4)() for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_calls_are_timed_apart() -> None:
    counts = dict.fromkeys("ab", 0)

    def count(name: str) -> None:
        counts[name] += 1
        sum(range(1000 if name == "a" else 100_000))

    shares: list[float] = []
    seconds = measure_steady({name: lambda name=name: count(name) for name in "ab"}, 2, shares.append)
    assert 0 < seconds["a"] < seconds["b"]
    assert min(counts.values()) > 4
    assert shares == [0.5, 1.0]


def test_timed_calls_are_described(bench: GridBench) -> None:
    samples = bench.describe(dict.fromkeys(bench.calls(), 0.25))
    assert {each.name for each in samples} == {
        f"layers {'01'[index]}-{'13'[index]}, batch {batch_size}, length {length}, keep {ratio:g}"
        for index, batch_size, length, ratio in KEYS
    }
    assert {each.measured_s for each in samples} == {0.25}


def test_machine_is_measured(bench: GridBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "GridBench", lambda *_: bench)  # built once for all tests
    shares: list[float] = []
    profile = calibrate(Target(EagerBackend(), "f32"), DECLARED, [GRID], runs=1, on_step=shares.append)
    assert profile.num_samples == len(KEYS)
    assert profile.median_error < 0.5
    assert 0 < profile.rates.launch_s < 1e-3
    assert profile.rates.reshape_s >= 0
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1.0)


def test_what_a_device_is_declared_not_to_have_stays_away() -> None:
    declared = declare_rates(find_device("l4"), "f16")
    true = dataclasses.replace(declared, engine_s=2.0 * declared.engine_s)
    fitted = fit_rates(measure(ALL, true), declared)
    assert fitted.product_s == 0.0
    assert fitted.engine_s == pytest.approx(true.engine_s, rel=0.2)
