"""Options of `kubectl logs` as they arrive at a kubelet. Source: pkg/kubelet/server, PodLogOptions of core/v1."""

from collections.abc import Iterable

from provider.backends.seam import LogQuery
from provider.core.logs import nanoseconds_of, time_of


class BadQuery(Exception):
    """`status` 400: not readable; 422: readable, and not allowed."""

    def __init__(self, status: int, message: str) -> None:
        self.status, self.message = status, message
        super().__init__(message)


def log_query(pairs: Iterable[tuple[str, str]], *, now_ns: int) -> LogQuery:
    """Return the checked options; raise `BadQuery`. `now_ns`: nanoseconds since 1970. Unknown options are left alone."""
    options = {name: value for name, value in pairs if value or name in {"follow", "previous", "timestamps"}}
    if options.get("stream", "All") != "All":
        raise BadQuery(422, f"stream: {options['stream']!r} cannot be had alone on this node; supported: All")
    since_s, since_time = _number(options, "sinceSeconds"), options.get("sinceTime", "")
    if since_s is not None and since_time:
        raise BadQuery(422, "at most one of sinceTime or sinceSeconds may be specified")
    if since_s is not None:
        if since_s < 1:
            raise BadQuery(422, f"sinceSeconds: {since_s} must be greater than 0")
        since_time = time_of(now_ns - since_s * 1_000_000_000)
    elif since_time:
        try:
            nanoseconds_of(since_time)
        except ValueError as error:
            raise BadQuery(400, f"sinceTime: {error}") from error
    if options.get("tail") == "all":  # an old client
        del options["tail"]
    tail_lines = _number(options, "tailLines" if "tailLines" in options else "tail")
    if tail_lines is not None and tail_lines < 0:
        raise BadQuery(422, f"tailLines: {tail_lines} must be greater than or equal to 0")
    limit_bytes = _number(options, "limitBytes")
    if limit_bytes is not None and limit_bytes < 1:
        raise BadQuery(422, f"limitBytes: {limit_bytes} must be greater than 0")
    return LogQuery(
        follow=_flag(options, "follow"),
        previous=_flag(options, "previous"),
        timestamps=_flag(options, "timestamps"),
        tail_lines=tail_lines,
        since_time=since_time,
        limit_bytes=limit_bytes,
    )


def _number(options: dict[str, str], name: str) -> int | None:
    text = options.get(name)
    if text is None:
        return None
    try:
        number = int(text)
    except ValueError as error:
        raise BadQuery(400, f"{name}: {text!r} is not a whole number") from error
    if abs(number) >= 2**63:
        raise BadQuery(400, f"{name}: {text!r} is out of range")
    return number


def _flag(options: dict[str, str], name: str) -> bool:
    """An option that is there is on, unless it says otherwise, as Go's conversion has it."""
    return name in options and options[name].lower() not in {"0", "false"}
