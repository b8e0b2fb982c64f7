"""The server as a process: what only sockets and signals show."""

import contextlib
import http.client
import json
import signal
import socket
import threading
import time

import pytest

from tests.in_process import run_command
from tests.serve.images import drawn, encoded
from tests.serve.process import running_server

pytest.importorskip("uvicorn", reason="uvicorn is not installed")
pytest.importorskip("starlette", reason="Starlette is not installed")


def exchanged(port: int, sent: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(sent)
        answer = b""
        while part := connection.recv(65536):
            answer += part
            if b"\r\n\r\n" in answer:
                break
        return answer


def in_progress(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/healthz")
    number = json.loads(connection.getresponse().read())["in_progress"]
    connection.close()
    return number


HEAD = b"POST /v1/segment HTTP/1.1\r\nHost: x\r\n"

BAD_CONNECTIONS = {
    "nonsense": (b"\0\1\2 nonsense\r\n\r\n", b"HTTP/1.1 400"),
    "huge header": (HEAD + b"X: " + b"a" * 300_000 + b"\r\n\r\n", b"HTTP/1.1 400"),
    "a header without end": (HEAD + b"X: y\r\n" * 20_000, b"HTTP/1.1 400"),
    "no host": (b"POST /v1/segment HTTP/1.1\r\n\r\n", b"HTTP/1.1 400"),
    "another protocol": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"HTTP/1.1 400"),
    "lengths that differ": (
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
        b"HTTP/1.1 400",
    ),
    "negative length": (HEAD + b"Content-Length: -5\r\n\r\n", b"HTTP/1.1 400"),
    "chunk without size": (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
        b"HTTP/1.1 400",
    ),
    "unknown encoding": (HEAD + b"Transfer-Encoding: zip\r\n\r\n", b"HTTP/1.1 400"),
}
"""What is sent, and how the answer begins."""


def test_bad_connections_leave_the_server_running_and_sigterm_lets_it_answer(model_file, tmp_path):
    image = encoded(drawn(500, 400))
    files = sorted(tmp_path.rglob("*"))
    with running_server(f"--workdir={model_file}", "--sides_px=512") as server:
        port = server.port
        with contextlib.ExitStack() as waiting:
            # These two stay: one is silent, one never ends its header.
            for sent in (b"", HEAD[:30]):
                waits = socket.create_connection(("127.0.0.1", port))
                waiting.enter_context(waits).sendall(sent)
            for case, (sent, begins) in BAD_CONNECTIONS.items():
                assert exchanged(port, sent).startswith(begins), case
                assert in_progress(port) == 0, case
        leaves = socket.create_connection(("127.0.0.1", port))
        leaves.sendall(HEAD + b"Content-Length: 5000\r\n\r\n" + image[:100])
        leaves.close()
        large = HEAD + b"Content-Length: 90000000000\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(large)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1000)
        answers = []

        def ask() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
            with contextlib.closing(connection):
                connection.request("POST", "/v1/segment", image)
                answer = connection.getresponse()
                answers.append((answer.status, answer.read()[:4]))

        clients = [threading.Thread(target=ask) for _ in range(4)]
        for client in clients:
            client.start()
        while in_progress(port) + len(answers) < len(clients):  # until all are accepted
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        for client in clients:
            client.join()
        assert answers == [(200, b"\x89PNG")] * 4
        assert server.process.wait(30) == 128 + signal.SIGTERM
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
    assert sorted(tmp_path.rglob("*")) == files


def test_a_port_in_use_and_wrong_flags_are_said_in_a_line(model_file):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run_command("serve", f"--workdir={model_file}", f"--port={port}")
    assert ended.returncode == 1
    assert f"cannot listen to 127.0.0.1, port {port}" in ended.stderr
    assert ended.stderr.count("\n") == 1
    ended = run_command("serve", f"--workdir={model_file}", "--sides_px=big")
    assert "--sides_px (=big) must be numbers" in ended.stderr
    ended = run_command("serve")
    assert "--workdir=DIR or --demo=digits is needed" in ended.stderr
