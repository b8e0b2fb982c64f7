"""The README and docs/: every command, flag and setting exists, and the site builds."""

import ast
import functools
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fcn_jax.config import Config, default_config, load, override, settings
from tests.in_process import run_command
from tests.own_folder import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

PLACEHOLDERS = {"--config=FILE", "--config.a.b=c"}
"""Arguments in tables that stand for others."""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """The words of each `python -m` command in shell lines, with variables replaced."""
    variables: dict[str, str] = {}
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        if assigned := re.fullmatch(r'([A-Z]+)="(.*)"', line.strip()):
            variables[assigned[1]] = assigned[2]
        line = re.sub(r"\$([A-Z]+)", lambda name: variables.get(name[1], name[0]), line)
        if "python -m " in line:
            try:
                words = shlex.split(line[line.index("python -m ") :], comments=True)
            except ValueError:  # a command inside of another's quotes
                words = line[line.index("python -m ") :].replace("'", "").replace('"', "").split()
            ends = [i for i, word in enumerate(words) if word in ("|", "&&", "&", ";", ">")]
            found.append(words[2 : ends[0] if ends else None])
    return found


def commands_of(page: Path) -> list[list[str]]:
    text = page.read_text()
    inline = [code for code in re.findall(r"`(python -m [^`\n]+)`", text) if "…" not in code]
    return commands("\n".join([*blocks(page, "bash"), *inline]))


@functools.cache
def flags_of(module: str) -> set[str]:
    """The flags in the `--help` of a command of the package."""
    result = run_command(module.removeprefix("fcn_jax."), "--help")
    assert result.returncode == 0, module
    names = set(re.findall(r"^  --(\w+):", result.stdout, re.MULTILINE))
    assert names, module
    return names


SETTINGS = {one.name for one in settings(Config())}


def problem_of(words: list[str]) -> str:
    """Returns what is wrong with a command; "" if nothing is."""
    module, *arguments = words
    if module.partition(".")[0] not in ("fcn_jax", "benchmarks", "examples"):
        return ""
    if importlib.util.find_spec(module) is None:
        return f"there is no module {module}"
    if not module.startswith("fcn_jax."):  # these flags are not checked
        return ""
    known, config = flags_of(module), default_config()
    for argument in arguments:
        name, has_value, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or argument in PLACEHOLDERS:
            continue
        if name == "config":
            if value.startswith("configs/"):  # others are the reader's own
                if not (ROOT / value).is_file():
                    return f"there is no {value}"
                config = load(ROOT / value)
        elif name.startswith("config."):
            if "config" not in known:
                return f"{module} has no settings"
            if name.removeprefix("config.") not in SETTINGS:
                return f"there is no setting {name}"
            if has_value:
                override(config, name.removeprefix("config."), value)
        elif not {name, name.removeprefix("no")} & known:
            return f"{module} has no flag --{name}"
    config.check()
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_their_flags_and_settings(page):
    problems = {" ".join(words): problem_of(words) for words in commands_of(page)}
    assert not {command: problem for command, problem in problems.items() if problem}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_in_the_text_exist(page):
    named = re.findall(r"--config\.([a-z_]+(?:\.[a-z_]+)?)", page.read_text())
    sections = {name.partition(".")[0] for name in SETTINGS}
    stray = {name for name in named if name not in SETTINGS and name not in sections}
    assert not stray - {"section.key", "a.b"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_parse(page):
    for block in blocks(page, "python"):
        ast.parse(block)


def test_pages_have_commands_and_mistakes_in_them_are_found():
    assert sum(len(commands_of(page)) for page in PAGES) > 30
    assert problem_of(["fcn_jax.trains"]) == "there is no module fcn_jax.trains"
    assert problem_of(["fcn_jax.predict", "--overlays"]) == "fcn_jax.predict has no flag --overlays"
    wrong = ["fcn_jax.train", "--config.model.skip=1"]
    assert problem_of(wrong) == "there is no setting config.model.skip"
    assert problem_of(["fcn_jax.train", "--config=configs/no.py"]) == "there is no configs/no.py"
    assert problem_of(["fcn_jax.predict", "--config.seed=1"]) == "fcn_jax.predict has no settings"


def test_the_site_builds_without_warnings(tmp_path):
    for package in ("sphinx", "myst_nb"):
        pytest.importorskip(package, reason=f"{package} is not installed (pip install '.[docs]')")
    command = [
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        str(ROOT / "docs"),
        str(tmp_path / "site"),
    ]
    result = subprocess.run(
        [sys.executable, *command, "-d", str(tmp_path / "trees")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "site/api.html").read_text()
    for name in ("load_run", "open_dataset", "build_model", "register_backbone"):
        assert f'id="fcn_jax.{name}"' in page
