"""Tests of the base class of passes and of running several."""

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace

from passes.pass_base import Pass, PassError, run_passes


class Program(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class SkipSecond(Pass):
    """Returns what the second module reads; leaves the removal of what is dead to the base class."""

    name = "SkipSecond"

    def run(self, gm: GraphModule) -> bool:
        output = gm.graph.output_node()
        output.args = (output.args[0].args[0],)
        return True


class Nothing(Pass):
    name = "Nothing"

    def run(self, gm: GraphModule) -> bool:  # noqa: ARG002
        return False


class Fail(Pass):
    name = "Fail"

    def run(self, gm: GraphModule) -> bool:  # noqa: ARG002
        raise PassError("layer 3 is missing")


class BreakPromise(Nothing):
    name = "BreakPromise"

    def ensures(self, gm: GraphModule) -> None:  # noqa: ARG002
        raise PassError("the promise is broken")


class BreakOrder(Pass):
    """Makes a node read one that comes after it."""

    name = "BreakOrder"

    def run(self, gm: GraphModule) -> bool:
        first, second = (node for node in gm.graph.nodes if node.op == "call_module")
        first.args = (second,)
        return True


@pytest.fixture
def gm() -> GraphModule:
    return symbolic_trace(Program())


def test_pass_without_run_is_refused(gm: GraphModule) -> None:
    with pytest.raises(NotImplementedError):
        Pass()(gm)


def test_call_returns_whether_the_graph_changed(gm: GraphModule) -> None:
    assert SkipSecond()(gm) is True
    assert Nothing()(gm) is False


def test_call_recompiles(gm: GraphModule) -> None:
    x = torch.ones(1, 2)
    expected = gm.first(x)
    SkipSecond()(gm)
    assert torch.equal(gm(x), expected)


def test_call_removes_dead_code(gm: GraphModule) -> None:
    SkipSecond()(gm)
    assert [node.target for node in gm.graph.nodes if node.op == "call_module"] == ["first"]


def test_call_removes_weights_that_nothing_reads(gm: GraphModule) -> None:
    SkipSecond()(gm)
    assert {name for name, _ in gm.named_parameters()} == {"first.weight", "first.bias"}


def test_call_lints(gm: GraphModule) -> None:
    with pytest.raises(RuntimeError, match="used before it has been defined"):
        BreakOrder()(gm)


def test_call_checks_the_promise_even_of_an_unchanged_graph(gm: GraphModule) -> None:
    with pytest.raises(PassError, match="the promise is broken"):
        BreakPromise()(gm)


def test_run_passes_returns_the_graph_it_was_given(gm: GraphModule) -> None:
    assert run_passes(gm, [Nothing(), SkipSecond()]) is gm


def test_run_passes_runs_none_when_none_are_given(gm: GraphModule) -> None:
    before = str(gm.graph)
    assert str(run_passes(gm, []).graph) == before


def test_error_names_the_pass_and_those_that_ran_before(gm: GraphModule) -> None:
    with pytest.raises(PassError) as caught:
        run_passes(gm, [Nothing(), SkipSecond(), Fail(), Nothing()])
    assert str(caught.value) == "Fail: layer 3 is missing (passes that ran before: Nothing, SkipSecond)"


def test_error_of_the_first_pass_says_that_none_ran_before(gm: GraphModule) -> None:
    with pytest.raises(PassError, match=r"\(passes that ran before: none\)"):
        run_passes(gm, [Fail()])


def test_error_keeps_its_cause(gm: GraphModule) -> None:
    with pytest.raises(PassError) as caught:
        run_passes(gm, [BreakPromise()])
    assert isinstance(caught.value.__cause__, PassError)
