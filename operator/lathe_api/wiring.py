"""Names that the operator, the Jobs it starts and the servers agree on: labels, paths in pods, exit statuses."""

from typing import Final

GROUP: Final = "lathe.dev"
LABEL_MODEL: Final = "lathe.dev/model"
"""On every child: name of the OptimizedModel. The operator watches children by it."""
LABEL_REVISION: Final = "lathe.dev/revision"
LABEL_TARGET: Final = "lathe.dev/target"
LABEL_SEGMENT: Final = "lathe.dev/segment"
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGED_BY: Final = "lathe"

OPERATOR_MANAGER: Final = "lathe-operator"
"""Field manager of all that the operator applies."""
JOB_MANAGER_PREFIX: Final = "lathe-job-"
"""Field manager of a Job's status entries is this and the number of its segment: each owns its own entries."""

REVISION_KEY: Final = "revision.json"
"""Key of the revision's ConfigMap that holds the ModelRevision (metadata with uid, and spec)."""
REVISION_FILE: Final = "/etc/lathe/revision/revision.json"
"""Where a Job's pod finds it."""
VOLUMES: Final = "/mnt/lathe/volumes"
"""`pvc://claim/path` of a document is `<VOLUMES>/claim/path` in a Job's pod."""
SCRATCH: Final = "/mnt/lathe/scratch"
"""Writable emptyDir of a Job's pod; HOME and TMPDIR lie in it, as its root file system is read-only."""
REPOSITORIES: Final = "repositories"
"""Folder of the store: a Triton model repository per revision and target, `repositories/<revision>/<target>`."""
MODEL_MOUNT: Final = "/mnt/models"
"""Where KServe mounts the repository in a server."""

DIGEST_PARAMETER: Final = "lathe.digest"
"""Parameter of a served model's configuration that holds the sha256 of its artifact."""

SIGNING_KEY: Final = "LATHE_SIGNING_KEY"
"""Variable: PEM file with the private key that published models are signed with."""
SIGNING_MOUNT: Final = "/etc/lathe/signing"
"""Where a Job's pod finds the Secret with that key."""

HTTP_PORT: Final = 8080
GRPC_PORT: Final = 9000

EXIT_BAD_INPUT: Final = 2
"""A Job's pod ends with it when another try cannot help; every other failure is tried again."""
EXIT_OUT_OF_MEMORY: Final = 137
"""A Job's pod ends with it when a stage reached a memory limit, as if the kernel had ended the pod."""
TERMINATION_LOG: Final = "/dev/termination-log"
"""A Job's pod leaves the reason of its end there, in words for people."""


def pod_path(uri: str) -> str:
    """What a pod reads for a URI of a document: its mount for `pvc://claim/path`, or the URI itself.

    Raises:
        ValueError: a `pvc://` URI names no claim, or leaves its volume.
    """
    if not uri.startswith("pvc://"):
        return uri
    claim, _, path = uri.removeprefix("pvc://").partition("/")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not claim or ".." in (claim, *parts):
        raise ValueError(f"{uri} names no place in a volume")
    return "/".join([VOLUMES, claim, *parts])
