"""Where the manifests lie: inside the installed package, or at the root of a clone."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


def manifests_directory() -> Path:
    installed = PACKAGE / "manifests"
    return installed if installed.is_dir() else PACKAGE.parent / "manifests"
