"""What the operator asks of a cluster: five methods, so that everything else can be tested without one."""

from collections.abc import Mapping
from typing import Any, Final, Protocol

from lathe_operator.plan.observed import Event, Ref

Json = dict[str, Any]

_TOO_MANY: Final = 429
_SERVER: Final = 500
_CONFLICT: Final = 409
_GONE: Final = 410


class ClusterError(Exception):
    """The API server refused, or did not answer.

    Args:
        status: of HTTP; 0 where there was no answer.
        message: what it said.
        retry_after: seconds that it asked to wait.
    """

    def __init__(self, status: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{status}: {message}" if status else message)
        self.status = status
        self.retry_after = retry_after

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in (0, _CONFLICT, _GONE, _TOO_MANY) or self.status >= _SERVER


class KindMissingError(ClusterError):
    """The cluster does not know the kind, as its CustomResourceDefinition is not installed."""


class FencedError(Exception):
    """This process is not, or no longer, the one that may write."""


class Cluster(Protocol):
    """The API server. Every method raises `ClusterError`; those that write also raise `FencedError`."""

    async def get(self, ref: Ref) -> Json | None:
        """The object, or None."""
        ...

    async def list(
        self, api_version: str, kind: str, namespace: str | None, labels: Mapping[str, str] | None = None
    ) -> tuple[Json, ...]:
        """Objects with these labels (`apiVersion` and `kind` filled in), sorted by name.

        Raises:
            KindMissingError: the cluster does not know the kind.
        """
        ...

    async def apply(self, obj: Json, *, subresource: str | None = None) -> Json:
        """Server-side apply of the fields that the operator owns; the object as it is now."""
        ...

    async def delete(self, ref: Ref) -> None:
        """Delete an object and, in the background, what it owns; nothing where it is gone."""
        ...

    async def tell(self, about: Json, event: Event) -> None:
        """Record a Kubernetes Event about an object."""
        ...
