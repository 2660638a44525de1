"""Apply manifests as files hold them, in an order that works: namespaces, then CRDs and their readiness, then the rest."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anyio
import yaml

from bus.cluster.connection import Cluster
from bus.cluster.errors import ClusterUnavailable
from bus.cluster.resources import CRDS, NAMESPACES, Resource, resource_of

ESTABLISHED_S = 15.0
"""An API server serves a new kind within a second."""


def documents_of(kustomization: Path) -> list[dict[str, Any]]:
    """Return every object of a folder's `kustomization.yaml`, in the order of its resources.

    Only what our own base uses is read: `resources` that are files. For overlays there is `kubectl apply -k`.
    """
    listed = yaml.safe_load((kustomization / "kustomization.yaml").read_text())["resources"]
    return [
        document
        for name in listed
        for document in yaml.safe_load_all((kustomization / name).read_text())
        if document is not None
    ]


async def apply_documents(cluster: Cluster, documents: Iterable[dict[str, Any]], *, field_manager: str) -> list[str]:
    """Apply the objects server-side and return one line for each; a CRD among them is served when this returns."""
    order = {NAMESPACES: 0, CRDS: 1}
    known = sorted(((resource_of(each), each) for each in documents), key=lambda pair: order.get(pair[0], 2))
    applied: list[str] = []
    for resource, document in known:
        metadata = document["metadata"]
        await cluster.apply(
            resource, document, field_manager=field_manager, namespace=metadata.get("namespace") or None
        )
        applied.append(f"{resource.kind} {metadata['name']} applied")
        if resource == CRDS:
            await _established(cluster, metadata["name"], document)
    return applied


async def _established(cluster: Cluster, name: str, document: dict[str, Any]) -> None:
    spec = document["spec"]
    served = Resource(spec["group"], spec["versions"][0]["name"], spec["names"]["plural"], spec["names"]["kind"], True)
    with anyio.move_on_after(ESTABLISHED_S):
        while True:
            crd = await cluster.get(CRDS, name)
            conditions = {each["type"]: each["status"] for each in crd.get("status", {}).get("conditions") or ()}
            if conditions.get("Established") == "True":
                await cluster.list(served)
                return
            await anyio.sleep(0.02)
    raise ClusterUnavailable(f"serve {name}", f"not established after {ESTABLISHED_S:g} s")
