"""Work in place of time: what a call costs is the products that torch computes in it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from mpcompile.cost.rates import Profile, Rates

SECONDS_PER_FLOP, SECONDS_PER_CALL = 4e-8, 1e-5


class FlopCounter(TorchDispatchMode):
    """Counts the floating-point operations of products, as `torch.utils.flop_counter` does, without its books."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs, count = kwargs or {}, flop_registry.get(func.overloadpacket)
        if count is None and is_composite(func):  # inference mode hides products in it
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=result)
        return result

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled under this mode, and looking whether something is takes more time than counting."""
        return False


@functools.cache
def is_composite(func: Any) -> bool:
    """Whether an operator is made of others."""
    return bool(func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd))


def count_flops(call: Callable[[], object]) -> int:
    """Floating-point operations of the products that torch computes in a call, counted where they are dispatched."""
    with FlopCounter() as counter:
        call()
    return counter.flops


class CountedTime:
    """Stands in for `mpcompile.cost.timing._time`, for what runs in torch: no other process has a say in it."""

    def __init__(self) -> None:
        self._counted: dict[int, tuple[Callable[[], object], float]] = {}

    def __call__(self, call: Callable[[], object], _: object) -> float:
        """Seconds that a call would take; it is counted once, as it computes the same each time."""
        if id(call) not in self._counted:
            self._counted[id(call)] = (call, SECONDS_PER_CALL + SECONDS_PER_FLOP * count_flops(call))
        return self._counted[id(call)][1]


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
    return Profile(rates, 0.0, 0.0, 9)
