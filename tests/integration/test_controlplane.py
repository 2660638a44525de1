"""The embedded control plane as its users meet it: who may do what, and what runs."""

import subprocess

import pytest

from bus.cluster.connection import Cluster, ClusterConfig, open_cluster
from bus.cluster.errors import Forbidden
from bus.cluster.resources import DEPLOYMENTS, FUNCTIONS, PODS
from nodeless.embedded.controlplane.launch import ControlPlane

pytestmark = pytest.mark.integration


async def test_the_version_can_be_parsed_by_clients(cluster: Cluster) -> None:
    version = await cluster.version()

    assert version["major"] == "1"
    assert int(version["minor"]) >= 32
    assert version["gitVersion"].startswith(f"v1.{version['minor']}.")


async def test_kubectl_works_with_the_administrators_kubeconfig(plane: ControlPlane) -> None:
    done = subprocess.run(
        ["kubectl", "--kubeconfig", plane.kubeconfig, "get", "namespaces", "-o", "name"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert "namespace/kube-system" in done.stdout.split()


async def test_workload_controllers_make_pods_of_a_deployment(cluster: Cluster, namespace: str) -> None:
    import anyio

    labels = {"app": "web"}
    container = {"name": "web", "image": "nodeless/host", "command": ["sleep", "60"]}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    spec = {"replicas": 2, "selector": {"matchLabels": labels}, "template": template}
    await cluster.create(
        DEPLOYMENTS,
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec},
        namespace,
    )
    with anyio.fail_after(30):
        while len((await cluster.list(PODS, namespace))["items"]) < 2:
            await anyio.sleep(0.05)


async def test_the_dispatchers_identity_may_do_its_work_and_no_more(
    installed: ControlPlane, namespace: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("identity") / "kubeconfig"
    installed.issue_kubeconfig(path, "system:serviceaccount:nodeless-system:dispatcher")
    async with open_cluster(ClusterConfig(kubeconfig=str(path))) as dispatcher:
        await dispatcher.list(FUNCTIONS)  # of all namespaces; other tests may have some
        assert (await dispatcher.list(FUNCTIONS, namespace))["items"] == []
        assert (await dispatcher.list(PODS, namespace))["items"] == []
        for path_ in (f"/api/v1/namespaces/{namespace}/secrets", "/api/v1/nodes", "/apis/apps/v1/deployments"):
            with pytest.raises(Forbidden):
                await dispatcher.call("GET", path_)
