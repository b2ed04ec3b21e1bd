"""Imports go one way: no circle among the modules, not even for types, and no script takes from another script."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from command import REPOSITORY


def imports_within(folder: Path) -> dict[str, set[str]]:
    """module -> the modules of the same folder that it imports anywhere: at its top, in a function, for types only."""
    trees = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in folder.glob("*.py")}
    found: dict[str, set[str]] = {}
    for module, tree in trees.items():
        names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
        found[module] = {name.partition(".")[0] for name in names} & trees.keys()
    return found


@pytest.mark.parametrize("folder", [".", "ViZDoomPPO"])
def test_no_module_imports_itself_by_way_of_others(folder: str) -> None:
    imports = imports_within(REPOSITORY / folder)
    assert len(imports) > 20 and any(imports.values())
    TopologicalSorter(imports).prepare()  # CycleError names the modules of a circle


def test_no_script_imports_a_script() -> None:
    imports = imports_within(REPOSITORY)
    scripts = {name for name in imports if "__main__" in (REPOSITORY / f"{name}.py").read_text(encoding="utf-8")}
    assert {"play", "evaluate", "train_text_to_image"} <= scripts
    assert not {name: taken for name in scripts if (taken := imports[name] & scripts)}
