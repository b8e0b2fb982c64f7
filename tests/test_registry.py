"""Names that settings take: where they are looked up, and what is said of unknown ones."""

import functools
import sys
from pathlib import Path

import pytest

from fcn_jax.config import Config, settings
from fcn_jax.errors import ArgumentError, UserError
from fcn_jax.registry import Registry, backbones, datasets, losses
from tests.in_process import run_command
from tests.own_folder import command


@pytest.fixture
def registry() -> Registry:
    return Registry("model.backbone", "fcn_jax.tests", {"path": "pathlib:Path", "os": "os:getcwd"})


def install(folder: Path, name: str, code: str, entry: str) -> None:
    """Writes what an installed package with an entry point leaves in a folder of packages."""
    (folder / f"{name}.py").write_text(code)
    information = folder / f"{name}-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[fcn_jax.tests]\n{entry}\n")


def test_built_in_names_are_imported_when_they_are_used(registry):
    assert registry.names == ("path", "os")
    assert registry["path"] is Path


@pytest.mark.parametrize("table", [backbones, losses, datasets])
def test_every_built_in_name_can_be_imported(table):
    assert all(callable(table[name]) for name in table.names)


def test_a_decorated_function_or_class_is_known_by_its_name(registry):
    @registry.register("mine")
    def mine() -> int:
        return 1

    assert registry["mine"] is mine
    assert registry.names == ("path", "os", "mine")
    assert "mine" in registry
    registry.register("partial")(functools.partial(mine))
    assert registry["partial"]() == 1


def test_a_name_is_not_taken_from_other_code(registry):
    def make(value: int):
        def mine() -> int:
            return value

        return mine

    registry.register("mine")(make(1))
    registry.register("mine")(make(2))  # the same code, executed again
    assert registry["mine"]() == 2
    for name, code in (("mine", Path), ("path", make(1))):
        with pytest.raises(ValueError, match=f"'{name}' is already registered for model.backbone"):
            registry.register(name)(code)


def test_an_unknown_name_is_refused_with_the_nearest_one(registry):
    with pytest.raises(
        ArgumentError,
        match=r"^model.backbone \(=paht\) must be one of path, os; if your own code registers it, "
        r"import its module first; did you mean path\?$",
    ):
        registry["paht"]
    with pytest.raises(
        ArgumentError, match=r"if your own code registers it, import its module first$"
    ):
        registry.check("xyz")


def test_names_of_installed_packages_are_known_and_imported_late(registry, tmp_path, monkeypatch):
    install(tmp_path, "good_plugin", "def net(): return 3\n", "net = good_plugin:net")
    install(tmp_path, "bad_plugin", "import nowhere_at_all\n", "bad = bad_plugin:net")
    monkeypatch.syspath_prepend(tmp_path)
    assert set(registry.names) == {"path", "os", "net", "bad"}
    assert "good_plugin" not in sys.modules
    assert registry["net"]() == 3
    with pytest.raises(
        UserError,
        match=r"model.backbone \(=bad\): the package bad_plugin cannot be imported "
        r"\(ModuleNotFoundError: No module named 'nowhere_at_all'\)",
    ):
        registry["bad"]


def test_registered_names_are_the_choices_of_their_settings():
    held = {one.name: one for one in settings(Config())}
    assert held["model.backbone"].choices == backbones.names
    assert ", ".join(datasets.names) in held["data.name"].help


MINE = """
from fcn_jax.registry import register_backbone

@register_backbone("mine")
def mine(*, rngs): ...
"""


def test_commands_import_modules_that_register_names(tmp_path):
    file = tmp_path / "my_backbone_of_a_test.py"
    file.write_text(MINE)
    unknown = command("train", "--config.model.backbone=mine", "--config.eval.canvases=0")
    assert "(=mine) must be one of small" in unknown.stderr
    assert "if your own code registers it, give its module by --import=FILE" in unknown.stderr
    known = command(
        "train", f"--import={file}", "--config.model.backbone=mine", "--config.eval.canvases=0"
    )
    assert "config.eval.canvases (=0) must be" in known.stderr
    shown = command("train", f"--import={file}", "--help").stdout
    (line,) = (line for line in shown.splitlines() if "model.backbone=" in line)
    assert line.endswith(", mine")
    assert (
        "\n  --import: modules or .py files that register your own code: a,b,…, or the flag"
        in shown
    )


@pytest.mark.parametrize("form", ["repeated", "joined"])
def test_several_modules_are_imported(tmp_path, form):
    files = [tmp_path / f"code_{form}_{name}.py" for name in ("a", "b", "c")]
    for file in files:
        file.write_text(f"print('importing {file.stem}')")
    sources = [",".join(map(str, files))] if form == "joined" else files
    result = run_command("predict", *[f"--import={source}" for source in sources], "--help")
    assert [line for line in result.stdout.splitlines() if line.startswith("importing")] == [
        f"importing {file.stem}" for file in files
    ]


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("none.py", None, "there is no file {folder}/none.py"),
        (
            "broken_plugin.py",
            "x = 1\n\nx.y\n",
            "{folder}/broken_plugin.py:3: AttributeError: ",
        ),
        ("json.py", "", "{folder}/json.py: another module has this name"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(tmp_path, name, code, message):
    if code is not None:
        (tmp_path / name).write_text(code)
    refused = command("predict", f"--import={tmp_path / name}")
    assert refused.returncode == 2
    assert message.format(folder=tmp_path) in refused.stderr
    assert refused.stderr.count("\n") == 1
