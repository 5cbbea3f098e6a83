"""The HTTP protocol without sockets: framing, order, back-pressure, slow clients."""

import asyncio
import json
from collections.abc import Callable

import pytest

from lathe_runtimes.server import http as module
from lathe_runtimes.server.http import Connection, Connections, HttpError, Limits, parse_head

LIMITS = Limits(head_bytes=1024, body_bytes=200_000, connections=2, receive_seconds=30, receive_rate=1000)


class Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False
        self.reading = True

    def write(self, data) -> None:
        self.written += bytes(data)

    def writelines(self, parts) -> None:
        self.written += b"".join(map(bytes, parts))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Client:
    """One connection, its handler and its wire."""

    def __init__(self, handler=None, group: Connections | None = None) -> None:
        self.bodies: list[bytes] = []
        self.replies: list[Callable[..., None]] = []
        self.group = group or Connections(LIMITS)
        self.wire = Wire()
        self.connection = Connection(
            handler or self.echo, LIMITS, self.group, lambda message: json.dumps({"error": message}).encode()
        )
        self.connection.connection_made(self.wire)

    def echo(self, request, reply) -> None:
        self.bodies.append(bytes(request.body))
        reply.json(200, bytes(request.body))

    def keep(self, request, reply) -> None:
        self.bodies.append(bytes(request.body))
        self.replies.append(reply)

    def send(self, data: bytes) -> None:
        while data and self.wire.reading:
            room = self.connection.get_buffer(-1)
            count = min(len(room), len(data))
            room[:count] = data[:count]
            self.connection.buffer_updated(count)
            data = data[count:]
        self.unsent = data

    @property
    def statuses(self) -> list[int]:
        return [int(part.split(b" ", 1)[0]) for part in self.wire.written.split(b"HTTP/1.1 ")[1:]]


def post(body: bytes, extra: str = "") -> bytes:
    return f"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode() + body


def in_loop(test: Callable[[], None]) -> None:
    async def run() -> None:
        test()

    asyncio.run(run())


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 10_000])
def test_the_pieces_in_which_bytes_arrive_do_not_matter(size):
    bodies = [b"", b"a", b"b" * 100, b"c" * 90_000, b"d"]
    stream = b"".join(map(post, bodies))

    def scenario() -> None:
        client = Client()
        for at in range(0, len(stream), size):
            client.send(stream[at : at + size])
        assert client.bodies == bodies
        assert client.statuses == [200] * len(bodies)

    in_loop(scenario)


def test_one_request_is_answered_at_a_time_and_in_order():
    def scenario() -> None:
        client = Client()
        client.connection._handler = client.keep
        client.send(post(b"one") + post(b"two") + post(b"three"))
        for expected in ([b"one"], [b"one", b"two"], [b"one", b"two", b"three"]):
            assert client.bodies == expected
            client.replies[-1].json(200, expected[-1])
        assert [client.wire.written.find(word) for word in (b"one", b"two", b"three")] == sorted(
            client.wire.written.find(word) for word in (b"one", b"two", b"three")
        )

    in_loop(scenario)


def test_reading_stops_while_a_client_pipelines_more_than_the_buffer_holds():
    def scenario() -> None:
        client = Client()
        client.connection._handler = client.keep
        client.send(b"".join(post(b"x" * 500) for _ in range(300)))
        assert not client.wire.reading
        assert client.unsent
        while len(client.replies) < 300:
            client.replies[-1].json(200, b"ok")
            client.send(client.unsent)
        assert len(client.bodies) == 300

    in_loop(scenario)


def test_a_client_that_does_not_read_its_answers_gets_no_more_of_them():
    def scenario() -> None:
        client = Client()
        client.connection.pause_writing()
        client.send(post(b"a") + post(b"b"))
        assert client.bodies == []
        client.connection.resume_writing()
        assert client.bodies == [b"a", b"b"]

    in_loop(scenario)


def test_tensor_data_is_aligned_whatever_the_json_before_it():
    addresses = []

    def handler(request, reply) -> None:
        import numpy as np

        start = np.frombuffer(request.body, np.uint8).__array_interface__["data"][0]
        addresses.append((start + request.head.json_bytes) % module.ALIGNMENT)
        reply.json(200, b"")

    def scenario() -> None:
        client = Client(handler)
        for size in (1, 63, 64, 65, 100):
            client.send(post(bytes(size + 8), f"Inference-Header-Content-Length: {size}\r\n"))

    in_loop(scenario)
    assert addresses == [0] * 5


def test_a_slow_client_is_told_so_and_a_waiting_one_is_not(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])

    def scenario() -> None:
        group = Connections(LIMITS)
        slow, idle = Client(group=group), Client(group=group)
        slow.send(post(b"x" * 100)[:-50])
        now[0] += 29
        group.sweep()
        assert (slow.wire.closed, idle.wire.closed) == (False, False)
        now[0] += 2
        group.sweep()
        assert (slow.statuses, slow.wire.closed, idle.wire.closed) == ([408], True, False)

    in_loop(scenario)


def test_a_large_body_has_the_time_that_its_size_needs(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])

    def scenario() -> None:
        client = Client()
        client.send(post(b"x" * 100_000)[:-1])
        now[0] += 129
        client.group.sweep()
        assert not client.wire.closed
        client.send(b"x")
        assert client.statuses == [200]

    in_loop(scenario)


def test_connections_beyond_the_limit_are_refused():
    def scenario() -> None:
        group = Connections(LIMITS)
        first, second, third = (Client(group=group) for _ in range(3))
        assert (third.statuses, third.wire.closed) == ([503], True)
        first.connection.connection_lost(None)
        fourth = Client(group=group)
        fourth.send(post(b"a"))
        second.send(post(b"b"))
        assert (fourth.statuses, second.statuses) == ([200], [200])

    in_loop(scenario)


def test_an_answer_for_a_client_that_has_left_is_dropped():
    def scenario() -> None:
        client = Client()
        client.connection._handler = client.keep
        client.send(post(b"a"))
        client.connection.connection_lost(None)
        client.replies[0].json(200, b"late")
        assert client.wire.written == b""

    in_loop(scenario)


def test_a_failing_handler_is_an_internal_error_and_tells_nothing_of_it(caplog):
    def handler(request, reply) -> None:
        raise RuntimeError("secret")

    def scenario() -> None:
        client = Client(handler)
        client.send(post(b"a"))
        assert client.statuses == [500]
        assert b"secret" not in client.wire.written

    in_loop(scenario)
    assert "secret" in caplog.text


def test_draining_lets_what_has_begun_finish():
    async def scenario() -> None:
        group = Connections(Limits())
        idle, arriving, busy = (Client(group=group) for _ in range(3))
        busy.connection._handler = busy.keep
        busy.send(post(b"a"))
        arriving.send(post(b"b")[:-1])
        ending = asyncio.create_task(group.drain(60))
        await asyncio.sleep(0)
        assert (idle.wire.closed, arriving.wire.closed, busy.wire.closed) == (True, False, False)
        arriving.send(b"b")
        busy.replies[0].json(200, b"done")
        for client in (idle, arriving, busy):
            assert client.wire.closed
            assert not ending.done()
            client.connection.connection_lost(None)
        await asyncio.wait_for(ending, 20)
        assert b"Connection: close" in busy.wire.written

    asyncio.run(scenario())


def test_an_answer_to_head_has_no_body():
    def scenario() -> None:
        client = Client(lambda request, reply: reply.json(200, b"12345"))
        client.send(b"HEAD /x HTTP/1.1\r\nHost: h\r\n\r\n")
        assert b"Content-Length: 5" in client.wire.written
        assert client.wire.written.endswith(b"\r\n\r\n")

    in_loop(scenario)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("", {"body_bytes": 0, "json_bytes": None, "keep_alive": True, "accepts": "", "encoding": ""}),
        ("content-LENGTH: 12\r\n", {"body_bytes": 12}),
        ("Inference-Header-Content-Length: 7\r\n", {"json_bytes": 7}),
        ("Connection: close\r\n", {"keep_alive": False}),
        ("Accept-Encoding: gzip\r\n", {"accepts": "gzip"}),
        ("Accept-Encoding: gzip, deflate, br\r\n", {"accepts": ""}),
        ("Content-Encoding: deflate\r\n", {"encoding": "deflate"}),
        ("Content-Encoding: identity\r\n", {"encoding": ""}),
        ("Expect: 100-Continue\r\n", {"expects_continue": True}),
    ],
)
def test_heads_are_read(fields, expected):
    head = parse_head(f"GET /a%20b/c?q=1 HTTP/1.1\r\nHost: h\r\n{fields}\r\n".encode())
    assert (head.method, head.path) == ("GET", "/a b/c")
    assert {name: getattr(head, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 501),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"GET /\x00 HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\x00c\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length : 5\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 5\r\n Transfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 411),
    ],
)
def test_malformed_heads_are_refused(raw, status):
    with pytest.raises(HttpError) as caught:
        parse_head(raw)
    assert caught.value.status == status
