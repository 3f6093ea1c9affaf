"""The layout of ``bort/``: which package may import which, read from the sources without importing them."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Dict, Iterator, Set, Tuple

import pytest

from tests.tiny import ROOT

PACKAGES = (
    "predict",
    "export",
    "agora",
    "dynabert",
    "search",
    "pretraining",
    "finetuning",
    "training",
    "engines",
    "huggingface",
    "masked_lm",
    "checkpoints",
    "tasks",
    "models",
    "downloads",
    "text",
    "backend",
)
"""From the commands down; a package imports itself, those after it, and the modules at the root."""
COMPOSITION_ROOTS = ("__main__", "command", "demo", "api")
"""Modules that may import anything and that nothing imports but another one."""
ONLY_IN_BACKEND = ("mxnet", "horovod")
MOST_ROOT_MODULES = 10
STILL_UPWARDS: Tuple[Tuple[str, str], ...] = ()
"""Imports against the order that are about to go: (importing module, imported module)."""


def name_of(path: Path) -> str:
    """``bort.search.fptas`` for its file; ``bort.search`` for the package's ``__init__.py``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES: Dict[str, ast.Module] = {
    name_of(path): ast.parse(path.read_text(encoding="utf-8"), str(path))
    for path in sorted((ROOT / "bort").rglob("*.py"))
}


def imports(module: str) -> Iterator[str]:
    """Full names of everything that ``module`` imports, inside functions too."""
    for node in ast.walk(SOURCES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import in line {node.lineno}"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in SOURCES else str(node.module)


def inner_imports(module: str) -> Set[str]:
    """The modules of ``bort`` that ``module`` imports."""
    return {name for name in imports(module) if name in SOURCES and name != module}


def is_composition_root(module: str) -> bool:
    return module.rpartition(".")[2] in COMPOSITION_ROOTS


def floor(module: str) -> int:
    """Place in the order: 0 for the uppermost package; the root's modules are below all packages."""
    parts = module.split(".")
    return PACKAGES.index(parts[1]) if len(parts) > 1 and parts[1] in PACKAGES else len(PACKAGES)


def test_every_package_has_a_place_in_the_order():
    found = {path.parent.name for path in (ROOT / "bort").glob("*/__init__.py")}
    assert found <= set(PACKAGES), sorted(found - set(PACKAGES))


def test_the_root_stays_small():
    modules = {path.stem for path in (ROOT / "bort").glob("*.py")} - {"__init__"}
    assert len(modules) <= MOST_ROOT_MODULES, sorted(modules)


def test_imports_point_down():
    upwards = {
        (module, inner)
        for module in SOURCES
        if not is_composition_root(module)
        for inner in inner_imports(module)
        if floor(inner) < floor(module)
    }
    allowed = set(STILL_UPWARDS)
    assert not upwards - allowed, sorted(upwards - allowed)
    assert not allowed - upwards, f"gone, take it out of STILL_UPWARDS: {sorted(allowed - upwards)}"


def test_no_circle():
    graph = {
        module: {inner for inner in inner_imports(module) if (module, inner) not in STILL_UPWARDS}
        for module in SOURCES
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_nobody_imports_a_composition_root():
    found = {
        (module, inner)
        for module in SOURCES
        for inner in inner_imports(module)
        if is_composition_root(inner) and not is_composition_root(module)
    }
    assert not found, sorted(found)
    runners = {path.stem for path in ROOT.glob("*.py")}
    assert not [module for module in SOURCES if runners & set(imports(module))]


def test_only_the_backend_imports_mxnet_and_horovod():
    found = {
        (module, name)
        for module in SOURCES
        if not module.startswith("bort.backend.")
        for name in imports(module)
        if name.split(".")[0] in ONLY_IN_BACKEND
    }
    assert not found, sorted(found)
