"""Who may do what on the broker: one user per program, one per function, as claims of NATS' decentralised
authentication.

Claims are plain values here; they are signed in `bus.jetstream.credentials`. Rights are stated as what is allowed;
nothing else is. Source of the claims' form: NATS JWT version 2 (nats-io/jwt, ADR-14).
"""

import base64
import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec import Struct

from bus.core.assignment import Assignment
from bus.core.topology import ATTEMPTS, BUNDLES_BUCKET, BUNDLES_STREAM, DEAD, EVENTS, RESULTS

Program = Literal["gateway", "dispatcher", "git", "cli"]
PROGRAMS: tuple[Program, ...] = ("gateway", "dispatcher", "git", "cli")

BRIDGED = ("events.git.>", "events.k8s.>")
"""What only a bridge may publish: whoever reads such an event may trust where it came from."""


class Permissions(Struct, frozen=True, kw_only=True):
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    publish_denied: tuple[str, ...] = ()


def inbox_prefix(name: str) -> str:
    """Return where the user of that name takes replies; nobody else may listen there."""
    return f"_INBOX_{name}"


def program_permissions(program: Program) -> Permissions:
    inbox = f"{inbox_prefix(program)}.>"
    match program:
        case "gateway":
            return Permissions(publish=("events.>",), publish_denied=BRIDGED, subscribe=(inbox,))
        case "git":
            # Reading back its own subjects tells whether an event whose acknowledgement was lost is stored.
            return Permissions(
                publish=("events.git.>", f"$JS.API.DIRECT.GET.{EVENTS}.events.git.>"), subscribe=(inbox,)
            )
        case "cli":
            readable = (EVENTS, RESULTS, ATTEMPTS, DEAD, BUNDLES_STREAM)
            return Permissions(
                publish=(
                    "events.>",
                    f"$O.{BUNDLES_BUCKET}.>",
                    "$JS.API.INFO",
                    "$JS.API.STREAM.INFO.*",
                    "$JS.API.CONSUMER.INFO.*.*",
                    "$JS.API.DIRECT.GET.>",
                    *(f"$JS.API.CONSUMER.CREATE.{stream}.*.>" for stream in readable),
                    *(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.*" for stream in readable),
                ),
                publish_denied=BRIDGED,
                subscribe=(inbox, "reports.>", "wake.>"),
            )
        case "dispatcher":
            return Permissions(
                publish=(
                    "$JS.API.STREAM.INFO.*",
                    "$JS.API.STREAM.CREATE.*",
                    "$JS.API.STREAM.UPDATE.*",
                    f"$JS.API.CONSUMER.INFO.{EVENTS}.*",
                    f"$JS.API.CONSUMER.CREATE.{EVENTS}.>",
                    f"$JS.API.CONSUMER.DELETE.{EVENTS}.*",
                    f"$JS.API.CONSUMER.CREATE.{ATTEMPTS}.*.>",
                    f"$JS.API.CONSUMER.MSG.NEXT.{ATTEMPTS}.*",
                    "control.>",
                ),
                subscribe=(inbox, "wake.>", "reports.>"),
            )


def worker_permissions(assignment: Assignment) -> Permissions:
    """Return what the workers of one function may do: their own consumer, outputs and code, and nothing else."""
    name = f"{assignment.namespace}.{assignment.function}"
    own = f"{assignment.stream}.{assignment.consumer}"
    return Permissions(
        publish=(
            f"$JS.API.CONSUMER.MSG.NEXT.{own}",
            # Acknowledgements: the form without and with domain and account (nats-server 2.14, `js_ack_fc_v2`). The number
            # of tokens tells them apart: with a bare `>`, the second would name other consumers in the first form too,
            # and `+NXT` on such a subject takes their events.
            f"$JS.ACK.{own}.*.*.*.*.*",
            f"$JS.ACK.*.*.{own}.*.*.*.*.>",
            f"results.{name}.*",
            f"attempts.{name}.>",
            f"dead.{name}",
            f"reports.{name}.*",
            f"$JS.API.DIRECT.GET.{ATTEMPTS}.attempts.{name}.>",
            *bundle_rights(assignment.bundle),
        ),
        subscribe=(f"{assignment.inbox_prefix}.>", f"control.{name}.*"),
    )


def bundle_rights(digest: str) -> tuple[str, ...]:
    """Return the subjects that reading the one bundle takes (see `bus.jetstream.objects`)."""
    return (
        f"$JS.API.DIRECT.GET.{BUNDLES_STREAM}.{bundle_meta_subject(digest)}",
        f"$JS.API.CONSUMER.CREATE.{BUNDLES_STREAM}.*.{bundle_chunk_subject(digest)}",
        # The name of such a consumer is drawn at random from 128 bits, and this user cannot list them.
        f"$JS.API.CONSUMER.MSG.NEXT.{BUNDLES_STREAM}.*",
    )


def bundle_meta_subject(digest: str) -> str:
    """Return the subject of the object's description. Source: NATS object store, ADR-20."""
    return f"$O.{BUNDLES_BUCKET}.M.{base64.urlsafe_b64encode(digest.encode()).decode()}"


def bundle_chunk_subject(digest: str) -> str:
    """Return the subject of the object's data: the digest stands where other writers put a random id."""
    return f"$O.{BUNDLES_BUCKET}.C.{digest.removeprefix('sha256:')}"


def operator_claims(*, key: str, name: str, system_account: str, now_s: int) -> dict[str, Any]:
    return _claims(key, key, name, now_s, {"type": "operator", "version": 2, "system_account": system_account})


def account_claims(*, issuer: str, key: str, name: str, has_jetstream: bool, now_s: int) -> dict[str, Any]:
    unlimited = -1 if has_jetstream else 0
    limits = {
        **dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1),
        "wildcards": True,
        **dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), unlimited),
    }
    nats = {"type": "account", "version": 2, "limits": limits, "default_permissions": {"pub": {}, "sub": {}}}
    return _claims(issuer, key, name, now_s, nats)


def user_claims(*, issuer: str, key: str, name: str, permissions: Permissions, now_s: int) -> dict[str, Any]:
    nats = {
        "type": "user",
        "version": 2,
        "pub": {"allow": list(permissions.publish), "deny": list(permissions.publish_denied)},
        "sub": {"allow": list(permissions.subscribe)},
        "subs": -1,
        "data": -1,
        "payload": -1,
    }
    return _claims(issuer, key, name, now_s, nats)


def _claims(issuer: str, subject: str, name: str, now_s: int, nats: Mapping[str, Any]) -> dict[str, Any]:
    claims: dict[str, Any] = {"iat": now_s, "iss": issuer, "name": name, "sub": subject, "nats": dict(nats), "jti": ""}
    digest = hashlib.new("sha512_256", msgspec.json.encode(claims)).digest()
    return claims | {"jti": base64.b32encode(digest).decode().rstrip("=")}


def signing_input(claims: Mapping[str, Any]) -> str:
    """Return header and claims of a token, as they are signed. Source: RFC 7515, with the algorithm of NATS."""
    header = {"typ": "JWT", "alg": "ed25519-nkey"}
    return f"{base64url(msgspec.json.encode(header))}.{base64url(msgspec.json.encode(claims))}"


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
