"""Who may control the server: bearer tokens or API keys out of a file."""

import hashlib
import hmac
from pathlib import Path

from lathe_runtimes.errors import InputError
from lathe_runtimes.server.errors import Kind, RequestError


class Access:
    """Checks the credentials of control calls.

    Args:
        file: tokens, one a line; read again when it changes. None lets everybody in.

    Raises:
        InputError: the file cannot be read, or holds no token.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._seen = (0, 0)
        self._digests: tuple[bytes, ...] = ()
        if file is not None and not self._read(file):
            raise InputError("--control-tokens", f"{file} holds no token or cannot be read", "Write one token a line.")

    def check(self, credential: str) -> None:
        """Let a control call pass.

        Args:
            credential: value of `Authorization: Bearer …` or `X-API-Key`.

        Raises:
            RequestError: the credential is missing or wrong, or the file has become unreadable.
        """
        if self._file is None:
            return
        self._read(self._file)
        given = _digest(credential)
        # Every token is compared, in constant time, so that the time of the answer tells nothing.
        if not sum(hmac.compare_digest(given, known) for known in self._digests):
            raise RequestError(
                "this call needs a valid token: send Authorization: Bearer TOKEN or X-API-Key: TOKEN",
                Kind.UNAUTHENTICATED,
            )

    def _read(self, file: Path) -> bool:
        try:
            found = file.stat()
            if (found.st_mtime_ns, found.st_ino) != self._seen:
                lines = file.read_text(encoding="utf-8").splitlines()
                self._digests = tuple(_digest(line.strip()) for line in lines if line.strip())
                self._seen = (found.st_mtime_ns, found.st_ino)
        except (OSError, UnicodeDecodeError):
            self._digests = ()  # a secret that was taken away lets nobody in
            self._seen = (0, 0)
        return bool(self._digests)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
