"""Only one process trains in a folder, and the lock ends with its process."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcn_jax.errors import UserError
from fcn_jax.inference.trained import load_run
from fcn_jax.train import train
from fcn_jax.training import run_lock as module
from fcn_jax.training.run_lock import run_lock
from tests.own_folder import ROOT, small_config

LOCK = "train.lock"


@pytest.fixture(autouse=True)
def short_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE_SECONDS", 0.6)
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.05)


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)


def other_host(folder: Path) -> Path:
    path = folder / LOCK
    path.write_text(json.dumps({"host": "node7", "pid": 123, "started": "2024-05-06 07:08:09"}))
    return path


def test_a_second_training_is_refused_and_changes_nothing(
    trained_run: Path, trained_folder: Path
) -> None:
    config = small_config(trained_folder)
    with run_lock(trained_run):
        before = {path: path.stat().st_mtime_ns for path in trained_run.rglob("*")}
        with pytest.raises(UserError) as refused:
            train(config, trained_run)
        assert load_run(trained_run).step == 6  # reading needs no lock
        before.pop(trained_run / LOCK)  # its time is set again and again
        assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    pid, host = os.getpid(), socket.gethostname()
    assert f"{trained_run} is being trained by process {pid} on {host} since " in str(refused.value)
    assert f"stop it (kill {pid}), or give another workdir" in str(refused.value)
    assert not (trained_run / LOCK).exists()


def test_a_training_that_fails_at_its_start_leaves_no_folder(trained_folder: Path, tmp_path: Path):
    config = small_config(trained_folder)
    config.data.root = str(tmp_path / "none")
    with pytest.raises(UserError, match="none"):
        train(config, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def killed(tmp_path: Path) -> Iterator[Path]:
    """A folder whose process was killed with the lock held."""
    program = (
        "import sys, time; from pathlib import Path\n"
        "from fcn_jax.training.run_lock import run_lock\n"
        "with run_lock(Path(sys.argv[1])):\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"process {process.pid} on"), run_lock(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        yield tmp_path


def test_the_lock_of_a_killed_process_is_taken_over_at_once(
    killed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (killed / LOCK).exists()
    with run_lock(killed):
        assert json.loads((killed / LOCK).read_text())["pid"] == os.getpid()
    assert capsys.readouterr().out == ""


def test_another_host_that_shows_no_life_is_waited_for_and_followed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other_host(tmp_path)
    began = time.monotonic()
    with run_lock(tmp_path):
        assert time.monotonic() - began >= 0.6
    assert "names process 123 on node7: waiting 0.6 s" in capsys.readouterr().out


def test_another_host_that_shows_life_is_left_alone(tmp_path: Path) -> None:
    sign = threading.Timer(0.2, other_host(tmp_path).touch)
    sign.start()
    with (
        pytest.raises(UserError, match="by process 123 on node7 since 2024-05-06 07:08:09"),
        run_lock(tmp_path),
    ):
        pass
    sign.join()


def test_another_host_that_ends_meanwhile_is_followed(tmp_path: Path) -> None:
    end = threading.Timer(0.1, other_host(tmp_path).unlink)
    end.start()
    with run_lock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    end.join()


def test_without_locks_the_sign_of_life_decides(tmp_path: Path, no_locks: None) -> None:
    with (
        run_lock(tmp_path),
        pytest.raises(UserError, match=f"by process {os.getpid()} on"),
        run_lock(tmp_path),
    ):
        pass
    with run_lock(tmp_path):
        pass


def test_a_damaged_lock_file_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_bytes(b"\x00\xff")
    with run_lock(tmp_path):
        pass
