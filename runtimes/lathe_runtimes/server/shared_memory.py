"""The system shared-memory extension: tensors in POSIX shared memory of this machine.

A region is read and written through its file, not mapped: a client that shortens it after registration would
otherwise end the server with SIGBUS.
"""

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lathe_runtimes.server.errors import Kind, RequestError

FOLDER: Final = Path("/dev/shm")  # noqa: S108 where POSIX shared memory lives on Linux
MAX_REGIONS: Final = 1024
MAX_NAME: Final = 256
_KEY: Final = re.compile(r"/?(?!\.)[A-Za-z0-9._-]{1,250}")


@dataclass(frozen=True)
class Region:
    """A registered piece of shared memory."""

    key: str
    offset: int
    size: int
    handle: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies: bytes of a region."""

    region: str
    offset: int
    size: int


class Regions:
    """Regions by the names under which clients have registered them."""

    def __init__(self) -> None:
        self._regions: dict[str, Region] = {}

    def register(self, name: str, key: str, offset: int, size: int) -> None:
        """Make a region known.

        Raises:
            RequestError: the name is taken, the key could leave the folder of shared memory or is not there, or the
                bytes lie outside of it.
        """
        if not 0 < len(name) <= MAX_NAME:
            raise RequestError(f"a shared memory region needs a name of 1 to {MAX_NAME} characters", Kind.INTERNAL)
        if name in self._regions:
            raise RequestError(f"shared memory region {name!r} already in manager", Kind.EXISTS)
        if len(self._regions) >= MAX_REGIONS:
            raise RequestError(f"{MAX_REGIONS} regions are registered: unregister one first", Kind.UNAVAILABLE)
        if not _KEY.fullmatch(key):
            raise RequestError(f"Unable to open shared memory region: {key[:300]!r}", Kind.INTERNAL)
        try:
            handle = os.open(FOLDER / key.removeprefix("/"), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise RequestError(f"Unable to open shared memory region: {key!r}", Kind.INTERNAL) from error
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or offset < 0 or size < 1 or offset + size > found.st_size:
            os.close(handle)
            raise RequestError(f"Invalid shared memory region: {key!r}", Kind.INTERNAL)
        self._regions[name] = Region(key, offset, size, handle)

    def unregister(self, name: str = "") -> None:
        """Forget a region, or all; one that is not known is no error."""
        for gone in [name] if name else list(self._regions):
            region = self._regions.pop(gone, None)
            if region is not None:
                os.close(region.handle)

    def status(self, name: str = "") -> list[dict[str, Any]]:
        """Description of one region, or of all.

        Raises:
            RequestError: there is no such region.
        """
        if name and name not in self._regions:
            raise RequestError(f"Unable to find system shared memory region: {name!r}", Kind.NOT_FOUND)
        return [
            {"name": given, "key": region.key, "offset": region.offset, "byte_size": region.size}
            for given, region in self._regions.items()
            if name in {"", given}
        ]

    def read(self, place: Place) -> memoryview:
        """Copy of the bytes there.

        Raises:
            RequestError: they are not (any more) inside the region.
        """
        region = self._find(place)
        data = os.pread(region.handle, place.size, region.offset + place.offset)
        if len(data) != place.size:
            raise RequestError(f"shared memory region {place.region!r} has become shorter than it was registered")
        return memoryview(data)

    def write(self, place: Place, output: str, data: bytes | memoryview) -> None:
        """Put the bytes of an output there.

        Raises:
            RequestError: they do not fit.
        """
        if len(data) > place.size:
            raise RequestError(
                f"shared memory size specified with the request for output {output!r} ({place.size} bytes) should be "
                f"at least {len(data)} bytes to hold the results",
                Kind.INTERNAL,
            )
        region = self._find(place)
        at = region.offset + place.offset
        if os.fstat(region.handle).st_size < at + len(data):  # writing would make it longer again
            raise RequestError(f"shared memory region {place.region!r} has become shorter than it was registered")
        os.pwrite(region.handle, data, at)

    def check(self, place: Place) -> None:
        """Refuse a place outside of its region.

        Raises:
            RequestError: as said.
        """
        self._find(place)

    def _find(self, place: Place) -> Region:
        region = self._regions.get(place.region)
        if region is None:
            raise RequestError(f"Unable to find shared memory region: {place.region[:MAX_NAME]!r}", Kind.NOT_FOUND)
        if place.offset < 0 or place.size < 0 or place.offset + place.size > region.size:
            raise RequestError(f"Invalid offset + byte size for shared memory region: {place.region!r}")
        return region


def place_of(parameters: dict[str, Any], where: str) -> Place | None:
    """Place that the parameters of a tensor name; None when they name none.

    Raises:
        RequestError: a value is of the wrong type, or the size is missing.
    """
    if "shared_memory_region" not in parameters:
        return None
    region = parameters["shared_memory_region"]
    offset = parameters.get("shared_memory_offset", 0)
    size = parameters.get("shared_memory_byte_size")
    if not isinstance(region, str) or type(offset) is not int or type(size) is not int:
        raise RequestError(
            f"{where}: write shared_memory_region (a string), shared_memory_byte_size and, if not 0, "
            "shared_memory_offset (whole numbers)"
        )
    return Place(region, offset, size)


def class_count(parameters: dict[str, Any], where: str) -> int:
    """Number of classes that the classification extension is asked for; 0 for none.

    Raises:
        RequestError: it is no such number.
    """
    count = parameters.get("classification", 0)
    if type(count) is not int or count < 0:
        raise RequestError(f"{where}: classification: write a whole number; found {count!r:.80}")
    return count
