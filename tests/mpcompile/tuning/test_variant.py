"""Tests of variants."""

import json

from mpcompile.contract.backend import BuildConfig
from mpcompile.tuning.variant import SPLIT_SCALES, Variant


def test_json_gives_the_variant_back() -> None:
    variant = Variant(3, "bf16", 4, 2, "point", SPLIT_SCALES[-1], "workload")
    text = json.dumps(variant.to_json(), allow_nan=False)
    assert Variant.from_json(json.loads(text)) == variant


def test_config_is_what_engines_are_loaded_with() -> None:
    assert Variant(0, "f32", 4, 2).config == BuildConfig(4, 2)


def test_changes_are_counted() -> None:
    assert Variant(0, "f32").count_changes(Variant(1, "f32", num_streams=2)) == 2


def test_description_names_every_setting() -> None:
    text = Variant(1, "f32", 4, 2, "point", SPLIT_SCALES[-1], "workload").describe()
    assert text == "point 1, f32, 4 threads, 2 streams, cuts of the point, split never, profile workload"
