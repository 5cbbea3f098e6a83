"""What the operator is told once, at start: its own place, defaults for documents, images, additions to stage pods."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

Json = dict[str, Any]

PREFIX: Final = "LATHE_"


class SettingsError(Exception):
    """An environment variable cannot be used; the message names it and what to write."""


@dataclass(frozen=True)
class Settings:
    """Settings of one operator. Each is read from the environment variable `LATHE_<NAME>`."""

    operator_namespace: str = "lathe-system"
    """Namespace of the operator's own Lease."""
    store_uri: str | None = None
    """Store of documents that name none: `pvc://claim/path`, `s3://bucket/prefix`, ..."""
    files_uri: str | None = None
    """Where relative paths of documents start from, such as `pvc://claim/path`; without it they are refused."""
    optimizer_image: str = "lathe-optimizer:0.1.0"
    """Image of Jobs whose stages need torch."""
    optimizer_onnx_image: str = "lathe-optimizer-onnx:0.1.0"
    """Image of Jobs whose stages need none."""
    stage_volumes: tuple[Json, ...] = ()
    """Further `volumes` of stage pods (JSON list)."""
    stage_mounts: tuple[Json, ...] = ()
    """Further `volumeMounts` of their container (JSON list)."""
    stage_env: tuple[Json, ...] = ()
    """Further `env` of their container (JSON list)."""
    watch_namespaces: tuple[str, ...] = ()
    """Namespaces that are watched, separated by commas; none for all."""
    cluster_domain: str = "cluster.local"
    """Domain of the cluster's Services."""
    server_url: str = "http://{service}.{namespace}.svc.{domain}"
    """Where the servers of an InferenceService are asked what they serve; changed where the operator runs outside."""
    resync_seconds: float = 300.0
    """Every object is looked at again after this long, whatever the watches say."""


def from_environment(environment: Mapping[str, str]) -> Settings:
    """The settings that `LATHE_*` variables give; unset or empty ones keep their default.

    Raises:
        SettingsError: a variable that should hold a JSON list or a number does not.
    """

    def text(name: str) -> str | None:
        return environment.get(PREFIX + name) or None

    def objects(name: str) -> tuple[Json, ...]:
        try:
            value = json.loads(text(name) or "[]")
        except ValueError as error:
            raise SettingsError(f"{PREFIX}{name}: not JSON ({error}). Write a list of objects") from error
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise SettingsError(f"{PREFIX}{name}: not a list of objects. Write [{{...}}, ...]")
        return tuple(value)

    try:
        resync = float(text("RESYNC_SECONDS") or Settings.resync_seconds)
    except ValueError as error:
        raise SettingsError(f"{PREFIX}RESYNC_SECONDS: not a number. Write seconds, such as 300") from error
    return Settings(
        operator_namespace=text("OPERATOR_NAMESPACE") or Settings.operator_namespace,
        store_uri=text("STORE_URI"),
        files_uri=text("FILES_URI"),
        optimizer_image=text("OPTIMIZER_IMAGE") or Settings.optimizer_image,
        optimizer_onnx_image=text("OPTIMIZER_ONNX_IMAGE") or Settings.optimizer_onnx_image,
        stage_volumes=objects("STAGE_VOLUMES"),
        stage_mounts=objects("STAGE_MOUNTS"),
        stage_env=objects("STAGE_ENV"),
        watch_namespaces=tuple(n.strip() for n in (text("WATCH_NAMESPACES") or "").split(",") if n.strip()),
        cluster_domain=text("CLUSTER_DOMAIN") or Settings.cluster_domain,
        server_url=text("SERVER_URL") or Settings.server_url,
        resync_seconds=resync,
    )
