"""A real control plane for the whole session, and a namespace of its own for each test."""

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bus.cluster.connection import Cluster, ClusterConfig, open_cluster
from bus.cluster.errors import AlreadyExists
from bus.cluster.manifests import apply_documents, documents_of
from bus.cluster.resources import NAMESPACES, SERVICE_ACCOUNTS
from nodeless.embedded.controlplane.launch import ControlPlane, running_control_plane

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"


@pytest.fixture(scope="session")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    """etcd, kube-apiserver, kube-scheduler and kube-controller-manager."""
    async with running_control_plane(tmp_path_factory.mktemp("plane") / "home") as running:
        yield running


@pytest.fixture
async def cluster(plane: ControlPlane) -> AsyncIterator[Cluster]:
    """The administrator's connection."""
    async with open_cluster(ClusterConfig(kubeconfig=str(plane.kubeconfig))) as opened:
        yield opened


@pytest.fixture
async def namespace(cluster: Cluster) -> AsyncIterator[str]:
    name = f"test-{uuid.uuid4().hex[:8]}"
    await cluster.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    try:
        # Pods are refused until it is there; the controller may be a moment later than this test.
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
        await cluster.create(SERVICE_ACCOUNTS, account, name)
    except AlreadyExists:
        pass
    yield name
    await cluster.delete(NAMESPACES, name)


@pytest.fixture(scope="session")
async def installed(plane: ControlPlane) -> ControlPlane:
    """The control plane with the manifests applied: the Function resource and each program's rights."""
    async with open_cluster(ClusterConfig(kubeconfig=str(plane.kubeconfig))) as opened:
        await apply_documents(opened, documents_of(MANIFESTS), field_manager="nodeless-up")
    return plane
