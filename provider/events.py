"""Kubernetes Events of the node: what each says, and how they get to the API without holding anybody up.

Reasons are a kubelet's where it has one, and a virtual kubelet's for missing inputs. The same note about the same object
is one Event with a count.
"""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Literal

import anyio
from msgspec import Struct

from bus.cluster.connection import Cluster
from bus.cluster.errors import AlreadyExists, ClusterError, NotFound
from bus.cluster.resources import EVENTS
from provider.core.support import Notice

log = logging.getLogger(__name__)

WAITING_MAX = 2000
"""Notes that wait to be written; more are dropped, and counted."""
KNOWN_MAX = 2000
"""Events of which the count is remembered."""
WRITERS = 4
CALM_S = 0.25
"""An Event is written this long after it happened: what it tells of, a start above all, has the machine first."""
MESSAGE_CHARACTERS_MAX = 1024
"""The API server's own bound."""
COMPONENT = "nodeless-node"


class Note(Struct, frozen=True, kw_only=True):
    """One thing to tell about one object."""

    subject: dict[str, str]
    """The object, as a reference."""
    reason: str
    message: str
    type: Literal["Normal", "Warning"] = "Normal"

    @property
    def key(self) -> str:
        parts = (self.subject["uid"], self.subject.get("fieldPath", ""), self.reason, self.message)
        return hashlib.sha256("\0".join(parts).encode(errors="replace")).hexdigest()[:16]


def started(pod: Mapping[str, Any], container: str) -> Note:
    return Note(subject=_pod(pod, container), reason="Started", message=f"Started container {container}")


def killing(pod: Mapping[str, Any], grace_s: float) -> Note:
    return Note(subject=_pod(pod), reason="Killing", message=f"Stopping the pod, with {grace_s:g} s to end by itself")


def back_off(pod: Mapping[str, Any], container: str) -> Note:
    metadata = pod["metadata"]
    who = f"{metadata['name']}_{metadata['namespace']}({metadata['uid']})"
    message = f"Back-off restarting failed container {container} in pod {who}"
    return Note(subject=_pod(pod, container), reason="BackOff", message=message, type="Warning")


def refused(pod: Mapping[str, Any], reason: str, message: str) -> Note:
    """The pod can never run here."""
    return Note(subject=_pod(pod), reason=reason, message=message, type="Warning")


def ephemeral_container(pod: Mapping[str, Any], container: str) -> Note:
    message = f"ephemeral container {container!r} is not started: this node cannot add a container to a pod that runs"
    return Note(subject=_pod(pod), reason="Unsupported", message=message, type="Warning")


def not_now(pod: Mapping[str, Any], message: str) -> Note:
    """The backend cannot start the pod at the moment."""
    return Note(subject=_pod(pod), reason="FailedCreatePodSandBox", message=message, type="Warning")


def input_missing(pod: Mapping[str, Any], reason: str, message: str) -> Note:
    """Something that the pod's environment refers to is not there."""
    return Note(subject=_pod(pod), reason=reason, message=f"Error: {message}", type="Warning")


def optional_absent(pod: Mapping[str, Any], kind: str, name: str) -> Note:
    message = f"optional {kind} {name!r} not found, and left out"
    return Note(subject=_pod(pod), reason=f"Optional{kind}NotFound", message=message, type="Warning")


def noticed(pod: Mapping[str, Any], notice: Notice) -> Note:
    return Note(subject=_pod(pod), reason=notice.reason, message=notice.message, type="Warning")


def lost(pod: Mapping[str, Any], container: str) -> Note:
    message = f"Container {container} ran before the node was restarted, and is gone"
    return Note(subject=_pod(pod, container), reason="ContainerLost", message=message, type="Warning")


def node_registered(name: str) -> Note:
    subject = {"apiVersion": "v1", "kind": "Node", "name": name, "namespace": "default", "uid": name}
    return Note(subject=subject, reason="Starting", message="Starting the virtual node")


def _pod(pod: Mapping[str, Any], container: str = "") -> dict[str, str]:
    metadata = pod["metadata"]
    subject = {"apiVersion": "v1", "kind": "Pod"} | {key: metadata[key] for key in ("name", "namespace", "uid")}
    if container:
        subject["fieldPath"] = f"spec.containers{{{container}}}"
    return subject


class Recorder:
    """Use `open_recorder`."""

    def __init__(self, cluster: Cluster, node: str) -> None:
        self._cluster, self._node = cluster, node
        self._known: OrderedDict[str, int] = OrderedDict()
        self._send, self._receive = anyio.create_memory_object_stream[tuple[float, Note]](WAITING_MAX)
        self.dropped = 0

    def tell(self, note: Note) -> None:
        """Have `note` written when there is time. Never waits."""
        try:
            self._send.send_nowait((anyio.current_time() + CALM_S, note))
        except anyio.WouldBlock:
            self.dropped += 1
            log.warning("event dropped: too many wait", extra={"reason": note.reason, "dropped": self.dropped})

    async def _run(self) -> None:
        async for due_s, note in self._receive:
            await anyio.sleep_until(due_s)
            try:
                await self._write(note)
            except ClusterError as error:
                # An Event is told once: the state that it speaks of is in the status as well.
                log.info("event not written: %s", error, extra={"reason": note.reason})
            except Exception:
                log.exception("event not written", extra={"reason": note.reason})

    async def _write(self, note: Note) -> None:
        name = f"{note.subject['name']}.{note.key}"
        namespace = note.subject["namespace"]
        count = self._known.pop(name, 0) + 1
        self._known[name] = count
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        again = {"count": count, "lastTimestamp": now}
        if count > 1:
            try:
                await self._cluster.patch(EVENTS, name, again, namespace)
                return
            except NotFound:
                pass  # Events live for an hour.
        try:
            await self._cluster.create(EVENTS, self._event(note, name, now), namespace)
        except AlreadyExists:  # of an earlier life of this program
            await self._cluster.patch(EVENTS, name, again, namespace)

    def _event(self, note: Note, name: str, now: str) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": note.subject["namespace"]},
            "involvedObject": {
                key: value for key, value in note.subject.items() if key != "namespace" or note.subject["kind"] == "Pod"
            },
            "type": note.type,
            "reason": note.reason,
            "message": note.message[:MESSAGE_CHARACTERS_MAX],
            "source": {"component": COMPONENT, "host": self._node},
            "reportingComponent": COMPONENT,
            "reportingInstance": self._node,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }


@asynccontextmanager
async def open_recorder(cluster: Cluster, node: str) -> AsyncIterator[Recorder]:
    """Own the writing of Events; what still waits at the end is dropped."""
    recorder = Recorder(cluster, node)
    with recorder._send, recorder._receive:
        async with anyio.create_task_group() as group:
            for _ in range(WRITERS):
                group.start_soon(recorder._run)
            try:
                yield recorder
            finally:
                group.cancel_scope.cancel()
