"""HTTP/1.1 on asyncio's buffered protocol.

A body is received straight into one buffer of its size, so that tensors are views of it. A connection answers one
request at a time and in order: what a client pipelines waits in the receive buffer; reading stops when that is full.
"""

import asyncio
import contextlib
import logging
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from time import monotonic
from typing import Any, Final, cast
from urllib.parse import unquote

import httptools
import numpy as np
from typing_extensions import override

log = logging.getLogger(__name__)

RECEIVE_BYTES: Final = 1 << 16
ALIGNMENT: Final = 16
"""Tensor data starts at a multiple of this many bytes, as allocated memory does; no element type needs more."""
_CACHED_HEAD: Final = 2048
_PHRASES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_ENCODINGS: Final = {"gzip": 31, "deflate": 15}
"""Window sizes of zlib."""


@dataclass(frozen=True)
class Limits:
    """What one client may take. Exceeding them is answered with 431, 413, 408 or 503."""

    head_bytes: int = 32 * 1024
    body_bytes: int = 64 * 1024 * 1024
    connections: int = 4096
    receive_seconds: float = 30.0
    """For a whole request, plus the time its body takes at `receive_rate`."""
    receive_rate: int = 64 * 1024
    """Bytes per second that a client must reach on a large body."""


class HttpError(Exception):
    """A request that is refused before it is understood; the connection is closed after the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Head:
    """Request line and headers."""

    method: str
    path: str
    """Without the query, percent-decoded."""
    keep_alive: bool
    body_bytes: int
    json_bytes: int | None
    """Inference-Header-Content-Length."""
    expects_continue: bool
    encoding: str
    """Content-Encoding; empty for none."""
    accepts: str
    """Encoding that the client asks the answer to have; empty for none."""
    credential: str
    """Of `Authorization: Bearer …` or `X-API-Key`; empty for none."""


@dataclass(frozen=True, slots=True)
class Request:
    """One whole request."""

    head: Head
    body: memoryview


class Reply:
    """Sends the one answer of a request; may be called later. After the client has left it does nothing."""

    __slots__ = ("_connection", "_head")

    def __init__(self, connection: "Connection", head: Head) -> None:
        self._connection = connection
        self._head = head

    def when_gone(self, call: Callable[[], object]) -> None:
        """Have `call` called should the client leave before the answer."""
        self._connection.gone = call

    def text(self, body: bytes) -> None:
        """Answer with Prometheus metrics."""
        fields = b"Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
        self._connection.answer(self._head, HTTPStatus.OK, fields, [body])

    def json(self, status: int, body: bytes) -> None:
        """Answer with a JSON document; an empty body is sent without a type."""
        kind = b"Content-Type: application/json\r\n" if body else b""
        self._connection.answer(self._head, status, kind, [body])

    def tensors(self, head: bytes, blobs: Sequence[bytes | memoryview]) -> None:
        """Answer with an inference result: JSON, and raw tensors behind it."""
        if not blobs:
            self.json(HTTPStatus.OK, head)
            return
        fields = b"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: %d\r\n" % len(head)
        self._connection.answer(self._head, HTTPStatus.OK, fields, [head, *blobs])


Handler = Callable[[Request, Reply], None]


class _Parsed:
    """Callbacks of the parser."""

    def __init__(self) -> None:
        self.url = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.parser: Any = httptools.HttpRequestParser(self)
        self.method = ""
        self.keep_alive = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        # Once a message without a body is complete, the parser answers this for the next message.
        self.keep_alive = self.parser.should_keep_alive()
        self.method = self.parser.get_method().decode("latin-1")


def parse_head(raw: bytes) -> Head:
    """Head out of its bytes, up to and including the empty line.

    Raises:
        HttpError: it is malformed, or asks for what this server does not do.
    """
    return _parse_cached(raw) if len(raw) <= _CACHED_HEAD else _parse(raw)


def _parse(raw: bytes) -> Head:
    parsed = _Parsed()
    try:
        parsed.parser.feed_data(raw)
        url = httptools.parse_url(parsed.url)
    except httptools.HttpParserUpgrade as error:
        raise HttpError(HTTPStatus.NOT_IMPLEMENTED, "protocol upgrades are not supported") from error
    except httptools.HttpParserError as error:
        raise HttpError(HTTPStatus.BAD_REQUEST, f"malformed HTTP request: {error}") from error
    finally:
        parsed.parser = None  # each refers to the other: that would be garbage for the collector only
    fields = parsed.fields
    if any(name == b"transfer-encoding" for name, _ in fields):
        raise HttpError(HTTPStatus.LENGTH_REQUIRED, "chunked bodies are not supported: send Content-Length")
    lengths = {value for name, value in fields if name == b"content-length"}
    if len(lengths) > 1:
        raise HttpError(HTTPStatus.BAD_REQUEST, "Content-Length is given twice")
    known = dict(fields)
    encoding = known.get(b"content-encoding", b"").strip().lower().decode("latin-1")
    encoding = "" if encoding == "identity" else encoding
    if encoding and encoding not in _ENCODINGS:
        raise HttpError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Content-Encoding {encoding!r}: send gzip or deflate")
    # A general-purpose client offers a list out of habit; one that names a single coding wants it.
    accepts = known.get(b"accept-encoding", b"").strip().lower().decode("latin-1")
    return Head(
        method=parsed.method,
        path=unquote(url.path.decode("latin-1")) if url.path else "/",
        keep_alive=parsed.keep_alive,
        body_bytes=_whole(known, b"content-length") or 0,
        json_bytes=_whole(known, b"inference-header-content-length"),
        expects_continue=known.get(b"expect", b"").lower() == b"100-continue",
        encoding=encoding,
        accepts=accepts if accepts in _ENCODINGS else "",
        credential=credential_of(known.get(b"authorization", b""), known.get(b"x-api-key", b"")),
    )


# Clients repeat themselves: on a kept connection the head of the next request is most often the same.
_parse_cached = lru_cache(maxsize=512)(_parse)


def _whole(fields: dict[bytes, bytes], name: bytes) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if not value.isdigit() or len(value) > 15:  # noqa: PLR2004 the digits of a petabyte
        raise HttpError(HTTPStatus.BAD_REQUEST, f"{name.decode()}: {value[:40]!r} is no length")
    return int(value)


def credential_of(authorization: bytes, key: bytes) -> str:
    """Token of either header; empty for none."""
    scheme, _, token = authorization.partition(b" ")
    return (token.strip() if scheme.lower() == b"bearer" else key.strip()).decode("latin-1")


def inflate(body: memoryview, encoding: str, limit: int) -> memoryview:
    """Decompressed body.

    Raises:
        HttpError: it is damaged, or larger than `limit`.
    """
    engine = zlib.decompressobj(_ENCODINGS[encoding])
    try:
        plain = engine.decompress(body, limit + 1)
    except zlib.error as error:
        raise HttpError(HTTPStatus.BAD_REQUEST, f"the body is no {encoding}: {error}") from error
    if len(plain) > limit:
        raise HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has more than {limit} bytes when unpacked")
    if not engine.eof:
        raise HttpError(HTTPStatus.BAD_REQUEST, f"the {encoding} body ends too early")
    return memoryview(plain)


def deflate(parts: Sequence[bytes | memoryview], encoding: str) -> bytes:
    """Compressed body, fast rather than small."""
    engine = zlib.compressobj(1, zlib.DEFLATED, _ENCODINGS[encoding])
    return b"".join([*(engine.compress(part) for part in parts), engine.flush()])


class Connection(asyncio.BufferedProtocol):
    """One client."""

    def __init__(
        self, handler: Handler, limits: Limits, group: "Connections", error_body: Callable[[str], bytes]
    ) -> None:
        self._handler = handler
        self._limits = limits
        self._group = group
        self._error_body = error_body
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray(RECEIVE_BYTES)
        self._view = memoryview(self._buffer)
        self._used = 0
        self._head: Head | None = None
        self._body = memoryview(b"")
        self._filled = 0
        self._since = 0.0
        self._advancing = False
        self._paused = False
        self._stuffed = False
        self.busy = False
        """Whether a request is being answered."""
        self.gone: Callable[[], object] | None = None
        """Called when the client leaves before its answer."""

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transports share no base class with asyncio's
        if self._group.full:
            self._refuse(HttpError(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections"))
            return
        self._group.add(self)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        gone, self.gone = self.gone, None
        if gone is not None:
            gone()
        self._group.discard(self)

    @override
    def pause_writing(self) -> None:
        self._stuffed = True

    @override
    def resume_writing(self) -> None:
        self._stuffed = False
        self._advance()

    @override
    def get_buffer(self, sizehint: int) -> memoryview:
        if self._head is not None and not self.busy:
            return self._body[self._filled :]
        return self._view[self._used :]

    @override
    def buffer_updated(self, nbytes: int) -> None:
        if self._head is not None and not self.busy:
            self._filled += nbytes
            if self._filled == len(self._body):
                self._dispatch(self._head)
                self._advance()
            return
        self._used += nbytes
        self._advance()

    @override
    def eof_received(self) -> bool:
        # Half-closed: what was asked is still answered.
        if self.busy:
            self._group.last(self)
            return True
        return False

    def overdue(self, now: float) -> bool:
        """Whether the client has been sending one request for too long."""
        if not self._since:
            return False
        return now - self._since > self._limits.receive_seconds + len(self._body) / self._limits.receive_rate

    def expire(self) -> None:
        """Give up on a slow client."""
        self._refuse(HttpError(HTTPStatus.REQUEST_TIMEOUT, "the request did not arrive in time"))

    @property
    def engaged(self) -> bool:
        """Whether a request is arriving or being answered."""
        return self._transport is not None and (self._head is not None or self._used > 0)

    def close_when_idle(self) -> None:
        """Close; a request that has begun to arrive gets its answer first."""
        if not self.engaged and self._transport is not None:
            self._transport.close()

    def answer(self, head: Head, status: int, fields: bytes, parts: list[Any]) -> None:
        """Send the answer of the request at hand."""
        transport = self._transport
        self.busy = False
        self.gone = None
        self._head = None
        if transport is None or transport.is_closing():
            return
        if head.accepts and (len(parts) > 1 or parts[0]):
            parts = [deflate(parts, head.accepts)]
            fields += b"Content-Encoding: %b\r\n" % head.accepts.encode()
        ending = self._group.draining or self._group.is_last(self)
        stay = head.keep_alive and not (ending and not self._used)
        size = sum(map(len, parts))
        top = b"%b%bContent-Length: %d\r\n%b\r\n" % (
            _PHRASES[status],
            fields,
            size,
            b"" if stay else b"Connection: close\r\n",
        )
        if head.method == "HEAD":
            transport.write(top)
        elif size < RECEIVE_BYTES:
            transport.write(b"".join([top, *parts]))
        else:
            transport.writelines([top, *parts])
        if not stay:
            transport.close()
            self._used = 0
            return
        self._advance()

    def _refuse(self, error: HttpError) -> None:
        transport = self._transport
        self._since = 0.0
        self._used = 0
        if transport is None or transport.is_closing():
            return
        body = self._error_body(str(error))
        transport.write(
            b"%bContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
            % (_PHRASES[error.status], len(body), body)
        )
        transport.close()

    def _advance(self) -> None:
        """Take requests out of the receive buffer while there are whole ones and nothing is being answered."""
        if self._advancing:  # an answer that came at once: the loop below goes on
            return
        self._advancing = True
        try:
            while self._used and self._head is None and not self._stuffed and self._next():
                pass
        except HttpError as error:
            self._refuse(error)
        finally:
            self._advancing = False
        self._throttle()

    def _next(self) -> bool:
        """Start on the request at the front of the buffer; False when it is not there as a whole."""
        if self._transport is None or self._transport.is_closing():
            self._used = 0
            return False
        limit = self._limits.head_bytes
        end = self._buffer.find(b"\r\n\r\n", 0, min(self._used, limit))
        if end < 0:
            if self._used >= limit:
                raise HttpError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the head has more than {limit} bytes")
            self._since = self._since or monotonic()
            return False
        end += 4
        head = parse_head(bytes(self._view[:end]))
        if head.body_bytes > self._limits.body_bytes:
            raise HttpError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the body has {head.body_bytes} bytes; this server takes {self._limits.body_bytes}",
            )
        # The tensors lie behind the JSON: placing that to end at an aligned address aligns them.
        pad = -(head.json_bytes or 0) % ALIGNMENT if head.body_bytes else 0
        body = np.empty(head.body_bytes + pad, np.uint8).data[pad:]
        taken = min(self._used - end, head.body_bytes)
        body[:taken] = self._view[end : end + taken]
        rest = self._used - end - taken
        if rest:
            self._buffer[:rest] = self._buffer[end + taken : self._used]
        self._used = rest
        self._head, self._body, self._filled = head, body, taken
        if taken == head.body_bytes:
            self._dispatch(head)
            return True
        self._since = self._since or monotonic()
        if head.expects_continue:
            self._transport.write(_CONTINUE)
        return False

    def _dispatch(self, head: Head) -> None:
        self._since = 0.0
        self.busy = True
        body, self._body = self._body, memoryview(b"")
        try:
            if head.encoding:
                body = inflate(body, head.encoding, self._limits.body_bytes)
            self._handler(Request(head, body), Reply(self, head))
        except HttpError as error:
            self._refuse(error)
        except Exception:  # one request must not end the server
            log.exception("a request failed")
            self._refuse(HttpError(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; the server's log has the cause"))

    def _throttle(self) -> None:
        """Stop reading while the buffer is full, so that a client that pipelines endlessly waits."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        full = self._used >= RECEIVE_BYTES
        if full and not self._paused:
            transport.pause_reading()
        elif self._paused and not full:
            transport.resume_reading()
        self._paused = full


class Connections:
    """All clients of a server."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._open: set[Connection] = set()
        self._last: set[Connection] = set()
        self._settled = asyncio.Event()
        self.draining = False
        """Whether the server is about to stop: answers close their connection."""

    @property
    def full(self) -> bool:
        """Whether no further client is taken."""
        return self.draining or len(self._open) >= self._limits.connections

    def add(self, connection: Connection) -> None:
        """A client has come."""
        self._open.add(connection)

    def discard(self, connection: Connection) -> None:
        """A client has left."""
        self._open.discard(connection)
        self._last.discard(connection)
        self.settle()

    def last(self, connection: Connection) -> None:
        """The client will send nothing more: its answer ends the connection."""
        self._last.add(connection)

    def is_last(self, connection: Connection) -> bool:
        """Whether `last` was said of it."""
        return connection in self._last

    def sweep(self) -> None:
        """Give up on slow clients."""
        now = monotonic()
        for connection in [one for one in self._open if one.overdue(now)]:
            connection.expire()

    def settle(self) -> None:
        """A client has left. A closed connection leaves when its answer is flushed, not before."""
        if self.draining and not self._open:
            self._settled.set()

    async def drain(self, seconds: float) -> None:
        """Close idle connections; the others close with their answer. Returns when all have, or after `seconds`."""
        self.draining = True
        for connection in list(self._open):
            connection.close_when_idle()
        self.settle()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._settled.wait(), seconds)
