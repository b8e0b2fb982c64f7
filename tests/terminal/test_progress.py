import io
import sys

import numpy as np
import pytest

from fcn_jax.terminal import progress
from fcn_jax.terminal.progress import format_duration, progress_bar, say


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "monotonic", clock)
    return clock


def _attach_terminal(monkeypatch) -> Terminal:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return screen


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (7.4, "7 s"),
        (59.6, "1 min 00 s"),
        (245, "4 min 05 s"),
        (3599.7, "1 h 00 min"),
        (3720, "1 h 02 min"),
        (86_399, "1 d 00 h"),
        (183_600, "2 d 03 h"),
        (-1, "–"),
        (float("nan"), "–"),
        (float("inf"), "–"),
    ],
)
def test_format_duration(seconds, text):
    assert format_duration(seconds) == text


def test_log_gets_a_line_at_the_start_every_ten_seconds_and_at_the_end(clock, capsys):
    with progress_bar("validation", total=10) as bar:
        for _ in range(10):
            clock.now += 4
            bar.advance()
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        "validation: 0/10 images, 0 s",
        "validation: 3/10 images, 0.25 images/s, 12 s, 28 s left",
        "validation: 6/10 images, 0.25 images/s, 24 s, 16 s left",
        "validation: 9/10 images, 0.25 images/s, 36 s, 4 s left",
        "validation: 10/10 images, 0.25 images/s, 40 s",
    ]


def test_pace_leaves_out_compilation_and_the_steps_of_an_earlier_run(clock, capsys):
    with progress_bar("training", total=1100, unit="steps", initial=1000) as bar:
        clock.now += 60  # the first step compiles
        bar.advance(5)
        clock.now += 1
        bar.advance(20)
    assert capsys.readouterr().err.splitlines()[-1] == (
        "training: 1025/1100 steps, 20.0 steps/s, 1 min 01 s, 4 s left"
    )


def test_values_shown_stay_until_replaced(clock, capsys):
    with progress_bar("training", total=3) as bar:
        bar.advance(loss=0.123456, seen=np.int64(123456), note="warm-up")
        assert bar.status().endswith("loss 0.1235, seen 123456, note warm-up")
        bar.advance(loss=np.float32(2.5))
    assert capsys.readouterr().err.splitlines()[-1].endswith("loss 2.5, seen 123456, note warm-up")


def test_an_activity_is_shown_at_once_and_until_the_next_item(clock, capsys):
    with progress_bar("training", total=3, unit="steps") as bar:
        bar.show_activity("compiling the first step")
        clock.now += 20
        bar.advance()
    assert capsys.readouterr().err.splitlines() == [
        "training: 0/3 steps, 0 s",
        "training: 0/3 steps, 0 s, compiling the first step",
        "training: 1/3 steps, 20 s",
        "training: 1/3 steps, 20 s",
    ]


def test_last_line_is_printed_when_the_loop_fails(clock, capsys):
    def fail_at_the_second_item() -> None:
        with progress_bar("training", total=3) as bar:
            bar.advance()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_at_the_second_item()
    assert capsys.readouterr().err.splitlines()[-1] == "training: 1/3 images, 0 s"


def test_log_holds_no_control_codes(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress_bar("training", total=1) as bar:
        bar.advance()
    assert "\x1b" not in capsys.readouterr().err


def test_dumb_terminal_is_treated_like_a_log(monkeypatch):
    terminal = _attach_terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    with progress_bar("training", total=1) as bar:
        bar.advance()
    assert "\x1b" not in terminal.getvalue()


def test_terminal_shows_a_live_bar(monkeypatch):
    terminal = _attach_terminal(monkeypatch)
    with progress_bar("training", total=2, unit="steps") as bar:
        bar.advance(2, loss=0.5)
    assert "\x1b" in terminal.getvalue()
    assert "2/2 steps" in terminal.getvalue()
    assert "loss 0.5" in terminal.getvalue()


def test_narrow_terminal_loses_neither_the_name_nor_the_values(monkeypatch):
    terminal = _attach_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "60")
    with progress_bar("training", total=40_000, unit="steps") as bar:
        bar.advance(30_000, loss=0.5, learning_rate=0.001, pixel_accuracy=0.875)
    last_frame = terminal.getvalue().rsplit("training", 1)[1]
    assert "30000/40000" in last_frame
    assert "0.875" in last_frame


def test_inner_bar_is_drawn_within_the_outer_display_and_then_removed(monkeypatch):
    terminal = _attach_terminal(monkeypatch)
    with progress_bar("training", total=2) as outer:
        outer.advance()
        with progress_bar("validation", total=4) as inner:
            inner.advance(4)
            (display,) = progress._open_displays
            assert [task.description for task in display.tasks] == ["training", "validation"]
        assert [task.description for task in display.tasks] == ["training"]
        outer.advance()
    assert progress._open_displays == []
    last_frame = terminal.getvalue().rsplit("training", 1)[1]
    assert "2/2 images" in last_frame
    assert "validation" not in last_frame


def test_a_failed_loop_leaves_the_terminal_free_for_the_next_bar(monkeypatch):
    terminal = _attach_terminal(monkeypatch)
    with pytest.raises(RuntimeError), progress_bar("training", total=2):
        raise RuntimeError
    with progress_bar("again", total=1) as bar:
        bar.advance()
    assert "1/1 images" in terminal.getvalue()


def test_say_reaches_a_redirected_stdout_though_a_bar_is_on_the_terminal(monkeypatch, capsys):
    terminal = _attach_terminal(monkeypatch)
    with progress_bar("training", total=1):
        say("mIoU 65.5")
    assert capsys.readouterr().out == "mIoU 65.5\n"
    assert "mIoU" not in terminal.getvalue()


def test_say_is_drawn_above_the_bar_where_both_are_on_the_terminal(monkeypatch):
    terminal = _attach_terminal(monkeypatch)
    monkeypatch.setattr(sys, "stdout", Terminal())
    with progress_bar("training", total=1):
        say("mIoU [65.5]")
    assert "mIoU [65.5]\n" in terminal.getvalue()
