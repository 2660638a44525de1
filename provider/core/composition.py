"""From a pod of the API to the launch that a backend understands."""

import math
from collections.abc import Mapping
from typing import Any

from provider.core.environment import expanded
from provider.core.launch import ContainerLaunch, PodLaunch
from provider.core.quantity import parse_quantity

GRACE_S = 30.0
"""Kubernetes' own default."""


def grace_s_of(pod: Mapping[str, Any]) -> float:
    """Return the time that the pod has between SIGTERM and SIGKILL: as its deletion says, else as it does itself."""
    asked = pod["metadata"].get("deletionGracePeriodSeconds")
    if asked is None:
        asked = pod["spec"].get("terminationGracePeriodSeconds", GRACE_S)
    return float(asked)


def launch_of(
    pod: Mapping[str, Any], environments: Mapping[str, Mapping[str, str]], restarts: Mapping[str, int]
) -> PodLaunch:
    """Return the launch of those containers that are in `restarts`, each with the number of its run."""
    metadata, spec = pod["metadata"], pod["spec"]
    return PodLaunch(
        uid=metadata["uid"],
        namespace=metadata["namespace"],
        name=metadata["name"],
        containers=tuple(
            _container_launch(each, environments.get(each["name"], {}), restarts[each["name"]])
            for each in spec["containers"]
            if each["name"] in restarts
        ),
    )


def _container_launch(container: Mapping[str, Any], environment: Mapping[str, str], restart: int) -> ContainerLaunch:
    memory = ((container.get("resources") or {}).get("limits") or {}).get("memory")
    return ContainerLaunch(
        name=container["name"],
        image=container.get("image", ""),
        command=tuple(expanded(each, environment) for each in container.get("command") or ()),
        args=tuple(expanded(each, environment) for each in container.get("args") or ()),
        working_directory=container.get("workingDir") or "",
        environment=dict(environment),
        memory_bytes_max=None if memory is None else math.ceil(parse_quantity(str(memory))),
        restart=restart,
    )
