"""Writes the table of the rooms of the package: ``python docs/rooms.py``.

A room is a package or a module directly below ``agenticrec_jax``. What a room is for is the first
line of its docstring; what it imports is read from its files. The rooms stand in the order of
``ROOMS`` in ``tests/test_project.py``, which says who may import whom.
"""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "agenticrec_jax"
PAGE = ROOT / "docs" / "reference" / "rooms.md"
BEGIN = "<!-- table: python docs/rooms.py -->"
END = "<!-- end of the table -->"


def order() -> tuple[str, ...]:
    """Returns the rooms from the lowest to the highest, as the test of imports has them."""
    space: dict = {}
    tree = ast.parse((ROOT / "tests" / "test_project.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and node.targets[0].id in ("LEAVES", "ROOMS"):
            exec(compile(ast.Module([node], []), "test_project", "exec"), space)
    return space["ROOMS"]


def files_of(room: str) -> list[pathlib.Path]:
    """Returns the Python files of a room."""
    directory = ROOT / PACKAGE / room
    return sorted(directory.rglob("*.py")) if directory.is_dir() else [directory.with_suffix(".py")]


def purpose(room: str) -> str:
    """Returns the first line of a room's docstring."""
    directory = ROOT / PACKAGE / room
    file = directory / "__init__.py" if directory.is_dir() else directory.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return docstring.split("\n\n")[0].replace("\n", " ").rstrip(".")


def imports(room: str) -> set[str]:
    """Returns the other rooms that the files of a room import."""
    rooms = set()
    for file in files_of(room):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
                rooms |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module.startswith(PACKAGE + "."):
                rooms.add(node.module.split(".")[1])
            elif isinstance(node, ast.Import):
                paths = [alias.name.split(".") for alias in node.names]
                rooms |= {path[1] for path in paths if path[0] == PACKAGE and len(path) > 1}
    return rooms - {room}


def table() -> str:
    """Returns the table as Markdown, the lowest room first."""
    rooms = order()
    lines = ["| room | what it is | imports |", "|---|---|---|"]
    for room in rooms:
        ours = imports(room)
        below = ", ".join(f"`{other}`" for other in rooms if other in ours) or "no other room"
        lines.append(f"| `{room}` | {purpose(room)} | {below} |")
    return "\n".join(lines)


def page() -> str:
    """Returns the page with the table as the code has it now."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
