"""One loader for every program's settings: flags over environment over file over default.

A program's settings are one frozen `Struct`; this module finds each field's value, remembers where it came from,
converts it, and says clearly what is wrong. Reading the environment and the file is the caller's part.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from bus.core.errors import ConfigurationError

PREFIX = "NODELESS_"

T = TypeVar("T", bound=Struct)


def flags_of(type_: type[Struct], arguments: Sequence[str]) -> dict[str, object]:
    """Return the settings in a command line of `--field-name value` and `--field-name=value`; `-` stands for `_`.

    A flag may stand alone for a boolean that is to be true. Raises `ConfigurationError` for anything else.
    """
    fields = {field.name: field for field in msgspec.structs.fields(type_)}
    known = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(fields))
    flags: dict[str, object] = {}
    pending = list(arguments)
    while pending:
        argument = pending.pop(0)
        name, equals, value = argument.removeprefix("--").partition("=")
        key = name.replace("-", "_")
        if not argument.startswith("--") or key not in fields:
            raise ConfigurationError(argument, None, "command line", f"no such flag; expected one of {known}")
        if equals:
            flags[key] = value
        elif fields[key].type is bool:
            flags[key] = True
        elif pending:
            flags[key] = pending.pop(0)
        else:
            raise ConfigurationError(argument, None, "command line", "a value has to follow")
    return flags


def usage_of(type_: type[Struct], command: str, purpose: str, *, prefix: str = PREFIX) -> str:
    """Return what a program's `--help` prints: how it is called, what for, and each setting with its default."""
    lines = [
        f"usage: {command} [--SETTING VALUE …]",
        "",
        purpose,
        "Each setting is a flag, or a variable of the environment:",
        "",
    ]
    fields = msgspec.structs.fields(type_)
    width = max(len(field.name) for field in fields)
    for field in fields:
        default = "required" if field.required else f"default {field.default!r}"
        flag, variable = field.name.replace("_", "-"), f"{prefix}{field.name.upper()}"
        lines.append(f"  --{flag:<{width}}  {variable:<{len(prefix) + width}}  {default}")
    return "\n".join(lines) + "\n"


def load(
    type_: type[T],
    *,
    flags: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
    file: Mapping[str, object] | None = None,
    prefix: str = PREFIX,
) -> T:
    """Return the settings. `flags` that are None count as not given; the environment's names are `prefix` and the
    field in capitals.

    Raises `ConfigurationError` for an unknown key of the file or the flags, a value that does not fit, and a
    required one that is missing.
    """
    fields = {field.name: field for field in msgspec.structs.fields(type_)}
    values: dict[str, object] = {}
    sources: dict[str, str] = {}
    for source, given in (
        ("file", file or {}),
        ("environment", _named(fields, environment or {}, prefix)),
        ("flag", flags or {}),
    ):
        for key, value in given.items():
            if key not in fields:
                raise ConfigurationError(
                    key, value, source, f"no such setting; expected one of {', '.join(sorted(fields))}"
                )
            if value is not None:
                values[key] = value
                sources[key] = f"{prefix}{key.upper()}" if source == "environment" else source
    converted: dict[str, Any] = {}
    for key, value in values.items():
        converted[key] = _converted(key, value, fields[key].type, sources[key])
    for key, field in fields.items():
        if key not in converted and field.required:
            raise ConfigurationError(key, None, "not given", f"set it in {prefix}{key.upper()} or by its flag")
    try:
        return type_(**converted)
    except (ValueError, TypeError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(type_.__name__, converted, "all together", str(error)) from error


def _named(fields: Mapping[str, object], environment: Mapping[str, str], prefix: str) -> dict[str, object]:
    """Return the environment's values for these fields; other variables are other programs' business."""
    return {
        key: environment[prefix + key.upper()]
        for key in fields
        if environment.get(prefix + key.upper()) not in {None, ""}
    }


def _converted(key: str, value: object, type_: Any, source: str) -> object:
    try:
        # Text from the environment and from flags stands for numbers and booleans too.
        return msgspec.convert(value, type_, strict=not isinstance(value, str))
    except msgspec.ValidationError as error:
        raise ConfigurationError(key, value, source, str(error)) from error
