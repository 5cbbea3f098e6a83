"""The user's cluster, by the user's own kubectl: its configuration, plug-ins and rights count, nothing else."""

import json
import subprocess
from dataclasses import dataclass
from typing import Any, Final

from lathe_api.wiring import LABEL_MODEL

Json = dict[str, Any]

MODELS: Final = "optimizedmodels.lathe.dev"
REVISIONS: Final = "modelrevisions.lathe.dev"
MANAGER: Final = "lathe-cli"
SECONDS: Final = 60
SHORTEST: Final = 4
"""Digits of a revision's hash that are taken for its name."""


class ClusterError(Exception):
    """The cluster cannot be asked, or refuses; explained in one message."""


class NotThereError(ClusterError):
    """What was named does not exist."""


@dataclass(frozen=True)
class Cluster:
    """One namespace of a cluster.

    Args:
        namespace: by default that of kubectl's context.
        context: by default kubectl's.
    """

    namespace: str | None = None
    context: str | None = None

    def model(self, name: str) -> Json:
        """An OptimizedModel.

        Raises:
            ClusterError: there is none of this name, or the cluster cannot be asked.
        """
        return self._json("get", MODELS, name)

    def revisions(self, model: str | None = None) -> list[Json]:
        """ModelRevisions, of one model or all, oldest first.

        Raises:
            ClusterError: the cluster cannot be asked.
        """
        chosen = ["-l", f"{LABEL_MODEL}={model}"] if model is not None else []
        found: list[Json] = self._json("get", REVISIONS, *chosen)["items"]
        return sorted(found, key=lambda r: (str(r["metadata"].get("creationTimestamp")), str(r["metadata"]["name"])))

    def replace_spec(self, model: Json, spec: Json) -> None:
        """Write another spec to an OptimizedModel that is still as it was read.

        Raises:
            ClusterError: somebody has changed it meanwhile, the API server refuses the spec, or cannot be asked.
        """
        # Its resourceVersion is sent along, so that what somebody else wrote meanwhile is never overwritten.
        value = json.dumps({**model, "spec": spec})
        self._kubectl("replace", f"--field-manager={MANAGER}", "-f", "-", stdin=value)

    def _json(self, *arguments: str) -> Json:
        found: Json = json.loads(self._kubectl(*arguments, "-o", "json"))
        return found

    def _kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        command = ["kubectl", *arguments]
        command += ["--namespace", self.namespace] if self.namespace is not None else []
        command += ["--context", self.context] if self.context is not None else []
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True, input=stdin, timeout=SECONDS)
        except FileNotFoundError as error:
            raise ClusterError("kubectl is not on the PATH. Install it, or add its folder to PATH") from error
        except subprocess.TimeoutExpired as error:
            raise ClusterError(f"kubectl gave no answer within {SECONDS} s. Check the cluster's address") from error
        if done.returncode == 0:
            return done.stdout
        said = done.stderr.strip() or done.stdout.strip()
        if "(NotFound)" in said:
            raise NotThereError(_without_prefix(said))
        if "(Conflict)" in said:
            raise ClusterError("It was changed by somebody else meanwhile. Look at it again, then try again")
        if "doesn't have a resource type" in said:
            raise ClusterError(f"{_without_prefix(said)}. Install Lathe into the cluster: its kinds are missing")
        raise ClusterError(f"kubectl {arguments[0]}: {_without_prefix(said)}")


def chosen(revisions: list[Json], wanted: str) -> Json:
    """The revision of that name, or whose hash begins like that.

    Raises:
        NotThereError: there is none, or more than one.
    """
    by_name = [r for r in revisions if r["metadata"]["name"] == wanted]
    by_hash = [r for r in revisions if len(wanted) >= SHORTEST and hash_text(r).startswith(wanted)]
    found = by_name or by_hash
    if len(found) == 1:
        return found[0]
    names = ", ".join(r["metadata"]["name"] for r in found or revisions) or "none"
    what = f"{wanted!r} is the beginning of several" if found else f"no ModelRevision is called {wanted!r}"
    raise NotThereError(f"{what}. There are: {names}")


def hash_text(revision: Json) -> str:
    """Hexadecimal digits of what decides a revision's result."""
    return str(revision["spec"]["hash"]).removeprefix("sha256:")


def _without_prefix(said: str) -> str:
    return said.removeprefix("error: ").removeprefix("Error from server ").rstrip(".")
