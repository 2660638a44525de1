"""The gateway as a program, in front of a real broker: what each caller is told, and what is stored."""

import asyncio
import base64
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bus.core.event import Event, event_of
from bus.ingress.gateway.server import listen, url_of
from bus.jetstream.connection import open_connection
from bus.jetstream.reading import read
from tests.broker import Broker, free_port, running_broker

pytestmark = pytest.mark.integration

WAIT_S = 20.0
TOKEN = "s3cret"
BEARER = {"authorization": f"Bearer {TOKEN}"}
STRUCTURED = {"content-type": "application/cloudevents+json"}


class Program:
    """One gateway process."""

    def __init__(self, broker: Broker, directory: Path, **settings: object) -> None:
        self.broker = broker
        token = directory / "token"
        token.write_text(f"{TOKEN}\n")
        given = {
            "nats_url": broker.url, "nats_credentials": broker.credential_files()["gateway"], "port": 0, "token_file": token,
        } | settings  # fmt: skip
        self._flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
        self._log = directory / "gateway.log"
        self.url = ""
        self.process: asyncio.subprocess.Process

    async def start(self) -> "Program":
        with self._log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "bus.ingress.gateway", *self._flags, stdout=subprocess.PIPE, stderr=log
            )
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), WAIT_S)
        self.url = line.decode().strip()
        assert self.url.startswith("http://127.0.0.1:"), self.log()
        return self

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def log(self) -> str:
        return self._log.read_text()

    def client(self, **options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, headers=BEARER, timeout=WAIT_S, trust_env=False, **options)

    def peak_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> int:
        if self.process.returncode is None:
            self.process.terminate()
        return await asyncio.wait_for(self.process.wait(), WAIT_S)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    async with running_broker(tmp_path / "nats") as running:
        yield running


@pytest.fixture
async def program(tmp_path: Path, broker: Broker) -> AsyncIterator[Program]:
    program = await Program(broker, tmp_path).start()
    try:
        yield program
    finally:
        await program.stop()


@pytest.fixture
async def client(program: Program) -> AsyncIterator[httpx.AsyncClient]:
    async with program.client() as client:
        yield client


@pytest.fixture(scope="module")
async def refusing(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Program]:
    """Shared by the tests in which nothing is ever stored."""
    async with running_broker(tmp_path_factory.mktemp("nats")) as broker:
        program = await Program(broker, tmp_path_factory.mktemp("gateway")).start()
        try:
            yield program
        finally:
            await program.stop()


@pytest.fixture
async def refused(refusing: Program) -> AsyncIterator[httpx.AsyncClient]:
    """A client all of whose requests have to be refused."""
    async with refusing.client() as client:
        yield client
    assert await stored(refusing.broker) == []


def binary(id_: str = "1", **attributes: str) -> dict[str, str]:
    """Return the headers of an event in binary mode; an attribute that is empty is left out."""
    all_ = {"id": id_, "source": "tests", "specversion": "1.0", "type": "orders.created"} | attributes
    return {f"ce-{name}": value for name, value in all_.items() if value}


async def stored(broker: Broker) -> list[Event]:
    async with open_connection(broker.config("admin")) as connection:
        return [
            event_of(
                message.subject,
                message.headers,
                message.data,
                stream="EVENTS",
                sequence=message.sequence,
                stored_at=message.stored_at,
            )
            async for message in read(connection, "EVENTS", "events.>")
        ]


async def test_an_event_in_binary_mode_is_stored_as_it_came(client: httpx.AsyncClient, broker: Broker) -> None:
    headers = binary(
        "a%20b", type="com.example.order", subject="%C3%BC",
        time="2026-01-31T12:00:00+01:00", traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ) | {"content-type": "application/xml"}  # fmt: skip

    answer = await client.post("/", headers=headers, content=b"\0<x/>\xff")

    assert answer.status_code == 202
    assert answer.json() == {"stream": "EVENTS", "sequence": 1, "id": "a b", "duplicate": False}
    assert await stored(broker) == [
        Event(
            subject="events.com.example.order",
            id="a b",
            source="tests",
            type="com.example.order",
            time="2026-01-31T12:00:00+01:00",
            datacontenttype="application/xml",
            ce_subject="ü",
            extensions={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
            data=b"\0<x/>\xff",
        )
    ]


async def test_an_event_in_structured_mode_is_stored_as_it_came(client: httpx.AsyncClient, broker: Broker) -> None:
    event = {"id": "ü 1", "source": "/tests", "specversion": "1.0", "type": "a.b", "comexampleextension": 5}
    content_type = {"content-type": "application/cloudevents+json; charset=UTF-8"}

    answers = [
        await client.post("/events/orders.new", headers=content_type, json=event | {"data": {"ü": [1, None]}}),
        await client.post(
            "/events/events.orders.new",
            headers=content_type,
            json=event | {"id": "2", "data_base64": base64.b64encode(b"\0\xff").decode()},
        ),
        await client.post(
            "/", headers=content_type, json=event | {"id": "3", "datacontenttype": "text/plain", "data": "text"}
        ),
    ]

    assert [answer.status_code for answer in answers] == [202] * 3
    one, two, three = await stored(broker)
    assert (one.id, one.subject, one.source, one.extensions) == (
        "ü 1", "events.orders.new", "/tests", {"comexampleextension": "5"},
    )  # fmt: skip
    assert one.json() == {"ü": [1, None]}
    assert (two.subject, two.data) == ("events.orders.new", b"\0\xff")
    assert (three.subject, three.datacontenttype, three.data) == ("events.a.b", "text/plain", b"text")


async def test_a_repeated_event_is_stored_once_and_said_to_be_one(client: httpx.AsyncClient, broker: Broker) -> None:
    first = await client.post("/", headers=binary())
    second = await client.post("/", headers=binary())
    other_source = await client.post("/", headers=binary(source="others"))

    assert (first.json()["duplicate"], second.json()["duplicate"]) == (False, True)
    assert first.json()["sequence"] == second.json()["sequence"]
    assert not other_source.json()["duplicate"]
    assert len(await stored(broker)) == 2


@pytest.mark.parametrize(
    ("headers", "content", "field"),
    [
        (binary(id=""), b"", "id"),
        (binary(type=""), b"", "type"),
        (binary(specversion="0.3"), b"", "specversion"),
        (binary(time="yesterday"), b"", "time"),
        (binary(subject="%FF"), b"", "ce-subject"),
        (binary() | {"ce-datacontenttype": "text/plain"}, b"", "ce-datacontenttype"),
        (binary() | {"ce-my_name": "x"}, b"", "my_name"),
        (binary() | {"Nats-Msg-Id": "7"}, b"", "nats-msg-id"),
        (binary() | {"nats-expected-last-sequence": "0"}, b"", "nats-expected-last-sequence"),
        ({}, b"", "ce-specversion"),
        (STRUCTURED, b"{", "body"),
        (STRUCTURED, b"[]", "body"),
        (STRUCTURED, b'{"id": "1", "source": "s", "specversion": "1.0"}', "type"),
        (STRUCTURED, b'{"id": "1", "source": [], "specversion": "1.0", "type": "t"}', "source"),
        (STRUCTURED, b'{"id": "1", "source": "s", "specversion": "1.0", "type": "t", "data_base64": "*"}', "data_base64"),
        (STRUCTURED | {"Nats-Rollup": "all"}, b"{}", "nats-rollup"),
    ],
)  # fmt: skip
async def test_a_malformed_event_is_refused_with_its_field_named(
    refused: httpx.AsyncClient, headers: dict[str, str], content: bytes, field: str
) -> None:
    answer = await refused.post("/", headers=headers, content=content)

    assert answer.status_code == 400
    assert (answer.json()["error"], answer.json()["field"]) == ("invalid-event", field)
    assert field.removeprefix("ce-") in answer.json()["message"]


async def test_headers_that_two_readers_could_read_differently_are_refused(refused: httpx.AsyncClient) -> None:
    twice = await refused.post("/", headers=[*binary().items(), ("CE-ID", "2")])
    raw_headers: dict[str, Any] = {**binary(), "ce-subject": "ü".encode()}
    raw = await refused.post("/", headers=raw_headers)

    assert (twice.status_code, twice.json()["field"]) == (400, "ce-id")
    assert (raw.status_code, raw.json()["field"]) == (400, "ce-subject")
    assert "percent-encode" in raw.json()["message"]


@pytest.mark.parametrize("path", ["a..b", "a.*", "a.%3E", "a%20b", "a%01b", "", "x" * 1100])
async def test_what_is_no_subject_is_refused(refused: httpx.AsyncClient, path: str) -> None:
    answer = await refused.post(f"/events/{path}", headers=binary())

    assert answer.status_code == 400
    assert (answer.json()["error"], answer.json()["field"]) == ("invalid-subject", "subject")


@pytest.mark.parametrize(
    "path", ["/events/git.push.local.shop.heads.main", "/events/events.k8s.pods", "/events/git.%70ush"]
)
async def test_what_bridges_publish_nobody_else_may(refused: httpx.AsyncClient, path: str) -> None:
    answer = await refused.post(path, headers=binary())
    by_type = await refused.post("/", headers=binary(type="git.push.local.shop.heads.main"))

    assert (answer.status_code, by_type.status_code) == (403, 403)
    assert answer.json()["field"] == "subject"


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", "Bearer ü"],
)
async def test_a_caller_without_the_token_is_not_let_in(refusing: Program, authorization: str | None) -> None:
    headers: dict[str, Any] = dict(binary())
    if authorization is not None:
        headers["authorization"] = authorization.encode()
    async with httpx.AsyncClient(base_url=refusing.url, trust_env=False) as client:
        answer = await client.post("/", headers=headers)
        ready = await client.get("/readyz")

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert ready.status_code == 200


async def test_the_scheme_of_the_token_may_be_in_any_case(program: Program) -> None:
    async with httpx.AsyncClient(base_url=program.url, trust_env=False) as client:
        answer = await client.post("/", headers=binary() | {"authorization": f"bEARER {TOKEN}"})

    assert answer.status_code == 202


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "application/cloudevents-batch+json"},
        {"content-type": "application/cloudevents+avro"},
        {"content-type": "application/cloudevents+json; charset=utf-16"},
        binary() | {"content-encoding": "gzip"},
    ],
)
async def test_a_form_that_is_not_taken_gets_415(refused: httpx.AsyncClient, headers: dict[str, str]) -> None:
    answer = await refused.post("/", headers=headers, content=b"[]")

    assert answer.status_code == 415
    assert answer.json()["message"]
    assert "accept" in answer.headers or "accept-encoding" in answer.headers


async def test_other_methods_and_paths_are_refused(refused: httpx.AsyncClient) -> None:
    wrong_method = [await refused.request(method, "/events/a") for method in ("GET", "PUT", "DELETE")]
    nowhere = await refused.post("/orders", headers=binary())
    post_ready = await refused.post("/readyz")

    assert [(answer.status_code, answer.headers["allow"]) for answer in wrong_method] == [(405, "POST")] * 3
    assert set(post_ready.headers["allow"].split(", ")) == {"GET", "HEAD"}
    assert nowhere.status_code == 404
    assert "/events/<subject>" in nowhere.json()["message"]


async def test_a_body_over_the_limit_is_refused_and_never_held(tmp_path: Path, broker: Broker) -> None:
    program = await Program(broker, tmp_path, body_bytes_max=64 * 1024).start()

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(12 * 16):
            yield b"x" * 65536

    try:
        async with program.client() as client:
            before = program.peak_bytes()
            announced = await client.post("/", headers=binary(), content=b"x" * 12_000_000)
            chunked = await client.post("/", headers=binary(), content=endless())
            fitting = await client.post("/", headers=binary(), content=b"x" * 65536)
        grown = program.peak_bytes() - before
    finally:
        await program.stop()

    assert [(answer.status_code, answer.json()["field"]) for answer in (announced, chunked)] == [(413, "body")] * 2
    assert fitting.status_code == 202
    assert grown < 4_000_000


async def test_a_caller_who_asks_first_is_told_before_sending_too_much(program: Program) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", program.port)
    head = {**BEARER, **binary(), "host": "x", "content-length": "99999999", "expect": "100-continue"}
    writer.write(request_head(head))

    status = await asyncio.wait_for(reader.readline(), WAIT_S)

    assert b"413" in status
    writer.close()


async def test_an_event_over_the_brokers_limit_is_refused(client: httpx.AsyncClient, broker: Broker) -> None:
    answer = await client.post("/", headers=binary(), content=b"x" * 1024 * 1024)
    fitting = await client.post("/", headers=binary(), content=b"x" * (1024 * 1024 - 1000))

    assert (answer.status_code, answer.json()["field"]) == (413, "data")
    assert "dataref" in answer.json()["message"]
    assert fitting.status_code == 202
    assert [len(event.data) for event in await stored(broker)] == [1024 * 1024 - 1000]


async def test_attributes_over_the_brokers_limit_are_refused(client: httpx.AsyncClient, broker: Broker) -> None:
    event = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}
    long = {f"long{number}": "x" * 8000 for number in range(9)}
    answer = await client.post("/", headers={"content-type": "application/cloudevents+json"}, json=event | long)

    assert (answer.status_code, answer.json()["field"]) == (413, "attributes")
    assert await stored(broker) == []


async def test_more_requests_than_are_taken_at_once_are_asked_to_come_again(tmp_path: Path, broker: Broker) -> None:
    program = await Program(broker, tmp_path, in_flight_max=1).start()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", program.port)
        writer.write(request_head({**BEARER, **binary(), "host": "x", "content-length": "4"}) + b"ab")
        async with program.client() as client:
            await wait_status(client, 429)
            busy = await client.post("/", headers=binary("2"))
            writer.write(b"cd")
            first = await asyncio.wait_for(reader.readline(), WAIT_S)
            after = await client.post("/", headers=binary("2"))
        writer.close()
    finally:
        await program.stop()

    assert (busy.status_code, busy.headers["retry-after"]) == (429, "1")
    assert b"202" in first
    assert after.status_code == 202


def request_head(headers: dict[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST / HTTP/1.1\r\n{lines}\r\n".encode()


async def wait_status(client: httpx.AsyncClient, status: int, path: str = "/") -> httpx.Response:
    """Repeat one event, or a GET of another path, until that status is answered."""
    async with asyncio.timeout(WAIT_S):
        while True:
            answer = await (client.post("/", headers=binary("probe")) if path == "/" else client.get(path))
            if answer.status_code == status:
                return answer
            await asyncio.sleep(0.02)


async def test_while_the_bus_is_away_callers_are_asked_to_come_again(client: httpx.AsyncClient, broker: Broker) -> None:
    broker.kill()

    away = await wait_status(client, 503)
    not_ready = await wait_status(client, 503, "/readyz")
    await broker.start()
    await wait_status(client, 200, "/readyz")
    back = await client.post("/", headers=binary("after"))

    assert (away.json()["error"], away.headers["retry-after"]) == ("bus-away", "1")
    assert not_ready.json()["ready"] is False
    assert back.status_code == 202
    assert "after" in [event.id for event in await stored(broker)]


async def test_when_the_outcome_is_unknown_the_caller_is_told_that_repeating_is_safe(
    client: httpx.AsyncClient, broker: Broker
) -> None:
    broker.signal(signal.SIGSTOP)
    asked = asyncio.ensure_future(client.post("/", headers=binary("unsure")))
    await asyncio.sleep(0.3)
    broker.kill()

    answer = await asyncio.wait_for(asked, WAIT_S)
    await broker.start()
    again = await wait_ready_and_post(client, "unsure")

    assert (answer.status_code, answer.json()["error"], answer.headers["retry-after"]) == (503, "unconfirmed", "1")
    assert "repeating the request is safe" in answer.json()["message"]
    assert again.status_code == 202
    assert [event.id for event in await stored(broker)] == ["unsure"]


async def wait_ready_and_post(client: httpx.AsyncClient, id_: str) -> httpx.Response:
    await wait_status(client, 200, "/readyz")
    return await client.post("/", headers=binary(id_))


async def test_a_full_stream_refuses_publishers_until_there_is_room(client: httpx.AsyncClient, broker: Broker) -> None:
    async with open_connection(broker.config("admin")) as admin:
        config = (await admin.api("STREAM.INFO.EVENTS"))["config"]
        await admin.api("STREAM.UPDATE.EVENTS", config | {"max_bytes": 2000})
        answers = [await client.post("/", headers=binary(str(number)), content=b"x" * 500) for number in range(6)]
        await admin.api("STREAM.UPDATE.EVENTS", config)

    after = await client.post("/", headers=binary("after"))

    assert {answer.status_code for answer in answers} == {202, 503}
    assert "maximum bytes" in answers[-1].json()["message"]
    assert after.status_code == 202
    assert len(await stored(broker)) == sum(answer.status_code == 202 for answer in answers) + 1


async def test_many_callers_at_once_are_all_served_over_kept_connections(program: Program, broker: Broker) -> None:
    async with program.client(limits=httpx.Limits(max_connections=40)) as client:
        answers = await asyncio.gather(
            *(
                client.post(f"/events/n.{number % 7}", headers=binary(str(number)), content=b"x")
                for number in range(400)
            )
        )

    assert {answer.status_code for answer in answers} == {202}
    assert {answer.json()["sequence"] for answer in answers} == set(range(1, 401))
    assert {event.id for event in await stored(broker)} == {str(number) for number in range(400)}


async def test_one_connection_carries_many_events(program: Program) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", program.port)
    for number in range(20):
        body = b"x" * number
        writer.write(request_head({**BEARER, **binary(str(number)), "host": "x", "content-length": str(number)}) + body)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT_S)
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        answer = json.loads(await reader.readexactly(length))
        assert b"202" in head.split(b"\r\n")[0]
        assert answer["sequence"] == number + 1
    writer.close()


async def test_a_caller_who_leaves_in_the_middle_of_a_body_stores_nothing(program: Program, broker: Broker) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", program.port)
    writer.write(request_head({**BEARER, **binary(), "host": "x", "content-length": "100"}) + b"half")
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.close()

    async with program.client() as client:
        assert (await client.post("/", headers=binary("2"))).status_code == 202

    assert [event.id for event in await stored(broker)] == ["2"]
    assert "Traceback" not in program.log()


async def test_on_sigterm_what_is_in_hand_is_finished_and_nothing_new_is_taken(
    program: Program, broker: Broker
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", program.port)
    writer.write(request_head({**BEARER, **binary("in-hand"), "host": "x", "content-length": "4"}) + b"ab")
    await writer.drain()
    await asyncio.sleep(0.1)
    program.process.terminate()
    async with asyncio.timeout(WAIT_S):
        while await is_listening(program.port):
            await asyncio.sleep(0.02)

    writer.write(b"cd")
    status = await asyncio.wait_for(reader.readline(), WAIT_S)

    assert b"202" in status
    assert await asyncio.wait_for(program.process.wait(), WAIT_S) == 0
    assert [event.id for event in await stored(broker)] == ["in-hand"]
    writer.close()


async def is_listening(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def test_a_gateway_killed_in_the_middle_loses_nothing_that_callers_repeat(tmp_path: Path, broker: Broker) -> None:
    program = await Program(broker, tmp_path, port=free_port()).start()
    confirmed: set[int] = set()

    async def publish(client: httpx.AsyncClient, number: int) -> None:
        while True:
            try:
                answer = await client.post("/", headers=binary(str(number)), content=b"x")
                if answer.status_code == 202:
                    confirmed.add(number)
                    return
            except httpx.TransportError:
                await asyncio.sleep(0.05)

    async with program.client(limits=httpx.Limits(max_connections=20)) as client, asyncio.TaskGroup() as tasks:
        for number in range(500):
            tasks.create_task(publish(client, number))
        while len(confirmed) < 100:
            await asyncio.sleep(0.01)
        await program.kill()
        assert len(confirmed) < 500
        await program.start()
    await program.stop()

    ids = [event.id for event in await stored(broker)]
    assert sorted(ids, key=int) == [str(number) for number in range(500)]


def run_gateway(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bus.ingress.gateway", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def test_wrong_settings_end_the_program_with_what_to_do(tmp_path: Path) -> None:
    no_token = run_gateway("--nats-url=nats://127.0.0.1:1", "--host=0.0.0.0", "--port=0")
    no_url = run_gateway()
    unknown = run_gateway("--nats-uri=x")
    taken = free_port()
    with subprocess.Popen([sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(taken)]) as other:
        try:
            while not asyncio.run(is_listening(taken)):
                pass
            in_use = run_gateway("--nats-url=nats://127.0.0.1:1", f"--port={taken}")
        finally:
            other.terminate()

    for ended in (no_token, no_url, unknown, in_use):
        assert ended.returncode == 2
        assert ended.stderr.startswith("error: ")
        assert ended.stderr.count("\n") == 1
    assert "token_file" in no_token.stderr
    assert "NODELESS_GATEWAY_NATS_URL" in no_url.stderr
    assert str(taken) in in_use.stderr


def test_without_a_bus_the_program_ends_with_unavailable() -> None:
    ended = run_gateway(f"--nats-url=nats://127.0.0.1:{free_port()}", "--port=0")

    assert ended.returncode == 69
    assert "no first contact with the bus" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_help_names_every_setting() -> None:
    shown = run_gateway("--help")

    assert shown.returncode == 0
    for name in ("--nats-url", "--token-file", "NODELESS_GATEWAY_IN_FLIGHT_MAX"):
        assert name in shown.stdout


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_answers_do_not_wait_for_more_to_send(host: str) -> None:
    """asyncio sets TCP_NODELAY only on sockets that name their protocol; without it each answer takes 40 ms more."""
    with listen(host, 0) as listening:
        assert listening.proto == socket.IPPROTO_TCP
        assert url_of(listening).startswith("http://[::1]:" if host == "::1" else "http://127.0.0.1:")
