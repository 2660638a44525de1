"""One loader for every program's settings: flags over environment over file over default.

A program's settings are one frozen `Struct`; this module finds each field's value, remembers where it came from,
converts it, and says clearly what is wrong. Reading the environment and the file is the caller's part.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from bus.core.errors import ConfigurationError

PREFIX = "NODELESS_"

T = TypeVar("T", bound=Struct)


def load(
    type_: type[T],
    *,
    flags: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
    file: Mapping[str, object] | None = None,
    prefix: str = PREFIX,
) -> T:
    """Return the settings. `flags` that are None count as not given; the environment's names are `prefix` and the field in capitals.

    Raises `ConfigurationError` for an unknown key of the file or the flags, a value that does not fit, and a required one that is missing.
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
