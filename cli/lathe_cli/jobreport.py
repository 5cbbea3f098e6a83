"""Tells the API server how far a Job is, beside the work: slow or absent, it never holds the work up."""

import http.client
import json
import random
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lathe_api.base import API_VERSION
from lathe_api.modelrevision import ModelRevision

Json = dict[str, Any]

PACE_SECONDS: Final = 1.0
"""At most one report in this time."""
LONGEST_PAUSE: Final = 15.0
"""Between two tries while the API server is away."""
PATIENCE_SECONDS: Final = 300.0
"""How long the last report is tried: what it tells exists nowhere else."""
FAREWELL_SECONDS: Final = 20.0
"""The same for the report of a failure, which the exit status tells too."""
_ANSWER_SECONDS: Final = 10.0
_OK: Final = range(200, 300)
_HOPELESS: Final = frozenset({400, 413, 415, 422})


class ReportError(Exception):
    """A report did not arrive; explained in one message. `hopeless` where another try cannot help."""

    def __init__(self, message: str, *, hopeless: bool = False) -> None:
        super().__init__(message)
        self.hopeless = hopeless


class GoneError(ReportError):
    """The ModelRevision has been deleted: nobody waits for the result any more."""

    def __init__(self, message: str) -> None:
        super().__init__(message, hopeless=True)


@dataclass(frozen=True)
class ApiServer:
    """The API server as a pod's service account reaches it."""

    host: str
    port: int
    account: Path
    """Folder with `token` and `ca.crt`."""

    def apply_status(self, revision: ModelRevision, status: Json, manager: str) -> None:
        """Server-side apply of a part of a ModelRevision's status.

        Raises:
            GoneError: there is no such revision any more.
            ReportError: it did not arrive.
        """
        meta = revision.metadata
        identity = {"name": meta.name, "namespace": meta.namespace}
        body = {"apiVersion": API_VERSION, "kind": "ModelRevision", "metadata": identity, "status": status}
        path = f"/apis/{API_VERSION}/namespaces/{meta.namespace}/modelrevisions/{meta.name}/status"
        code, answer = self._patch(f"{path}?fieldManager={manager}&force=true", json.dumps(body))
        if code in _OK:
            # A status is applied whatever uid is sent along, so that another revision of this name is only noticed now.
            # It has the same spec, as the name ends in its hash: what was written is true of it too.
            if meta.uid and (answer.get("metadata") or {}).get("uid") != meta.uid:
                raise GoneError(f"ModelRevision {meta.name} has been deleted, and another one of this name been made")
            return
        said = str(answer.get("message") or f"HTTP status {code}")
        # A 404 without a name is one of the whole kind: its definition is being replaced.
        if code == http.client.NOT_FOUND and (answer.get("details") or {}).get("name") == meta.name:
            raise GoneError(f"ModelRevision {meta.name} has been deleted: {said}")
        raise ReportError(f"ModelRevision {meta.name} cannot be reported to: {said}", hopeless=code in _HOPELESS)

    def _patch(self, path: str, body: str) -> tuple[int, Json]:
        try:
            # Read each time: Kubernetes replaces both before they end.
            token = (self.account / "token").read_text(encoding="ascii").strip()
            context = ssl.create_default_context(cafile=str(self.account / "ca.crt"))
            connection = http.client.HTTPSConnection(self.host, self.port, timeout=_ANSWER_SECONDS, context=context)
            try:
                headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/apply-patch+yaml"}
                connection.request("PATCH", path, body, headers)
                answer = connection.getresponse()
                data = answer.read()
            finally:
                connection.close()
        except (OSError, http.client.HTTPException) as error:
            raise ReportError(f"the API server {self.host}:{self.port} does not answer: {error}") from error
        return answer.status, _json(data)


def api_server(account: Path, environment: Mapping[str, str]) -> ApiServer | None:
    """The API server of the cluster that this process is a pod of; None outside of one."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT", "443")
    if not host or not (account / "token").is_file():
        return None
    return ApiServer(host, int(port), account)


class Reporter:
    """Sends the newest status from a thread of its own.

    Args:
        send: delivers a status; raises ReportError.
        note: told once when reports begin to fail, and once when they arrive again.
        pace: seconds between reports.
    """

    def __init__(
        self, send: Callable[[Json], None], note: Callable[[str], None], *, pace: float = PACE_SECONDS
    ) -> None:
        self._send = send
        self._note = note
        self._pace = pace
        self._changed = threading.Condition()
        self._newest: Json | None = None
        self._closing = False
        self._sending_last = False
        self._delivered = False
        self._deadline: float | None = None
        self._error: ReportError | None = None
        self._thread = threading.Thread(target=self._work, name="reporter", daemon=True)
        self._thread.start()

    def tell(self, status: Json) -> None:
        """Send this soon, unless something newer comes first.

        Raises:
            GoneError: an earlier report found the revision deleted.
        """
        with self._changed:
            if isinstance(self._error, GoneError):
                raise self._error
            self._newest = status
            self._changed.notify()

    def close(self, status: Json, patience: float = PATIENCE_SECONDS) -> None:
        """Send this last one, and end.

        Args:
            status: the whole of it.
            patience: seconds to try for.

        Raises:
            ReportError: it did not arrive.
        """
        with self._changed:
            self._newest, self._closing, self._deadline = status, True, time.monotonic() + patience
            self._changed.notify()
        self._thread.join(patience + 2 * _ANSWER_SECONDS)
        if self._thread.is_alive():
            raise ReportError("the API server took too long to answer")
        if not self._delivered:
            raise self._error or ReportError("the reports have ended by a mistake in Lathe")

    def _work(self) -> None:
        failures = 0
        while (status := self._next()) is not None:
            try:
                self._send(status)
            except ReportError as error:
                failures += 1
                if not self._go_on(error, status, failures):
                    return
            else:
                if failures:
                    self._note("reports arrive again")
                failures, self._error = 0, None
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, self._pace)
        self._delivered = True

    def _next(self) -> Json | None:
        with self._changed:
            self._changed.wait_for(lambda: self._newest is not None or self._closing)
            status, self._newest = self._newest, None
            self._sending_last = self._closing
            return status

    def _go_on(self, error: ReportError, status: Json, failures: int) -> bool:
        """After a failed report: keep it for the next try, and wait; whether there is a next try."""
        with self._changed:
            self._error = error
            if isinstance(error, GoneError):
                return False
            if self._closing and self._newest is None and error.hopeless:
                return False
            if self._newest is None:
                self._newest = status
        if failures == 1:
            self._note(f"{error}; the work goes on, and reports are tried again")
        pause = min(LONGEST_PAUSE, self._pace * 2 ** min(failures - 1, 10)) * random.uniform(0.75, 1.25)  # noqa: S311
        with self._changed:
            # The last report is tried at once, and from then on again after each pause.
            was_last = self._sending_last
            self._changed.wait_for(lambda: self._closing and not was_last, pause)
        return self._deadline is None or time.monotonic() < self._deadline


def _json(data: bytes) -> Json:
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
