"""The layering of docs/architecture.md, checked: who may import whom, and what a core may import at all."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("bus", "workers", "provider", "nodeless")

# What a decision may be made of: values, text, numbers. No clock, socket, file, environment, randomness, log or loop.
PURE = {
    "__future__", "abc", "base64", "bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "enum",
    "fractions", "functools", "hashlib", "heapq", "hmac", "ipaddress", "itertools", "json", "math", "msgspec", "operator",
    "re", "statistics", "string", "struct", "textwrap", "types", "typing", "unicodedata", "urllib.parse", "zlib",
}  # fmt: skip

# package -> what it may import of the others; a package may always import itself.
ALLOWED = {
    "bus": (),
    "workers": ("bus.core", "bus.jetstream"),
    "provider": ("bus.core", "bus.cluster"),
    "nodeless": ("bus", "workers", "provider"),
}

# Inside `bus`, below the programs.
ALLOWED_IN_BUS = {
    "bus.core": ("bus.core",),
    "bus.jetstream": ("bus.core", "bus.jetstream"),
    "bus.cluster": ("bus.core", "bus.cluster"),
    "bus.functions": ("bus.core", "bus.cluster", "bus.functions"),
}

# Third-party clients and their only door.
DOORS = {
    "nats": "bus.jetstream",
    "nkeys": "bus.jetstream",
    "kr8s": "bus.cluster",
    "kubernetes": "bus.cluster",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path) -> set[str]:
    """Return every module that a file imports, anywhere in it, as absolute dotted names."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names.add(module)
            # `from bus import core` imports bus.core; `from bus.core import Event` adds a harmless bus.core.Event.
            names.update(f"{module}.{alias.name}" for alias in node.names if module in PACKAGES)
    return names


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def sources(*patterns: str) -> list[Path]:
    found = {path for pattern in patterns for path in ROOT.glob(pattern) if "__pycache__" not in path.parts}
    assert found, f"no files match {patterns}: the check would check nothing"
    return sorted(found)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", sources(*(f"{package}/**/core/**/*.py" for package in PACKAGES)), ids=relative)
def test_core_imports_nothing_that_acts(path: Path) -> None:
    own = module_name(path).split(".")[0]
    foreign = {
        name
        for name in imported_modules(path)
        if not within(name, tuple(PURE))
        and not within(name, (f"{own}.core", "bus.core"))
        and name != own
        and name != "bus"
    }

    assert not foreign, f"{relative(path)} imports {sorted(foreign)}: pass values in, act in the shell"


@pytest.mark.parametrize("path", sources(*(f"{package}/**/*.py" for package in PACKAGES)), ids=relative)
def test_packages_import_only_what_lies_below_them(path: Path) -> None:
    own = module_name(path).split(".")[0]
    crossing = {
        name
        for name in imported_modules(path)
        if name.split(".")[0] in PACKAGES
        and name.split(".")[0] != own
        and name not in PACKAGES
        and not within(name, ALLOWED[own])
    }

    assert not crossing, (
        f"{relative(path)} imports {sorted(crossing)}; {own} may import {ALLOWED[own] or 'none of the others'}"
    )


@pytest.mark.parametrize("path", sources("bus/**/*.py"), ids=relative)
def test_the_lower_parts_of_the_bus_do_not_reach_up(path: Path) -> None:
    part = ".".join(module_name(path).split(".")[:2])
    allowed = ALLOWED_IN_BUS.get(part)
    if allowed is None:
        return
    reaching = {name for name in imported_modules(path) if name.startswith("bus.") and not within(name, allowed)}

    assert not reaching, f"{relative(path)} imports {sorted(reaching)}; {part} may import {allowed}"


@pytest.mark.parametrize("path", sources(*(f"{package}/**/*.py" for package in PACKAGES)), ids=relative)
def test_each_third_party_client_has_one_door(path: Path) -> None:
    module = module_name(path)
    used = {name for name in imported_modules(path) for client in DOORS if within(name, (client,))}
    passing = {name for name in used if not within(module, (DOORS[name.split(".")[0]],))}

    assert not passing, f"{relative(path)} imports {sorted(passing)}: go through {DOORS}"


def test_the_public_package_imports_no_command_line() -> None:
    """A worker's `from nodeless import Event` must not cost the command line's start time."""
    heavy = {
        name
        for name in imported_modules(ROOT / "nodeless/__init__.py")
        if name.split(".")[0] in {"typer", "rich", "kr8s"}
    }

    assert not heavy
    assert sys.version_info >= (3, 11)
