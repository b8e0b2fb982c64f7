"""Who may import whom: the rooms of the package, from the ground up."""

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "fcn_jax"

FLOORS = (
    {"errors", "config", "registry"},
    {"terminal"},
    {"parallel"},
    {"models"},
    {"data"},
    {"pictures"},
    {"training", "pretrained"},
    {"doctor", "runs", "formats"},
    {"inference"},
    {"evaluation"},
    {
        "train",
        "evaluate",
        "predict",
        "compare",
        "compile",
        "export",
        "heatmap",
        "inspect",
        "serve",
        "testing",
    },
)
"""A room imports from the floors below its own; rooms on the same floor do not know each other."""

SAME_FLOOR = {("config", "errors"), ("config", "registry"), ("registry", "errors")}
"""The exceptions: the ground floor's own order."""


def room(module: str) -> str:
    return module.split(".")[1]


def imports() -> list[tuple[str, str]]:
    """Every (importing module, imported module) inside the package, lazy imports included."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        importer = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module == "fcn_jax":
                names = [f"fcn_jax.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                continue
            found += [(importer, name) for name in names if name.startswith("fcn_jax.")]
    return found


def test_every_room_imports_only_from_the_floors_below():
    floor = {name: index for index, rooms in enumerate(FLOORS) for name in rooms}
    wrong = [
        f"{importer} imports {imported}"
        for importer, imported in imports()
        if room(importer) not in ("__init__", room(imported))
        and floor[room(imported)] >= floor[room(importer)]
        and (room(importer), room(imported)) not in SAME_FLOOR
    ]
    assert not wrong


def test_there_are_no_circles_between_modules():
    edges: dict[str, set[str]] = {}
    for importer, imported in imports():
        if not importer.endswith("__init__"):
            edges.setdefault(importer, set()).add(imported)
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above, module])
        if module in done:
            return
        for imported in sorted(edges.get(module, ())):
            visit(imported, (*above, module))
        done.add(module)

    for module in sorted(edges):
        visit(module, ())


def test_the_table_names_every_room():
    named = set().union(*FLOORS)
    there = {
        path.stem
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert there - {"__init__"} <= named


def test_every_room_says_what_is_in_each_file():
    unnamed = []
    for room_init in PACKAGE.glob("*/**/__init__.py"):
        listing = ast.get_docstring(ast.parse(room_init.read_text())) or ""
        for path in room_init.parent.glob("*.py"):
            if not path.stem.startswith("__") and not re.search(rf"\b{path.stem}\b", listing):
                unnamed.append(str(path.relative_to(PACKAGE)))
    assert not unnamed
