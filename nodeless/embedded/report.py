"""What a starting system tells whoever waits for it: one JSON document a line, or one line of text."""

import msgspec
from msgspec import Struct

from nodeless.embedded.home import Endpoints, SystemState
from nodeless.embedded.supervisor import ProgramState, restart_delay_s

NAME_WIDTH = 24


class Progress(Struct, frozen=True, tag="progress"):
    program: ProgramState


class Up(Struct, frozen=True, tag="up"):
    """Every program is ready."""

    state: SystemState


class Failed(Struct, frozen=True, tag="failed"):
    """It will not get ready; everything is being stopped."""

    message: str


Report = Progress | Up | Failed

_decoder: msgspec.json.Decoder[Report] = msgspec.json.Decoder(Report)


def encoded(report: Report) -> bytes:
    return msgspec.json.encode(report) + b"\n"


def decoded(line: bytes) -> Report:
    return _decoder.decode(line)


def progress_line(program: ProgramState) -> str | None:
    """Return what a person wants to know of a change of state; None where nothing."""
    match program.state:
        case "ready" | "done":
            return f"  {program.name:<{NAME_WIDTH}} {program.state:<6} {program.start_s or 0.0:6.2f} s"
        case "backing off":
            wait_s = restart_delay_s(program.failures)
            return f"  {program.name:<{NAME_WIDTH}} {program.last_end}; starting again in {wait_s:g} s"
        case _:
            return None


def summary(endpoints: Endpoints, took_s: float | None) -> str:
    """Return how to use what runs."""
    ready = "The system is ready." if took_s is None else f"Ready in {took_s:.1f} s."
    context = f" (context {endpoints.context})" if endpoints.context else ""
    return (
        f"{ready}\n"
        f"  kubeconfig  {endpoints.kubeconfig}{context}\n"
        f"  NATS        {endpoints.nats_url}\n"
        f"  gateway     {endpoints.gateway_url} (bearer token in {endpoints.gateway_token_file})\n"
        f"Next: `nodeless deploy PATH`, or `export KUBECONFIG={endpoints.kubeconfig}` and kubectl."
    )
