"""Container images made on the spot, as docker archives that containerd imports.

One holds a single static program; the other nothing but a skeleton into which pods mount folders of the node, so that
an environment of several gigabytes is used where it lies instead of being packed.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

PAUSE: Final = "docker.io/local/pause:1"
HOST: Final = "example.local/host:1"
"""Pods mount `/usr` of the node, and what they need of it besides."""
_LINKS: Final = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
_FOLDERS: Final = ("usr", "etc", "proc", "sys", "dev", "run", "var", "mnt", "home", "root", "opt", "work")
_USER: Final = 65532


def pause(program: Path, target: Path) -> None:
    """The image of a pod's sandbox."""
    layer = _Layer()
    layer.file("pause", program.read_bytes(), 0o755)
    _write(target, PAUSE, layer, {"Entrypoint": ["/pause"]})


def host(target: Path, path: Sequence[str]) -> None:
    """The skeleton.

    Args:
        target: of the archive.
        path: folders of programs, in the order of `$PATH`.
    """
    layer = _Layer()
    for name in _FOLDERS:
        layer.folder(name, 0o755)
    layer.folder("tmp", 0o1777)
    for name, where in _LINKS.items():
        layer.link(name, where)
    users = f"root:x:0:0:root:/root:/bin/sh\nlathe:x:{_USER}:{_USER}:lathe:/tmp:/bin/sh\n"
    layer.file("etc/passwd", users.encode(), 0o644)
    layer.file("etc/group", f"root:x:0:\nlathe:x:{_USER}:\n".encode(), 0o644)
    layer.file("etc/nsswitch.conf", b"hosts: files dns\n", 0o644)
    _write(target, HOST, layer, {"Env": [f"PATH={':'.join(path)}", "PYTHONDONTWRITEBYTECODE=1"]})


class _Layer:
    """An uncompressed tar with everything owned by root and of no time, so that the same content is the same layer."""

    def __init__(self) -> None:
        self._data = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._data, mode="w")  # noqa: SIM115 (closed by `content`)

    def file(self, name: str, content: bytes, mode: int) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(content), mode
        self._tar.addfile(info, io.BytesIO(content))

    def folder(self, name: str, mode: int) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.mode = tarfile.DIRTYPE, mode
        self._tar.addfile(info)

    def link(self, name: str, where: str) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = tarfile.SYMTYPE, where
        self._tar.addfile(info)

    def content(self) -> bytes:
        self._tar.close()
        return self._data.getvalue()


def _write(target: Path, name: str, layer: _Layer, config: Mapping[str, object]) -> None:
    content = layer.content()
    digest = hashlib.sha256(content).hexdigest()
    described = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
            "history": [{"created_by": "devcluster"}],
        }
    ).encode()
    identity = hashlib.sha256(described).hexdigest()
    manifest = [{"Config": f"{identity}.json", "RepoTags": [name], "Layers": [f"{digest}/layer.tar"]}]
    archive = _Layer()
    archive.file(f"{identity}.json", described, 0o644)
    archive.file("manifest.json", json.dumps(manifest).encode(), 0o644)
    archive.file(f"{digest}/layer.tar", content, 0o644)
    target.write_bytes(archive.content())
