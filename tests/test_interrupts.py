"""One Ctrl-C is heard once, and not while something is written."""

from __future__ import annotations

import signal
import threading

import pytest

from dragon.interrupts import one_interrupt

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_interrupts_and_the_second_changes_nothing(number: signal.Signals) -> None:
    with one_interrupt() as interrupts:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.arrived


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_held_comes_when_the_work_is_done(number: signal.Signals) -> None:
    done = []
    with one_interrupt() as interrupts:
        with pytest.raises(KeyboardInterrupt), interrupts.held():
            signal.raise_signal(number)
            with interrupts.held():
                signal.raise_signal(number)
            done.append("inner")
            signal.raise_signal(number)
            done.append("outer")
        with interrupts.held():
            pass  # it was heard already
    assert done == ["inner", "outer"]


def test_an_error_while_held_is_what_ends_the_run() -> None:
    with one_interrupt() as interrupts, pytest.raises(OSError, match="full"), interrupts.held():
        signal.raise_signal(signal.SIGINT)
        raise OSError("full")


def test_handlers_return_and_ignored_signals_stay_ignored() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with one_interrupt():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with one_interrupt() as interrupts:
            signal.raise_signal(signal.SIGINT)
            assert not interrupts.arrived
    finally:
        signal.signal(signal.SIGINT, old)


def test_a_thread_that_cannot_handle_signals_runs_without() -> None:
    ran = []

    def work() -> None:
        with one_interrupt() as interrupts, interrupts.held():
            ran.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert ran
