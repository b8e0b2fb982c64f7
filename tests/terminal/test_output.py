"""Printing never ends a program, and prints no control character that a name holds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from fcn_jax.errors import printable
from fcn_jax.terminal.console import open_console
from fcn_jax.terminal.progress import progress_bar, say
from tests.own_folder import ROOT

COMMAND = """
from fcn_jax.terminal import cli
if __name__ == "__main__":
    cli.begin()
from pathlib import Path
from fcn_jax.errors import UserError
from fcn_jax.terminal.progress import progress_bar, say
from fcn_jax.errors import printable
from fcn_jax.terminal.console import open_console
def main(arguments):
    with progress_bar("training", 20_000) as bar:
        for step in range(20_000):
            say(f"step {step}: 500 × 375")
            bar.advance()
    open_console().print("a table ┃")
    Path("done").write_text("")
    raise UserError("a mistake in é.png")
if __name__ == "__main__":
    cli.run(main)
"""


@pytest.fixture
def shell(tmp_path: Path):
    """Runs the command that prints much, as `noisy`, in a shell."""
    (tmp_path / "noisy.py").write_text(COMMAND)

    def run(line: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
        line = line.replace("noisy", f"{sys.executable} -m noisy")
        return subprocess.run(
            ["bash", "-c", f"set -o pipefail; {line}"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", **environment},
            capture_output=True,
            timeout=60,
        )

    return run


@pytest.mark.parametrize("line", ["noisy | head -1", "noisy >&-", "noisy 2>&-", "noisy 2>&1 >&-"])
def test_a_program_ends_its_work_when_nobody_reads_what_it_prints(shell, tmp_path, line):
    ended = shell(line)
    assert ended.returncode == 1
    assert (tmp_path / "done").exists()
    everything = ended.stdout + ended.stderr
    assert b"Traceback" not in everything
    assert b"Exception ignored" not in everything
    assert everything.count("noisy: a mistake in é.png".encode()) == 1


def test_a_file_does_not_get_the_number_of_a_closed_stream(tmp_path):
    """Else it would get the messages of libraries that print to number 2."""
    program = (
        "import os, sys; from fcn_jax.terminal.output import protect_streams; protect_streams();"
        f"sys.exit(os.open({str(tmp_path / 'file')!r}, os.O_CREAT))"
    )
    ended = subprocess.run(
        ["bash", "-c", 'exec "$0" -c "$1" >&- 2>&-', sys.executable, program], cwd=ROOT
    )
    assert ended.returncode > 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_disk_behind_stdout_does_not_end_a_program(shell, tmp_path):
    ended = shell("noisy >/dev/full")
    assert ended.returncode == 1
    assert (tmp_path / "done").exists()
    assert ended.stderr.splitlines()[-1] == "noisy: a mistake in é.png".encode()


@pytest.mark.parametrize(
    ("encoding", "cross", "accent"),
    [
        ("ascii", rb"500 \xd7 375", rb"\xe9.png"),
        ("latin-1", b"500 \xd7 375", b"\xe9.png"),
        ("utf-8", b"500 \xc3\x97 375", b"\xc3\xa9.png"),
    ],
)
def test_an_encoding_may_lack_characters(shell, encoding, cross, accent):
    ended = shell("noisy", PYTHONIOENCODING=encoding)
    assert ended.stdout.startswith(b"step 0: " + cross + b"\n")
    assert ended.stderr.endswith(b"noisy: a mistake in " + accent + b"\n")


NAME = "a\x1b[31m\x07b\nc\r\x9b1m\u202e.png"
ESCAPED = r"a\x1b[31m\x07b\nc\r\x9b1m\u202e.png"


def test_control_characters_are_printable(capsys):
    assert printable(NAME) == ESCAPED
    assert printable("é × 日本 \N{GRINNING FACE} ♥") == "é × 日本 \N{GRINNING FACE} ♥"
    assert printable(os.fsdecode(b"\xff.png")) == r"\udcff.png"
    say(NAME)
    with progress_bar(NAME, 1) as bar:
        bar.advance(file=NAME)
    output = capsys.readouterr()
    assert output.out == f"{ESCAPED}\n"
    assert output.err.splitlines()[-1] == f"{ESCAPED}: 1/1 images, 0 s, file {ESCAPED}"


def test_tables_escape_control_characters(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    table = Table("name")
    table.add_row(Text("a\x1b[31m\x9b\x07\u202e"))
    console = open_console()
    console.print(table)
    console.print(Text("b\x1bc"))
    printed = capsys.readouterr().out
    assert r"a\x1b[31m\x9b\u202e" in printed
    assert r"b\x1bc" in printed
    assert not set(printed) & set("\x1b\x9b\x07\u202e")


def test_the_error_of_a_command_escapes_control_characters(tmp_path):
    name = "no\x1b[2Jwhere\n"
    result = subprocess.run(
        [sys.executable, "-m", "fcn_jax.train", f"--config={name}.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stderr == (
        r"train: there is no config file no\x1b[2Jwhere\n.py (see python -m fcn_jax.train --help)"
        "\n"
    )
