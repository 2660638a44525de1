"""The Function resource as a Kubernetes user meets it: applied, scaled, listed and refused with the real kubectl."""

import json
import subprocess
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from msgspec import Struct
from msgspec.structs import fields as fields_of

from bus.cluster.connection import Cluster
from bus.cluster.errors import Invalid
from bus.cluster.resources import FUNCTIONS
from bus.functions.model import Spec, check_function, function_of
from bus.functions.status import Observed, status_of
from nodeless.embedded.controlplane.launch import ControlPlane

pytestmark = pytest.mark.integration

BUNDLE = "sha256:" + "0123456789abcdef" * 4


def function(name: str = "on-push", **spec: Any) -> dict[str, Any]:
    whole = {
        "handler": "app:on_push",
        "code": {"bundle": BUNDLE},
        "triggers": [{"subject": "events.git.push.>"}],
        **spec,
    }
    return {"apiVersion": "nodeless.dev/v1alpha1", "kind": "Function", "metadata": {"name": name}, "spec": whole}


def kubectl(plane: ControlPlane, namespace: str, *arguments: str, given: object = None) -> str:
    done = subprocess.run(
        ["kubectl", "--kubeconfig", plane.kubeconfig, "--namespace", namespace, *arguments],
        input=yaml.safe_dump(given) if given is not None else None, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


async def create(cluster: Cluster, namespace: str, **spec: Any) -> dict[str, Any]:
    return await cluster.create(FUNCTIONS, function(**spec), namespace)


async def test_applying_twice_changes_nothing(installed: ControlPlane, cluster: Cluster, namespace: str) -> None:
    kubectl(installed, namespace, "apply", "--server-side", "-f", "-", given=function())
    before = await cluster.get(FUNCTIONS, "on-push", namespace)

    kubectl(installed, namespace, "apply", "--server-side", "-f", "-", given=function())

    after = await cluster.get(FUNCTIONS, "on-push", namespace)
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    assert after["metadata"]["generation"] == 1


async def test_the_schema_fills_in_what_the_model_takes_for_granted(
    installed: ControlPlane, cluster: Cluster, namespace: str
) -> None:
    stored = await create(cluster, namespace)

    with_defaults = function_of(stored)
    bare = function_of({"metadata": stored["metadata"], "spec": function()["spec"]})
    check_function(with_defaults)
    assert with_defaults.spec == bare.spec


async def test_the_schema_has_no_field_that_is_not_read_and_lacks_none(installed: ControlPlane) -> None:
    document = yaml.safe_load((Path(__file__).parents[2] / "manifests/crd/functions.yaml").read_text())
    schema = document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]

    model = nested(Spec)
    model["pod"]["resources"] = {"limits": {}, "requests": {}}  # Kubernetes' own type, passed on to the pod as it is
    assert fields(schema["spec"]) == model
    status = status_of(Observed(name="f", generation=1, version="v", settled_to=0), (), "2026-01-01T00:00:00Z")
    assert set(schema["status"]["properties"]) == set(status)


def fields(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the names in a schema, nested; the items of a list stand for the list."""
    properties = schema.get("properties") or schema.get("items", {}).get("properties") or {}
    return {name: fields(each) for name, each in sorted(properties.items())}


def nested(type_: Any) -> dict[str, Any]:
    """Return the names in a struct, nested; whatever holds it stands for it."""
    for candidate in (type_, *typing.get_args(type_)):
        if isinstance(candidate, type) and issubclass(candidate, Struct):
            return {each.encode_name: nested(each.type) for each in fields_of(candidate)}
    return {}


async def test_kubectl_scale_sets_the_floor(installed: ControlPlane, cluster: Cluster, namespace: str) -> None:
    await create(cluster, namespace)

    kubectl(installed, namespace, "scale", "function", "on-push", "--replicas=2")

    assert (await cluster.get(FUNCTIONS, "on-push", namespace))["spec"]["scaling"]["min"] == 2
    scale = await cluster.call("GET", FUNCTIONS.path(namespace, "on-push", "scale"))
    assert scale["spec"]["replicas"] == 2


async def test_a_list_shows_what_there_is_to_know(installed: ControlPlane, cluster: Cluster, namespace: str) -> None:
    await create(cluster, namespace)
    seen = Observed(
        name="on-push",
        generation=1,
        version="0123456789",
        subscription_fault=None,
        workers=2,
        pending=30,
        in_flight=4,
        dead=1,
    )
    status = {"status": status_of(seen, (), "2026-01-01T00:00:00Z")}
    await cluster.patch(FUNCTIONS, "on-push", status, namespace, subresource="status")

    header, row = kubectl(installed, namespace, "get", "fn").splitlines()
    wide = kubectl(installed, namespace, "get", "nodeless", "-o", "wide").splitlines()[1]

    assert header.split() == ["NAME", "READY", "SUBJECTS", "WORKERS", "PENDING", "INFLIGHT", "DEAD", "AGE"]
    assert row.split()[:7] == ["on-push", "True", "events.git.push.>", "2", "30", "4", "1"]
    assert {"0123456789", "Starting"} <= set(wide.split())
    scale = json.loads(kubectl(installed, namespace, "get", "--raw", FUNCTIONS.path(namespace, "on-push", "scale")))
    assert scale["status"] == {"replicas": 2, "selector": "nodeless.dev/function=on-push"}


REFUSED = [
    ({"scaling": {"min": 3, "max": 2}}, "min must not be above max"),
    ({"scaling": {"max": 0}}, "should be greater than or equal to 1"),
    ({"scaling": {"idle": "soon"}}, "spec.scaling.idle"),
    ({"scaling": {"idle": ""}}, "spec.scaling.idle"),
    ({"delivery": {"attempts": 0}}, "should be greater than or equal to 1"),
    ({"delivery": {"timeout": "0s"}}, "must be a duration above zero such as 30s"),
    ({"delivery": {"backoff": {"initial": ""}}}, "spec.delivery.backoff.initial"),
    ({"handler": "app"}, "spec.handler"),
    ({"code": {"bundle": "latest"}}, "spec.code.bundle"),
    ({"code": {}}, "spec.code.bundle: Required value"),
    ({"runtime": "wasm"}, 'supported values: "python"'),
    ({"triggers": []}, "spec.triggers"),
    ({"triggers": [{"subject": "orders.>"}]}, "must lie below 'events.', such as events.orders.*"),
    ({"triggers": [{"subject": "events"}]}, "must lie below 'events.', such as events.orders.*"),
    ({"triggers": [{"subject": "events..a"}]}, "tokens joined by single dots"),
    ({"triggers": [{"subject": "events.a b"}]}, "tokens joined by single dots"),
    ({"triggers": [{"subject": "events.a*"}]}, "'*' and '>' stand for whole tokens"),
    ({"triggers": [{"subject": "events.>.a"}]}, "'>' only for the last"),
    ({"triggers": [{"subject": "events.a"}, {"subject": "events.a"}]}, "Duplicate value"),
    ({"pod": {"env": [{"name": "NODELESS_ASSIGNMENT"}]}}, "names that begin with NODELESS_ are the worker's own"),
    ({"name": "a.b"}, "metadata.name must be a DNS label of at most 52 characters"),
    ({"name": "a" * 53}, "metadata.name must be a DNS label of at most 52 characters"),
]


@pytest.mark.parametrize(("spec", "message"), REFUSED, ids=[message for _, message in REFUSED])
async def test_what_cannot_work_is_refused_with_its_reason(
    installed: ControlPlane, cluster: Cluster, namespace: str, spec: dict[str, Any], message: str
) -> None:
    with pytest.raises(Invalid) as refused:
        await create(cluster, namespace, **spec)

    assert message in str(refused.value)


async def test_patterns_with_wildcards_are_taken(installed: ControlPlane, cluster: Cluster, namespace: str) -> None:
    subjects = ["events.>", "events.*", "events.a.*.c", "events.*.b.>", "events.ü%2E-_"]
    stored = await create(cluster, namespace, triggers=[{"subject": subject} for subject in subjects])

    check_function(function_of(stored))
