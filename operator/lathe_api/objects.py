"""What every Kubernetes object carries: metadata, including the fields that the API server adds.

Server-set fields are accepted so that the output of `kubectl get -o yaml` can be read back; nothing here uses them.
"""

from typing import Annotated

from pydantic import Field, JsonValue

from lathe_api.base import ApiModel, Name, SubdomainName, Timestamp

MetadataKey = Annotated[str, Field(min_length=1, max_length=317)]
Labels = Annotated[dict[MetadataKey, Annotated[str, Field(max_length=63)]], Field(max_length=64)]
Annotations = Annotated[dict[MetadataKey, Annotated[str, Field(max_length=262_144)]], Field(max_length=64)]


class OwnerReference(ApiModel):
    """The object that this one is deleted with."""

    api_version: Annotated[str, Field(max_length=317)]
    """Group and version of the owner."""
    kind: Annotated[str, Field(max_length=63)]
    """Kind of the owner."""
    name: SubdomainName
    """Name of the owner."""
    uid: Annotated[str, Field(max_length=64)]
    """Identity of the owner; a new object of the same name has another."""
    controller: bool = False
    """Whether the owner manages this object."""
    block_owner_deletion: bool = False
    """Whether the owner waits for this object's deletion."""


class ObjectMeta(ApiModel):
    """Name, namespace and labels of an object."""

    name: Name
    """Unique within the namespace; part of the names of everything that is made for it."""
    namespace: Name | None = None
    """Where the object lives; by default that of the caller."""
    labels: Labels = {}
    """For selecting; lower-case, prefixed."""
    annotations: Annotations = {}
    """For tools and people; never read by Lathe."""
    generate_name: Annotated[str | None, Field(max_length=63)] = None
    """Set by the server: prefix that the name was made from."""
    uid: Annotated[str | None, Field(max_length=64)] = None
    """Set by the server: identity of this very object."""
    resource_version: Annotated[str | None, Field(max_length=64)] = None
    """Set by the server: changes with every write."""
    generation: Annotated[int | None, Field(ge=0)] = None
    """Set by the server: changes with every write to `spec`."""
    creation_timestamp: Timestamp | None = None
    """Set by the server."""
    deletion_timestamp: Timestamp | None = None
    """Set by the server: the object goes once its finalizers are gone."""
    deletion_grace_period_seconds: Annotated[int | None, Field(ge=0)] = None
    """Set by the server."""
    finalizers: Annotated[tuple[Annotated[str, Field(max_length=317)], ...], Field(max_length=32)] = ()
    """What must happen before the object goes."""
    owner_references: Annotated[tuple[OwnerReference, ...], Field(max_length=16)] = ()
    """The objects that this one is deleted with."""
    managed_fields: Annotated[tuple[dict[str, JsonValue], ...], Field(max_length=256)] = ()
    """Set by the server: who wrote which field."""
    self_link: Annotated[str | None, Field(max_length=2048)] = None
    """Set by servers of before 1.20."""


class ObjectRef(ApiModel):
    """Another object of the same namespace."""

    name: Name
    """Its metadata.name."""


class SecretRef(ApiModel):
    """A Secret of the same namespace."""

    name: SubdomainName
    """Its metadata.name."""
