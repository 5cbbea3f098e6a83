"""A proxy in front of the API server that counts what is written, and breaks what it is told to."""

import json
import re
import ssl
import threading
import time
from collections.abc import Callable
from http.client import HTTPException, HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

WRITES = ("PATCH", "POST", "PUT", "DELETE")
CHUNK = 65536
TIMES = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+Z")


class Proxy:
    """Plain HTTP on loopback; the client's token is handed on over TLS.

    Args:
        url: of the API server.
        ca: certificate of its authority.
        token: of the client.
    """

    def __init__(self, url: str, ca: Path, token: str) -> None:
        self.writes: list[str] = []
        """Every write that came, those of the election and Events left out."""
        self.before: Callable[[str], int | None] = lambda write: None
        """Called with a write (method, path, body without times) before it is handed on; may answer a status."""
        self.after: Callable[[str], None] = lambda write: None
        """Called when the API server has answered a write, before the client gets the answer."""
        self.away = False
        """Refuse every connection, and cut those that are open."""
        self._host = urlsplit(url).netloc
        self._context = ssl.create_default_context(cafile=str(ca))
        self._token = token
        self._lock = threading.Lock()
        self._watches: set[HTTPSConnection] = set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._handle(self)

            do_PATCH = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def kubeconfig(self, path: Path) -> Path:
        """For a client that comes through here."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": {"token": self._token}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path.write_text(json.dumps(config))
        return path

    def drop_watches(self) -> None:
        """Cut every connection that streams."""
        for connection in list(self._watches):
            if connection.sock is not None:
                connection.sock.shutdown(2)

    def close(self) -> None:
        self.away = True
        self.drop_watches()
        self._server.shutdown()
        self._server.server_close()

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        body = handler.rfile.read(length) if length else None
        if self.away:
            handler.close_connection = True
            return
        counted = handler.command in WRITES and "/leases" not in handler.path and "/events" not in handler.path
        write = ""
        if counted:
            text = TIMES.sub("", (body or b"").decode())
            write = f"{handler.command} {handler.path.partition('?')[0]} {text}"
            with self._lock:
                self.writes.append(write)
            refused = self.before(write)
            if refused is not None:
                self._refuse(handler, refused)
                return
        try:
            self._forward(handler, body, write)
        except (OSError, HTTPException, ValueError):
            handler.close_connection = True

    def _refuse(self, handler: BaseHTTPRequestHandler, status: int) -> None:
        answer = json.dumps({"kind": "Status", "status": "Failure", "code": status, "message": "by the test"}).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(answer)))
        handler.end_headers()
        handler.wfile.write(answer)

    def _forward(self, handler: BaseHTTPRequestHandler, body: bytes | None, write: str) -> None:
        connection = HTTPSConnection(self._host, context=self._context, timeout=300)
        headers = {
            k: v for k, v in handler.headers.items() if k.lower() not in ("host", "connection", "accept-encoding")
        }
        connection.request(handler.command, handler.path, body=body, headers=headers)
        streams = "watch=true" in handler.path
        if streams:
            self._watches.add(connection)
        try:
            answer = connection.getresponse()
            if write:
                self.after(write)
            handler.send_response(answer.status)
            handler.send_header("Content-Type", answer.getheader("Content-Type", "application/json"))
            if streams:
                self._stream(handler, answer)
                return
            data = answer.read()
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)
        finally:
            self._watches.discard(connection)
            connection.close()

    def _stream(self, handler: BaseHTTPRequestHandler, answer: object) -> None:
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        while data := answer.read1(CHUNK):  # type: ignore[attr-defined]
            handler.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            handler.wfile.flush()
        handler.wfile.write(b"0\r\n\r\n")


def outage(proxy: Proxy, seconds: float) -> None:
    """Nobody reaches the API server for so long."""
    proxy.away = True
    proxy.drop_watches()
    time.sleep(seconds)
    proxy.away = False
