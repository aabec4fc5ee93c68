"""Tests of what runs in the measuring process: variants built, checked and timed; on tiny artifacts."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import mpcompile
from mpcompile.contract.profile import OptimizationProfile, Range
from mpcompile.errors import SettingError
from mpcompile.runtime.artifact import read_manifest
from mpcompile.tuning.bench import Answers, Bench, Job
from mpcompile.tuning.builder import VariantBuilder
from mpcompile.tuning.variant import SPLIT_SCALES, Variant

START = Variant(1, "f32")
PROFILE = OptimizationProfile(Range(1, 4, 32), Range(2, 6, 24))


class FakeClock:
    """A second for each call that is timed, but for some."""

    def __init__(self) -> None:
        self.now, self.looks = 0.0, 0

    def __call__(self) -> float:
        self.looks += 1
        self.now += self.looks % 2 == 0
        return self.now


def make_batches(lengths: tuple[tuple[int, ...], ...]) -> tuple[dict[str, np.ndarray], ...]:
    rng, batches = np.random.default_rng(0), []
    for row in lengths:
        mask = (np.arange(max(row)) < np.array(row)[:, None]).astype(np.int64)
        ids = rng.integers(5, 30, mask.shape) * mask
        batches.append({"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(mask)})
    return tuple(batches)


BATCHES = make_batches(((3, 9, 12, 5), (7, 7, 2, 10)))


pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture
def make_bench(cache_dir: Path) -> Callable[..., Bench]:
    def make(directory: Path, start: Variant = START, clock: Callable[[], float] | None = None) -> Bench:
        job = Job(directory, start, BATCHES, PROFILE, cache_dir)
        return Bench(job) if clock is None else Bench(job, clock)

    return make


@pytest.fixture
def builder(artifact: Path, cache_dir: Path) -> VariantBuilder:
    return VariantBuilder(artifact, PROFILE, cache_dir)


@pytest.fixture
def bench(eager_artifact: Path, make_bench: Callable[..., Bench]) -> Bench:
    return make_bench(eager_artifact)


def test_start_has_the_engines_of_the_artifact(builder: VariantBuilder, artifact: Path) -> None:
    built = builder.build(START)
    assert list(built.plans) == [(artifact / "engines" / f"{i}.plan").read_bytes() for i in range(len(built.plans))]
    assert built.split_tokens == (8.0, 8.0)


def test_threads_and_streams_rebuild_nothing(builder: VariantBuilder) -> None:
    start, other = builder.build(START), builder.build(dataclasses.replace(START, num_threads=2, num_streams=2))
    assert other.plans == start.plans and other.key != start.key


def test_splits_are_scaled(builder: VariantBuilder) -> None:
    assert builder.build(dataclasses.replace(START, split_scale=0.5)).split_tokens == (4.0, 4.0)
    never = builder.build(dataclasses.replace(START, split_scale=SPLIT_SCALES[-1]))
    assert min(never.split_tokens) > 1e6 and not math.isinf(never.split_tokens[0])


def test_cuts_of_a_point_merge_segments(builder: VariantBuilder) -> None:
    built = builder.build(Variant(0, "f32", cuts="point"))
    assert [(segment.exit_layer, segment.prune_layers) for segment in built.segments] == [(3, ())]
    assert built.point.prune_layers == () and built.split_tokens == (8.0,)


def test_engines_behind_the_last_exit_of_a_point_are_not_built(builder: VariantBuilder) -> None:
    built = builder.build(Variant(2, "f32", cuts="point"))
    assert [(segment.exit_layer, segment.prune_layers) for segment in built.segments] == [(1, (0,))]


def test_profile_that_changes_no_plan_gives_the_same_key(builder: VariantBuilder) -> None:
    """OpenVINO builds for any shape: two profiles give one plan, to the byte."""
    given, workload = (builder.build(Variant(0, "f32", cuts="point", profile=p)) for p in ("given", "workload"))
    assert given.plans == workload.plans and given.key == workload.key


@pytest.mark.parametrize("variant", [Variant(0, "f32", cuts="point"), Variant(2, "f32", 1, cuts="point")])
def test_merged_engines_answer_as_those_of_the_artifact(
    artifact: Path, builder: VariantBuilder, variant: Variant
) -> None:
    built = builder.build(variant)
    result = builder.load(built).run(BATCHES[0], built.point)
    loaded = mpcompile.load(artifact)
    expected = loaded.runtime.run(BATCHES[0], loaded.operating_points[variant.point].point)
    np.testing.assert_allclose(result.logits, expected.logits, atol=1e-4)
    np.testing.assert_array_equal(result.exit_layer, expected.exit_layer)


def test_precision_that_the_machine_lacks_is_refused(
    artifact: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpcompile.backends.openvino.backend.OpenVinoBackend.precisions", lambda _: ("bf16",))
    with pytest.raises(SettingError, match="engines run in f32, this machine in bf16; optimize the model here"):
        VariantBuilder(artifact, PROFILE, cache_dir)


def test_machine_is_described(bench: Bench) -> None:
    machine = bench.describe_machine()
    assert machine.backend == "eager" and machine.num_threads >= 1 and machine.version == mpcompile.__version__


def test_start_is_measured_beside_each_candidate(eager_artifact: Path, make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(eager_artifact, clock=FakeClock())
    bench.build([dataclasses.replace(START, split_scale=0.0), dataclasses.replace(START, split_scale=2.0)])
    assert [bench.measure_round() for _ in range(2)] == [[1.0, 1.0, 1.0]] * 2


def test_nobody_always_comes_first(eager_artifact: Path, make_bench: Callable[..., Bench]) -> None:
    class Slowing(FakeClock):
        """Each call takes a second more than the one before."""

        def __call__(self) -> float:
            self.looks += 1
            self.now += self.looks // 2 if self.looks % 2 == 0 else 0
            return self.now

    bench = make_bench(eager_artifact, clock=Slowing())
    bench.build([dataclasses.replace(START, split_scale=0.0)])
    rounds = [bench.measure_round() for _ in range(4)]
    assert [candidate > start for start, candidate in rounds] == [True, False, True, False]


def test_candidates_take_the_place_of_those_before(bench: Bench) -> None:
    bench.build([START, START])
    bench.build([START])
    assert len(bench.measure_round()) == 2


def test_start_built_again_has_its_key(bench: Bench) -> None:
    assert bench.build([START]) == [bench.identify_start()]


def test_answers_are_compared_at_the_point_of_the_candidate(bench: Bench) -> None:
    bench.build([Variant(0, "f32", cuts="point"), Variant(2, "f32", num_streams=2)])
    assert bench.warm_up() == [Answers(8, 0), Answers(8, 0)]


def test_answers_that_differ_are_counted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.build([START])
    runner = bench._candidates[0].runner
    run = runner.run

    def turned(inputs: object, point: object) -> object:
        result = run(inputs, point)  # type: ignore[arg-type]
        return dataclasses.replace(result, logits=-result.logits)

    monkeypatch.setattr(runner, "run", turned)
    assert bench.warm_up() == [Answers(8, 8)]


def test_candidates_are_predicted_against_the_start(artifact: Path, make_bench: Callable[..., Bench]) -> None:
    merged = Variant(0, "f32", cuts="point")
    start = Variant(0, "f32")
    bench = make_bench(artifact, start=start)
    same, fewer_calls, threads = bench.predict([start, merged, dataclasses.replace(start, num_threads=1)])
    assert same == threads == 1.0
    assert fewer_calls is not None and fewer_calls < 1.0


def test_package_has_no_graphs(bench: Bench) -> None:
    built = bench.package(START)
    assert [segment.graph_module for segment in built.segments] == [None, None]


def test_every_point_that_a_variant_can_run_is_timed(bench: Bench) -> None:
    times = bench.retime(Variant(2, "f32", cuts="point"))
    assert [row.index for row in times.points] == [2]
    assert min(times.original_s, times.unpruned_s, times.exits_s, times.points[0].measured_s) > 0.0
    assert [row.index for row in bench.retime(START).points] == [0, 1, 2]


def test_profile_that_an_artifact_was_tuned_to_is_used_again(artifact: Path, tmp_path: Path, cache_dir: Path) -> None:
    manifest = read_manifest(artifact)
    assert manifest.profile is None
    built = VariantBuilder(artifact, PROFILE, cache_dir).build(dataclasses.replace(START, profile="workload"))
    assert built.profile == PROFILE
