"""Connections between the processes of a run: messages, failures, and who is still alive.

Process 0 has a connection to each other process. A process that raises says so with its reason; the
operating system closes the connection of one that is killed, and one that is frozen falls silent.
In each case all processes end within seconds, with one line that names the process, also if a
collective waits for it in a thread that no signal reaches.
"""

import contextlib
import faulthandler
import io
import json
import multiprocessing
import os
import queue
import socket
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Client, Connection, Listener, wait
from time import monotonic
from typing import NoReturn

import numpy as np

from fcn_jax.errors import UserError
from fcn_jax.terminal.output import print_error

BEAT_SECONDS = 1.0
"""Interval at which a process says that it is alive, and looks at its deadline."""

GRACE_SECONDS = 1.0
"""Time that a process has to end by itself after another one has failed."""

CONNECT_SECONDS = 10.0
"""Limit for connecting to process 0; all processes have met just before."""

STRANGER_ERRORS = (OSError, EOFError, multiprocessing.AuthenticationError)
"""Exceptions of a connection to a program that is none of ours."""

PACKET = b"\x00"
FAILURE = b"\x01"
BEAT = b"\x02"
FINISHED = b"\x03"


class Lifeline:
    """This process's connections to the others.

    Args:
        process: the number of this process.
        connections: connections by process: to all others in process 0, to process 0 elsewhere.
        silence_seconds: a process that has not been heard for this long counts as dead.
    """

    def __init__(self, process: int, connections: dict[int, Connection], silence_seconds: float):
        self.silence_seconds = silence_seconds
        self._process = process
        self._connections = connections
        self._packets = {peer: queue.Queue[bytes]() for peer in connections}
        self._finished = {peer: threading.Event() for peer in connections}
        self._gone = {peer: threading.Event() for peer in connections}
        self._sending = threading.Lock()
        self._failure: tuple[int, str] | None = None
        self._failed = threading.Event()
        self._is_leaving = threading.Event()
        self._deadline: tuple[float, str] | None = None
        threading.Thread(target=self._listen, name="lifeline", daemon=True).start()

    def gather(self, packet: bytes) -> list[bytes]:
        """Returns the packets of all processes, by process. All processes must call it."""
        if self._process:
            self._send(PACKET + packet)
            return _unpack(self._packets[0].get())
        packets = [packet, *(self._packets[peer].get() for peer in sorted(self._packets))]
        self._send(PACKET + _pack(packets))
        return packets

    def set_deadline(self, seconds: float | None, work: str = "") -> None:
        """Ends all processes if `work` is not done in time: the next call replaces the deadline."""
        self._deadline = None if seconds is None else (monotonic() + seconds, work)

    def await_failure(self) -> bool:
        """Returns whether another process has failed, or does within moments."""
        self._is_leaving.set()
        return self._failed.wait(2 * GRACE_SECONDS)

    def fail(self, status: int, line: str) -> NoReturn:
        """Ends this process and all others, with the line, or that of one that failed before."""
        self._is_leaving.set()
        self._end(*(self._failure or (status, self._numbered(line), f"process 0: {line}")))

    def finish(self) -> None:
        """Waits until every process has called it; from then on, none misses another one."""
        if self._process:
            self._send(FINISHED)
        for event in self._finished.values():
            event.wait()
        if not self._process:
            self._send(FINISHED)
        self._is_leaving.set()

    def _numbered(self, line: str) -> str:
        return f"process {self._process}: {line}" if self._process else line

    def _send(self, message: bytes, seconds: float = -1) -> None:
        """Sends a message to all; drops it if another one takes longer than this to send."""
        if not self._sending.acquire(timeout=seconds):
            return
        try:
            for connection in self._connections.values():
                with contextlib.suppress(OSError):  # gone, which the listening thread finds out
                    connection.send_bytes(message)
        finally:
            self._sending.release()

    def _listen(self) -> None:
        peers = {connection: peer for peer, connection in self._connections.items()}
        heard = dict.fromkeys(self._connections, monotonic())
        looked = beat = monotonic()
        while peers:
            for connection in wait(list(peers), timeout=BEAT_SECONDS / 4):
                assert isinstance(connection, Connection)
                peer = peers[connection]
                heard[peer] = monotonic()
                try:
                    self._receive(peer, connection.recv_bytes())
                except (EOFError, OSError):
                    del peers[connection]
                    self._gone[peer].set()
                    if not self._finished[peer].is_set():
                        self._lose(peer, "has ended without a reason (killed, or out of memory?)")
            now = monotonic()
            if now - looked > self.silence_seconds / 2:  # this process itself was frozen
                heard = dict.fromkeys(self._connections, now)
            looked = now
            if now - beat > BEAT_SECONDS:
                beat = now
                self._send(BEAT, 0)
            for peer in peers.values():
                if now - heard[peer] > self.silence_seconds and not self._finished[peer].is_set():
                    self._lose(peer, f"has not answered for {self.silence_seconds:g} s")
            self._check_deadline(now)

    def _receive(self, peer: int, message: bytes) -> None:
        kind, content = message[:1], message[1:]
        if kind == PACKET:
            self._packets[peer].put(content)
        elif kind == FINISHED:
            self._finished[peer].set()
        elif kind == FAILURE:
            status, line = json.loads(content)
            self._set_failure(status, line)

    def _lose(self, peer: int, what: str) -> None:
        line = f"process {peer} {what}: all processes end"
        if peer == 0 and not self._failed.is_set():
            self._end(1, line)  # before JAX notices, which would abort with a page of its own
        self._set_failure(1, line)

    def _set_failure(self, status: int, line: str) -> None:
        """Ends this process, because another one has failed, unless it is ending by itself."""
        if self._failed.is_set():
            return
        self._failure = status, line
        self._failed.set()
        threading.Thread(target=self._end_soon, daemon=True).start()

    def _end_soon(self) -> None:
        assert self._failure is not None
        self._send(FAILURE + json.dumps(self._failure).encode(), GRACE_SECONDS)
        if not self._is_leaving.wait(GRACE_SECONDS):
            self._end(*self._failure)

    def _check_deadline(self, now: float) -> None:
        deadline = self._deadline
        if deadline is not None and now > deadline[0] and not self._is_leaving.is_set():
            self._is_leaving.set()
            faulthandler.dump_traceback(2)
            threading.Thread(target=self._end, args=(1, self._numbered(deadline[1]))).start()

    def _end(self, status: int, line: str, line_from_first: str = "") -> NoReturn:
        """Prints the line and ends, without JAX's barrier, at which it would wait for the others.

        They print it too; if this is process 0, `line_from_first`, which says so.

        Process 0 ends last: JAX aborts the others, with a page of its own, as soon as it is gone.
        """
        _show_cursor()
        print_error(line)
        theirs = line if self._process else line_from_first or line
        self._send(FAILURE + json.dumps((status, theirs)).encode(), GRACE_SECONDS)
        if not self._process:
            end = monotonic() + 3 * GRACE_SECONDS
            for gone in self._gone.values():
                gone.wait(max(0.0, end - monotonic()))
        for child in multiprocessing.active_children():  # readers, which would outlive it
            child.kill()
        os._exit(status)


class Meeting:
    """A listening socket of process 0, to which the other processes connect.

    Attributes:
        invitation: addresses, port and key, for `accept_invitation` in the other processes.
    """

    def __init__(self) -> None:
        key = os.urandom(16)
        # Port 0: a free one.
        self._listener = Listener(("0.0.0.0", 0), backlog=1024, authkey=key)
        port = self._listener.address[1]
        self.invitation = json.dumps([_own_addresses(), port, key.hex()]).encode()

    def await_others(self, count: int) -> dict[int, Connection]:
        """Returns the connections to the processes 1 to `count` - 1."""
        connections: dict[int, Connection] = {}
        with self._listener:
            while len(connections) < count - 1:
                try:
                    connection = self._listener.accept()
                    connections[int(connection.recv_bytes())] = connection
                except (*STRANGER_ERRORS, ValueError):
                    continue
        return connections


def accept_invitation(invitation: bytes, process: int) -> Connection:
    """Connects to process 0.

    Raises:
        UserError: it cannot be reached.
    """
    addresses, port, key = json.loads(invitation)
    for address in addresses:
        try:
            with socket.create_connection((address, port), timeout=CONNECT_SECONDS):
                pass  # unlike Client, with a limit of time
            connection = Client((address, port), authkey=bytes.fromhex(key))
        except STRANGER_ERRORS:  # an address may be another machine's
            continue
        connection.send_bytes(str(process).encode())
        return connection
    raise UserError(
        f"process {process} cannot reach process 0 at {' or '.join(addresses)}, port {port}: the "
        "hosts must be able to open connections to each other on any port"
    )


def _own_addresses() -> list[str]:
    """Returns the addresses by which other hosts may reach this one."""
    found = []
    for name in (socket.gethostname(), socket.getfqdn()):
        try:
            found += [str(info[4][0]) for info in socket.getaddrinfo(name, None, socket.AF_INET)]
        except OSError:
            continue
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outward:
        try:
            outward.connect(("192.0.2.1", 9))  # sends nothing; finds the outward interface
            found.append(outward.getsockname()[0])
        except OSError:
            pass
    outside = [address for address in dict.fromkeys(found) if not address.startswith("127.")]
    return [*outside, "127.0.0.1"]


def pack_arrays(arrays: dict[str, np.ndarray]) -> bytes:
    """Returns arrays by name as the bytes of an .npz file."""
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def unpack_arrays(packet: bytes) -> dict[str, np.ndarray]:
    """Returns the arrays of `pack_arrays`."""
    with np.load(io.BytesIO(packet), allow_pickle=False) as stored:
        return dict(stored)


def _pack(packets: Sequence[bytes]) -> bytes:
    return b"".join(len(packet).to_bytes(8, "big") + packet for packet in packets)


def _unpack(together: bytes) -> list[bytes]:
    packets, start = [], 0
    while start < len(together):
        length = int.from_bytes(together[start : start + 8], "big")
        packets.append(together[start + 8 : start + 8 + length])
        start += 8 + length
    return packets


def _show_cursor() -> None:
    """Undoes what a live progress bar has hidden."""
    if sys.stderr is not None and sys.stderr.isatty():
        print("\x1b[?25h", end="", file=sys.stderr, flush=True)
