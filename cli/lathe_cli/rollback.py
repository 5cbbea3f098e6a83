"""`lathe rollback NAME`: edits an OptimizedModel's spec so that it asks for an earlier revision again.

The spec that made a revision has that revision's hash, so that the operator finds the revision there, and all of its
stages in the store: nothing is computed anew.
"""

import argparse
from typing import Final

from lathe_api.summary import TargetState
from lathe_cli import texts
from lathe_cli.cluster import Cluster, ClusterError, Json, NotThereError, chosen
from lathe_cli.revisiondiff import changes
from lathe_operator.plan.observed import Observed, dig, name_of
from lathe_operator.plan.resolve import RefusalError, parse, resolve
from lathe_operator.plan.revision import hash_of
from lathe_operator.settings import Settings

PARTS: Final = ("model", "data", "objective", "gates", "targets", "seed", "store")
IN_PLACE: Final = ("replicas", "resources")
"""Of a target's serving: belong to what runs now, not to a revision."""
GITOPS: Final = {
    "Argo CD": ("argocd.argoproj.io/tracking-id", "argocd.argoproj.io/instance"),
    "Flux": ("kustomize.toolkit.fluxcd.io/name", "helm.toolkit.fluxcd.io/name"),
}


def rollback(options: argparse.Namespace) -> int:
    """Go back to an earlier revision; exit status.

    Raises:
        ClusterError: there is nothing to go back to, or the cluster refuses.
    """
    cluster = Cluster(options.namespace, options.context)
    model = cluster.model(options.name)
    revisions = cluster.revisions(options.name)
    revision = chosen(revisions, options.to) if options.to else previous(model, revisions)
    name = name_of(revision)
    observed, generation = dig(model, "status", "observedRevision"), dig(model, "status", "observedGeneration")
    if name == observed and generation == dig(model, "metadata", "generation"):
        print(f"{options.name} asks for {name} already")
        return 0
    spec = spec_of(model, revision)
    for line in changes(model["spec"], spec):
        print(texts.printable(f"  {line}"))
    if options.dry_run:
        print(f"{options.name} would ask for {name} again; nothing is changed")
        return 0
    cluster.replace_spec(model, spec)
    print(f"{options.name} asks for {name} again; to follow it: kubectl get om {options.name} -w")
    for line in _warnings(model):
        print(line)
    return 0


def previous(model: Json, revisions: list[Json]) -> Json:
    """The revision to go back to by default.

    That is the one which serves, where the newest one does not (yet); else the newest one before it that was built.

    Raises:
        NotThereError: there is none.
    """
    observed, serving = dig(model, "status", "observedRevision"), dig(model, "status", "servingRevision")
    names = [name_of(r) for r in revisions]
    if serving != observed and serving in names:
        return revisions[names.index(serving)]
    earlier = revisions[: names.index(observed)] if observed in names else revisions
    later = revisions[names.index(observed) + 1 :] if observed in names else []
    # From the oldest one there is no way back but to those that were left by going back.
    for candidate in (*reversed(earlier), *reversed(later)):
        if any(t.get("state") == TargetState.BUILT for t in dig(candidate, "status", "targets", default=[])):
            return candidate
    found = ", ".join(names) or "none"
    raise NotThereError(f"{name_of(model)} has no other revision that was built. Its revisions: {found}")


def spec_of(model: Json, revision: Json) -> Json:
    """The model's spec with everything that decides the result taken from a revision.

    Replicas, resources and pools of targets that are still there stay as they are.

    Raises:
        ClusterError: the spec would not lead to that revision, or does not fit the parts that stay.
    """
    wanted: Json = revision["spec"]
    spec = {key: value for key, value in model["spec"].items() if key not in PARTS}
    spec |= {key: wanted[key] for key in PARTS if key in wanted}
    spec["recipe"] = {"stages": wanted["stages"]}
    now = {t["name"]: t for t in model["spec"]["targets"]}
    spec["targets"] = [_in_place(t, now.get(t["name"])) for t in wanted["targets"]]
    value = {key: model[key] for key in ("apiVersion", "kind", "metadata")} | {"spec": spec}
    try:
        found = hash_of(resolve(parse(value), Observed(value), Settings()))
    except RefusalError as error:
        told = f"what {name_of(revision)} was made of does not fit the rest of the spec now: {error.message}"
        raise ClusterError(told) from error
    if found != wanted["hash"]:
        raise ClusterError(
            f"ModelRevision {name_of(revision)} was made by a version of Lathe that read its spec differently "
            f"({found}, not {wanted['hash']}). Apply the document that it was made of again"
        )
    return spec


def _in_place(wanted: Json, now: Json | None) -> Json:
    if now is None:
        return wanted
    found = {key: value for key, value in wanted.items() if key != "pool"}
    if "pool" in now:
        found["pool"] = now["pool"]
    serving: Json = {k: v for k, v in wanted.get("serving", {}).items() if k not in IN_PLACE}
    serving |= {k: now["serving"][k] for k in IN_PLACE if k in now.get("serving", {})}
    return {**found, "serving": serving} if serving else {k: v for k, v in found.items() if k != "serving"}


def _warnings(model: Json) -> list[str]:
    marks = {**dig(model, "metadata", "labels", default={}), **dig(model, "metadata", "annotations", default={})}
    return [
        f"note: {tool} manages {name_of(model)} and may set it back: change the document in Git too"
        for tool, keys in GITOPS.items()
        if any(key in marks for key in keys)
    ]
