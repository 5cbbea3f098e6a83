"""What a revision's Jobs need besides themselves: the revision as a file, and an identity that may report on it."""

from lathe_api.canonical import canonical_json
from lathe_api.wiring import GROUP, REVISION_KEY
from lathe_operator.plan.observed import Json
from lathe_operator.plan.revision import owner

RBAC: str = "rbac.authorization.k8s.io"


def config_map(revision: Json) -> Json:
    """The revision as a file of its pods; it never changes, as the revision never does.

    Args:
        revision: as the API server gave it (its uid is needed).
    """
    meta = revision["metadata"]
    content = {
        "apiVersion": revision["apiVersion"],
        "kind": revision["kind"],
        "metadata": {key: meta[key] for key in ("name", "namespace", "uid")},
        "spec": revision["spec"],
    }
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(revision),
        "immutable": True,
        "data": {REVISION_KEY: canonical_json(content).decode()},
    }


def identity(revision: Json, account: str | None) -> tuple[Json, ...]:
    """A service account, and the right to write the status of this one revision.

    Args:
        revision: as the API server gave it.
        account: an account of the user's to give the right to; by default one is made.
    """
    name = revision["metadata"]["name"]
    objects: list[Json] = []
    if account is None:
        objects.append(
            {
                "apiVersion": "v1",
                "kind": "ServiceAccount",
                "metadata": _metadata(revision),
                "automountServiceAccountToken": False,
            }
        )
    rule = {"apiGroups": [GROUP], "resourceNames": [name]}
    objects.append(
        {
            "apiVersion": f"{RBAC}/v1",
            "kind": "Role",
            "metadata": _metadata(revision),
            "rules": [{**rule, "resources": ["modelrevisions/status"], "verbs": ["get", "patch"]}],
        }
    )
    objects.append(
        {
            "apiVersion": f"{RBAC}/v1",
            "kind": "RoleBinding",
            "metadata": _metadata(revision),
            "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": name},
            "subjects": [
                {"kind": "ServiceAccount", "name": account or name, "namespace": revision["metadata"]["namespace"]}
            ],
        }
    )
    return tuple(objects)


def _metadata(revision: Json) -> Json:
    meta = revision["metadata"]
    return {
        "name": meta["name"],
        "namespace": meta["namespace"],
        "labels": meta["labels"],
        "ownerReferences": [owner(revision)],
    }
