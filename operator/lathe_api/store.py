"""Where artifacts are kept, and with which identity Jobs reach models, data and the store."""

from typing import Annotated

from pydantic import Field

from lathe_api.base import ApiModel, Duration, SubdomainName, Uri
from lathe_api.objects import SecretRef
from lathe_api.targets import Pool


class Store(ApiModel):
    """Where artifacts are kept, by digest."""

    uri: Uri | None = None
    """`s3://bucket/prefix`, `gs://…`, `az://…`, `pvc://claim/path` or a folder; by default the operator's own store, or
    the one that `lathe run --store` names."""
    credentials: SecretRef | None = None
    """Secret with the keys for model, data and store; by default the identity of the service account."""
    signing_key: SecretRef | None = None
    """Secret with the private key, under `key.pem`, that the last Job signs what it publishes with (Ed25519 or ECDSA on
    P-256, PKCS #8 without a password); by default nothing is signed."""


class Jobs(ApiModel):
    """How stages run in a cluster. `lathe run` on one machine uses none of it."""

    pool: Pool = Pool()
    """Nodes, tolerations, priority and service account."""
    image: Annotated[str | None, Field(min_length=1, max_length=512)] = None
    """Container image of the optimiser; by default the operator's own version."""
    queue_name: SubdomainName | None = None
    """Kueue LocalQueue that the Jobs wait in; by default none."""
    retries: Annotated[int, Field(ge=0, le=20)] = 3
    """How often a Job that died is started again; it resumes from its last checkpoint."""
    keep_finished: Duration = "24h"
    """A finished Job is deleted after this long."""
