"""The lock of a run's folder: only one process at a time trains there.

The lock is the operating system's, so it ends with its process, also after `kill -9`. The file
`train.lock` names the process; it is removed when training ends. Some network file systems do not
share locks between hosts, or have none. Therefore the process also sets the file's time every few
seconds, and a process on another host waits to see whether that happens before it takes over.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from fcn_jax.errors import UserError
from fcn_jax.parallel import agreement, hosts
from fcn_jax.terminal.progress import say

FILE = "train.lock"
HEARTBEAT_SECONDS = 15.0
SILENCE_SECONDS = 60.0
"""A process on another host that has not set the file's time for this long has ended."""


@contextlib.contextmanager
def run_lock(workdir: Path) -> Iterator[None]:
    """Holds the lock of a run's folder, which is created if it does not exist.

    The first of several hosts holds it for all, which must see it.

    Raises:
        UserError: another process trains there, the folder cannot be written to, or not all hosts
            share it.
    """
    if not hosts.is_first():
        agreement.check_shared(workdir / FILE, "")
        yield
        return
    path = workdir / FILE
    is_new = not workdir.exists()
    try:
        file = _open_locked(path)
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror}): give a workdir that you may write to"
        ) from error
    ended = threading.Event()
    heartbeat = threading.Thread(target=_set_time, args=(file, ended), daemon=True)
    with file:
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "started": started}
        with contextlib.suppress(OSError):  # a full disk: the lock holds without a name
            file.truncate(0)
            file.write(json.dumps(holder) + "\n")
            file.flush()
        heartbeat.start()
        try:
            agreement.check_shared(path, path.read_text())
            yield
        finally:
            ended.set()
            heartbeat.join()
            forget(workdir)
            with contextlib.suppress(OSError):
                if is_new:
                    workdir.rmdir()  # fails if it holds anything


def forget(workdir: Path) -> None:
    """Removes the file of a lock that this process holds, at its end."""
    with contextlib.suppress(OSError):
        (workdir / FILE).unlink()


def _open_locked(path: Path) -> IO[str]:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as closing:
            file = closing.enter_context(path.open("a+"))
            trusted_host = socket.gethostname()
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _refusal(path, _holder(path)) from None
            except OSError:  # the file system has no locks
                trusted_host = ""
            with contextlib.suppress(FileNotFoundError):  # its process has just removed it
                holder = _holder(path)
                if holder and holder.get("host") != trusted_host:
                    _wait_for_silence(path, holder)
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    closing.pop_all()
                    return file


def _holder(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _wait_for_silence(path: Path, holder: dict[str, Any]) -> None:
    say(
        f"{path} names process {holder.get('pid')} on {holder.get('host')}: waiting "
        f"{SILENCE_SECONDS:g} s to see whether it still trains"
    )
    times, end = set(), time.monotonic() + SILENCE_SECONDS
    while time.monotonic() < end:
        with path.open() as file:  # a network file system asks its server when a file is opened
            times.add(os.fstat(file.fileno()).st_mtime_ns)
        if len(times) > 1:
            raise _refusal(path, holder)
        time.sleep(SILENCE_SECONDS / 60)


def _set_time(file: IO[str], ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(file.fileno())


def _refusal(path: Path, holder: dict[str, Any]) -> UserError:
    pid, host, started = (holder.get(key, "?") for key in ("pid", "host", "started"))
    return UserError(
        f"{path.parent} is being trained by process {pid} on {host} since {started}: wait for its "
        f"end, stop it (kill {pid}), or give another workdir"
    )
