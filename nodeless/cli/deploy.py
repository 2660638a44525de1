"""`nodeless deploy`: a file or a folder becomes functions; what changed is printed."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
from msgspec import Struct

from bus.cluster.connection import Cluster, open_cluster
from bus.cluster.errors import Invalid, NotFound
from bus.cluster.resources import FUNCTIONS
from bus.core.subjects import check_pattern, covers
from bus.functions.model import duration_s
from bus.jetstream.connection import open_connection
from bus.jetstream.objects import put_bundle
from nodeless.cli.errors import USAGE, CommandError
from nodeless.cli.target import Target
from nodeless.packaging.bundle import Bundle, bundle_of
from nodeless.packaging.handlers import Declared, DeployError, check_function_name
from nodeless.packaging.requirements import LOCK_NAME

FIELD_MANAGER = "nodeless-deploy"
SUBSCRIBED_WAIT_S = 15.0
EVERYTHING = "events.>"

# Argument of the decorator and the command line -> where it stands in the Function's spec.
_OPTIONS: Mapping[str, tuple[str, str]] = {
    "attempts": ("delivery", "attempts"),
    "timeout": ("delivery", "timeout"),
    "concurrency": ("scaling", "concurrency"),
    "min": ("scaling", "min"),
    "max": ("scaling", "max"),
    "idle": ("scaling", "idle"),
}


_DURATIONS = frozenset({"timeout", "idle"})


class Deployed(Struct, frozen=True, kw_only=True):
    """What became of one function; `-o json` prints it."""

    namespace: str
    name: str
    change: str
    """created, updated or unchanged."""
    handler: str
    bundle: str
    subjects: tuple[str, ...]
    changes: tuple[str, ...] = ()
    """One `field: old -> new` for each field of the spec that an update changed."""
    ready: bool = False
    """Whether the dispatcher has subscribed the function: events published from now on reach it."""
    message: str = ""


def function_object(
    declared: Declared,
    *,
    namespace: str,
    name: str,
    subjects: Sequence[str],
    bundle: str,
    options: Mapping[str, object],
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """Return the Function to apply. Raises `DeployError` and `InvalidPattern` for what can never work."""
    patterns = tuple(subjects) or declared.subjects
    if not patterns:
        raise DeployError(
            f"function {name!r} has no subject: expected a pattern such as events.orders.*; give it with --subject, or "
            "in the source with @function(subject=…)"
        )
    for pattern in patterns:
        check_pattern(pattern)
        if not covers(EVERYTHING, pattern):
            raise DeployError(
                f"the pattern {pattern!r} lies outside the stream: expected one below 'events.', as in 'events.{pattern}'"
            )
    unknown = sorted(set(declared.options) - set(_OPTIONS))
    if unknown:
        raise DeployError(
            f"@function({unknown[0]}=…) of {declared.handler} is not known; expected subject, name, {', '.join(_OPTIONS)}"
        )
    spec: dict[str, Any] = {
        "runtime": "python",
        "handler": declared.handler,
        "code": {"bundle": bundle},
        "triggers": [{"subject": pattern} for pattern in patterns],
    }
    for option, value in {**declared.options, **options}.items():
        section, field = _OPTIONS[option]
        _check_option(option, value)
        spec.setdefault(section, {})[field] = value
    if environment:
        spec["pod"] = {"env": [{"name": key, "value": value} for key, value in sorted(environment.items())]}
    return {
        "apiVersion": "nodeless.dev/v1alpha1",
        "kind": "Function",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def _check_option(option: str, value: object) -> None:
    """Raise `DeployError` for a value of another kind: the server's own words for that are hard to read."""
    if option not in _DURATIONS:
        if not isinstance(value, int) or isinstance(value, bool):
            raise DeployError(f"{option}={value!r}: expected a whole number")
        return
    try:
        duration_s(str(value))
    except ValueError as error:
        raise DeployError(f"{option}={value}: {error}") from error


def spec_changes(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return `field: old -> new` for every leaf in which two specs differ, in order of the field's name."""
    changes: list[str] = []
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            changes += spec_changes(old, new, f"{prefix}{key}.")
        elif old != new:
            changes.append(f"{prefix}{key}: {_short(old)} -> {_short(new)}")
    return changes


def _short(value: object) -> str:
    if value is None:
        return "unset"
    if isinstance(value, str):
        return value[:19] + "…" if value.startswith("sha256:") else value
    if isinstance(value, list):
        return "[" + ", ".join(_item(item) for item in value) + "]"
    return str(value)


def _item(item: object) -> str:
    match item:
        case {"subject": subject}:
            return str(subject)
        case {"name": name, "value": value}:
            return f"{name}={value}"
    return str(item)


def environment_of(given: Sequence[str]) -> dict[str, str]:
    """Return `KEY=VALUE` arguments as a mapping; the last of two with one key counts."""
    environment: dict[str, str] = {}
    for each in given:
        key, equals, value = each.partition("=")
        if not equals or not key:
            raise CommandError(f"--env {each!r} sets nothing: expected KEY=VALUE", USAGE)
        environment[key] = value
    return environment


def print_deployed(bundle: Bundle, deployed: Sequence[Deployed]) -> None:
    """Say what changed; what keeps a function from getting events goes to standard error."""
    if bundle.is_new_lock:
        print(f"requirements locked in {LOCK_NAME}, which belongs to the source: {', '.join(bundle.packages)}")
    for each in deployed:
        print(f"function {each.namespace}/{each.name} {each.change} ({each.handler}, {each.bundle[:19]}…)")
        for change in each.changes:
            print(f"  {change}")
        if each.ready:
            print(f"  subscribed to {', '.join(each.subjects)}")
        else:
            sys.stderr.write(f"  not subscribed: {each.message}\n")


async def deploy(
    target: Target,
    path: Path,
    *,
    handler: str | None,
    name: str | None,
    subjects: Sequence[str],
    options: Mapping[str, object],
    environment: Mapping[str, str],
) -> tuple[Bundle, list[Deployed]]:
    """Store the bundle of `path`, apply its functions, and wait until the dispatcher has subscribed them.

    Nothing is stored or applied unless every function of the path is valid.
    """
    bundle = await anyio.to_thread.run_sync(bundle_of, path, handler)
    if name is not None:
        check_function_name(name)
        if len(bundle.handlers) > 1:
            declared = ", ".join(f"{each.handler} ({each.name})" for each in bundle.handlers)
            raise DeployError(
                f"--name {name!r} fits one function, and {path} declares {declared}; choose one with --handler"
            )
    async with open_cluster(target.cluster) as cluster:
        namespace = target.namespace or cluster.namespace
        objects = [
            function_object(
                each,
                namespace=namespace,
                name=name or each.name,
                subjects=subjects,
                bundle=bundle.digest,
                options=options,
                environment=environment,
            )
            for each in bundle.handlers
        ]
        async with open_connection(target.bus) as connection:
            await put_bundle(connection, bundle.archive)
        deployed = [await _applied(cluster, each) for each in objects]
        with anyio.move_on_after(SUBSCRIBED_WAIT_S):
            deployed = [await _subscribed(cluster, each) for each in deployed]
    return bundle, deployed


async def _applied(cluster: Cluster, wanted: dict[str, Any]) -> Deployed:
    name, namespace = wanted["metadata"]["name"], wanted["metadata"]["namespace"]
    try:
        before: dict[str, Any] | None = await cluster.get(FUNCTIONS, name, namespace)
    except NotFound:
        before = None
    try:
        after = await cluster.apply(FUNCTIONS, wanted, field_manager=FIELD_MANAGER, namespace=namespace)
    except Invalid as error:
        reason = error.message.removeprefix(f'Function.nodeless.dev "{name}" is invalid: ')
        raise DeployError(f"function {name!r} is refused: {reason}") from error
    changes = spec_changes(before["spec"], after["spec"]) if before else []
    return Deployed(
        namespace=namespace,
        name=name,
        change="created" if before is None else "updated" if changes else "unchanged",
        handler=after["spec"]["handler"],
        bundle=after["spec"]["code"]["bundle"],
        subjects=tuple(trigger["subject"] for trigger in after["spec"]["triggers"]),
        changes=tuple(changes),
        message=f"no word from the dispatcher within {SUBSCRIBED_WAIT_S:.0f} s: is it well? (`nodeless status`)",
    )


async def _subscribed(cluster: Cluster, deployed: Deployed) -> Deployed:
    """Return when the dispatcher has settled what it thinks of the function's current generation."""
    while True:
        current = await cluster.get(FUNCTIONS, deployed.name, deployed.namespace)
        generation = current["metadata"]["generation"]
        for condition in current.get("status", {}).get("conditions", ()):
            if condition["type"] == "Subscribed" and condition.get("observedGeneration") == generation:
                is_ready = condition["status"] == "True"
                message = "" if is_ready else f"{condition['reason']}: {condition['message']}"
                return _replaced(deployed, ready=is_ready, message=message)
        await anyio.sleep(0.05)


def _replaced(deployed: Deployed, *, ready: bool, message: str) -> Deployed:
    return Deployed(
        **{
            field: getattr(deployed, field) for field in deployed.__struct_fields__ if field not in {"ready", "message"}
        },
        ready=ready,
        message=message,
    )
