"""A signal ends the program, wherever Python happens to be when it comes."""

import gc
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from fcn_jax.terminal import signals
from fcn_jax.terminal.signals import StopSignal, interruptions
from tests.own_folder import ROOT


@pytest.fixture(autouse=True)
def default_handlers() -> Iterator[None]:
    """Handles signals as a fresh terminal does: `nohup` ignores SIGHUP, which the code respects."""
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    for number in before:
        is_interrupt = number == signal.SIGINT
        signal.signal(number, signal.default_int_handler if is_interrupt else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def during_garbage_collection(do: Callable[[], None]) -> None:
    """Calls `do` in a callback of the garbage collector, once: what it raises there is dropped."""

    def callback(phase: str, info: object) -> None:
        gc.callbacks.remove(callback)
        do()

    gc.callbacks.append(callback)
    gc.collect()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_noted_and_ends_with_its_status(number, capsys):
    before = signal.getsignal(number)
    with StopSignal("page") as stop:
        stop.end_if_requested()
        during_garbage_collection(lambda: signal.raise_signal(number))
        assert stop.requested == number
        assert "stopping after this page" in capsys.readouterr().out
        with pytest.raises(SystemExit) as ended:
            stop.end_if_requested()
    assert ended.value.code == 128 + number
    assert signal.getsignal(number) == before


def test_signals_are_ignored_and_then_handled_as_before():
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    with interruptions():
        with signals.ignored():
            for number in signals.SIGNALS:
                signal.raise_signal(number)
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before


@pytest.mark.parametrize(
    ("number", "raised"),
    [
        (signal.SIGINT, KeyboardInterrupt),
        (signal.SIGTERM, SystemExit),
        (signal.SIGHUP, SystemExit),
    ],
)
def test_what_a_handler_raises_is_raised_again_where_it_was_dropped(number, raised):
    before = signal.getsignal(number)
    ended = False

    def program() -> None:
        nonlocal ended
        with interruptions():
            during_garbage_collection(lambda: signal.raise_signal(number))
            time.sleep(10)
            ended = True

    with pytest.raises(raised):
        program()
    assert not ended
    assert signal.getsignal(number) == before


def test_a_second_signal_kills_at_once():
    program = (
        "import signal; from fcn_jax.terminal.signals import StopSignal\n"
        "with StopSignal('page'):\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    print('still here')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == -signal.SIGINT
    assert ended.stdout == "stopping after this page (again: at once, without saving)\n"
    assert ended.stderr == ""


def test_a_message_that_cannot_be_printed_changes_nothing(monkeypatch):
    def closed(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", closed)
    with StopSignal("page") as stop:
        signal.raise_signal(signal.SIGINT)
    assert stop.requested == signal.SIGINT


@pytest.mark.parametrize("context", [lambda: StopSignal("page"), interruptions])
def test_a_signal_that_the_caller_ignores_stays_ignored(context):
    """`nohup` starts a program so that it survives its terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with context():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


BLOCKED = """
import hashlib, os, signal, threading
from fcn_jax.terminal import signals
signals.PATIENCE_SECONDS = 0.5
threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGTERM]).start()
def block():  # no handler runs during this call, as in a compilation
    hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000_000)
"""


@pytest.mark.parametrize(
    ("program", "printed"),
    [
        ("with signals.interruptions():\n    block()", ""),
        (
            "with signals.StopSignal('page') as stop, stop.abandoned(lambda: print('saved')):\n"
            "    block()",
            "saved\n",
        ),
    ],
)
def test_a_signal_in_a_long_call_ends_the_process(program, printed):
    ended = subprocess.run(
        [sys.executable, "-c", BLOCKED + program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ended.returncode == 128 + signal.SIGTERM
    assert ended.stdout == printed
    assert ended.stderr == ""


def test_the_main_thread_goes_on_if_another_cannot_save_for_it(monkeypatch):
    def cannot() -> None:
        tried.set()
        raise OSError

    monkeypatch.setattr(signals, "PATIENCE_SECONDS", 0)
    tried = threading.Event()
    with StopSignal("page") as stop, stop.abandoned(cannot):
        signal.raise_signal(signal.SIGTERM)
        assert tried.wait(30)
    assert stop.requested == signal.SIGTERM
