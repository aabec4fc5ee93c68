"""Work in place of time: what a call costs is the products that torch computes in it."""

import dataclasses
from collections.abc import Callable

from torch.utils.flop_counter import FlopCounterMode

from mpcompile.cost.rates import Profile, Rates
from tests.mpcompile.cost.made_up import declare_profile

SECONDS_PER_FLOP, SECONDS_PER_CALL = 4e-8, 1e-5


def count_flops(call: Callable[[], object]) -> int:
    """Floating-point operations of the products that torch computes in a call, counted where they are dispatched."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def count_seconds(call: Callable[[], object], _: object) -> float:
    """Stands in for `mpcompile.cost.timing._time`, for what runs in torch: no other process has a say in it."""
    return SECONDS_PER_CALL + SECONDS_PER_FLOP * count_flops(call)


def describe_counting(_: object, declared: Rates, *__: object, **___: object) -> Profile:
    """Stands in for `mpcompile.cost.calibration.calibrate`: a machine on which products alone take time."""
    rates = dataclasses.replace(
        declared,
        matmul_flops_per_s=1.0 / SECONDS_PER_FLOP,
        attention_flops_per_s=1.0 / SECONDS_PER_FLOP,
        vector_flops_per_s=1e18,
        memory_bytes_per_s=1e18,
        cache_bytes_per_s=1e18,
        cache_bytes=1e12,
        launch_s=0.0,
        engine_s=SECONDS_PER_CALL,
        product_s=0.0,
    )
    return declare_profile(None, rates)
