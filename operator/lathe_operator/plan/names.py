"""Names of children: deterministic, readable, and never longer than what is made of them may be."""

import hashlib
from typing import Final

NAME_LIMIT: Final = 63
"""A DNS label; labels of pods and Jobs' pods hold these names."""
HASH_LENGTH: Final = 10
SHORT_HASH: Final = 6
SEGMENT_DIGITS: Final = 3
"""`-` and two digits of a Job's name."""
POD_SUFFIX: Final = 6
"""`-` and five characters that a Job adds to the name of its pods."""


def shortened(name: str, limit: int) -> str:
    """The name where it fits, else its beginning and a hash of the whole; never ends in a dash.

    Raises:
        ValueError: the limit leaves no room for the hash.
    """
    if len(name) <= limit:
        return name
    if limit < SHORT_HASH + 2:
        raise ValueError(f"no room for a name in {limit} characters")
    digest = hashlib.sha256(name.encode()).hexdigest()[:SHORT_HASH]
    return f"{name[: limit - SHORT_HASH - 1].rstrip('-')}-{digest}"


def revision(model: str, digest: str) -> str:
    """`<model>-<10 hexadecimal digits>`, short enough for the names of its Jobs and their pods."""
    tail = digest.removeprefix("sha256:")[:HASH_LENGTH]
    room = NAME_LIMIT - len(tail) - 1 - SEGMENT_DIGITS - POD_SUFFIX
    return f"{shortened(model, room)}-{tail}"


def short_revision(digest: str) -> str:
    """What people see of a revision."""
    return digest.removeprefix("sha256:")[:SHORT_HASH]


def job(revision_name: str, segment: int) -> str:
    """`<revision>-<segment>`."""
    return f"{revision_name}-{segment}"


def service(model: str, target: str) -> str:
    """The stable Service of a target."""
    return shortened(f"{model}-{target}", NAME_LIMIT)


def inference_service(model: str, target: str, digest: str, namespace: str) -> str:
    """`<model>-<target>-<hash>`, so that `<name>-predictor-<namespace>` stays a DNS label, as KServe needs.

    Raises:
        ValueError: the namespace's name leaves no room.
    """
    tail = short_revision(digest)
    room = NAME_LIMIT - len("-predictor-") - len(namespace) - len(tail) - 1
    return f"{shortened(f'{model}-{target}', room)}-{tail}"
