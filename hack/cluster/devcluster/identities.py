"""Certificates and kubeconfig files of the cluster's components."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

_RSA_BITS: Final = 2048
_F4: Final = 65537


@dataclass(frozen=True)
class Identities:
    """Files of one cluster's certificate authority."""

    folder: Path
    server: str
    """URL of the API server."""
    authority: trustme.CA

    @property
    def ca(self) -> Path:
        """Certificate of the authority."""
        return self.folder / "ca.crt"

    def certificate(self, name: str, *hosts: str, common_name: str | None = None, group: str | None = None) -> None:
        """Write `<name>.crt` and `<name>.key`, good for servers of these hosts and for a client of this name."""
        # An empty list of alternative names would be critical, and the API server refuses that.
        alternatives = hosts or (f"{name}.invalid",)
        issued = self.authority.issue_cert(*alternatives, common_name=common_name or name, organization_name=group)
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        (self.folder / f"{name}.crt").write_bytes(chain)
        (self.folder / f"{name}.key").write_bytes(issued.private_key_pem.bytes())

    def client(self, name: str, user: str, group: str | None = None) -> Path:
        """A kubeconfig of a user with a certificate."""
        self.certificate(name, common_name=user, group=group)
        pair = {"client-certificate": str(self.folder / f"{name}.crt"), "client-key": str(self.folder / f"{name}.key")}
        return self._kubeconfig(name, pair)

    def bearer(self, name: str, token: str) -> Path:
        """A kubeconfig of a service account's token."""
        return self._kubeconfig(name, {"token": token})

    def _kubeconfig(self, name: str, user: dict[str, str]) -> Path:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": self.server, "certificate-authority": str(self.ca)}}],
            "users": [{"name": "u", "user": user}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path = self.folder / f"{name}.kubeconfig"
        path.write_text(json.dumps(config))
        return path


def create(folder: Path, server: str) -> Identities:
    """A new authority, and the key pair that service account tokens are signed with (`sa.key`, `sa.pub`)."""
    folder.mkdir(parents=True, exist_ok=True)
    found = Identities(folder, server, trustme.CA())
    found.authority.cert_pem.write_to_path(str(found.ca))
    key = rsa.generate_private_key(public_exponent=_F4, key_size=_RSA_BITS)
    (folder / "sa.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    (folder / "sa.pub").write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM,
            serialization.PublicFormat.SubjectPublicKeyInfo,
        )
    )
    return found
