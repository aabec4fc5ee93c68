"""Ctrl-C that waits for a database."""

import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from mpcompile.interrupts import held_interrupts


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Python's own handler, also where CI was put in the background and ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)  # to this thread, whatever others the process has


def hold(*steps: Callable[[], object]) -> None:
    """Steps of one block."""
    with held_interrupts():
        for step in steps:
            step()


def test_interrupt_waits_for_the_end_of_the_block() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        hold(interrupt, lambda: done.append("the block"))
    assert done == ["the block"]


def test_interrupt_waits_for_the_outermost_block() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        hold(lambda: hold(interrupt), lambda: done.append("after the inner block"))
    assert done == ["after the inner block"]


def test_second_interrupt_does_not_wait() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        hold(interrupt, interrupt, lambda: done.append("too late"))
    assert done == []


def test_handler_is_as_it_was() -> None:
    with held_interrupts():
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_error_of_the_block_is_not_lost() -> None:
    def fail() -> None:
        raise OSError("disk")

    with pytest.raises(KeyboardInterrupt) as caught:
        hold(interrupt, fail)
    assert isinstance(caught.value.__context__, OSError)


def test_other_threads_have_nothing_to_hold() -> None:
    entered: list[bool] = []
    thread = threading.Thread(target=hold, args=(lambda: entered.append(True),))
    thread.start()
    thread.join()
    assert entered == [True]
