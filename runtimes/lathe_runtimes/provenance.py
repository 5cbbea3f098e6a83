"""Signed statements about published files: in-toto Statement v1 with SLSA provenance v1, in a DSSE envelope.

Specifications: https://in-toto.io/Statement/v1, https://slsa.dev/provenance/v1 and DSSE v1
(https://github.com/secure-systems-lab/dsse). Keys are Ed25519 (RFC 8032) or ECDSA on P-256 with SHA-256 (FIPS 186-5,
signatures in DER), as PEM files: PKCS #8 without a password for signing, SubjectPublicKeyInfo for verifying.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from lathe_runtimes.errors import InputError, LatheRuntimeError

ENVELOPE: Final = "provenance.dsse.json"
"""Name of the envelope in a model's folder."""
PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://slsa.dev/provenance/v1"
LARGEST: Final = 16 << 20
"""Bytes of an envelope: what is read before anything is known of it is bounded."""
_MAKE: Final = "Make one with `openssl genpkey -algorithm ed25519`"

Statement = dict[str, Any]


class ProvenanceError(LatheRuntimeError):
    """A file is not what was signed, or nothing was signed with the key."""


@dataclass(frozen=True)
class Verifier:
    """A public key."""

    key: ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey

    @property
    def key_id(self) -> str:
        """sha256 of the SubjectPublicKeyInfo in DER, in hexadecimal digits."""
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        return hashlib.sha256(self.key.public_bytes(serialization.Encoding.DER, form)).hexdigest()

    def accepts(self, signature: bytes, message: bytes) -> bool:
        """Whether the signature is this key's."""
        try:
            if isinstance(self.key, ed25519.Ed25519PublicKey):
                self.key.verify(signature, message)
            else:
                self.key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class Signer:
    """A private key."""

    key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey

    @property
    def verifier(self) -> Verifier:
        """The public key that belongs to it."""
        return Verifier(self.key.public_key())

    def sign(self, message: bytes) -> bytes:
        """A signature."""
        if isinstance(self.key, ed25519.Ed25519PrivateKey):
            return self.key.sign(message)
        return self.key.sign(message, ec.ECDSA(hashes.SHA256()))


def load_signer(path: Path, where: str) -> Signer:
    """The private key of a PEM file.

    Args:
        path: the file.
        where: flag or field that names it, for errors.

    Raises:
        InputError: it cannot be read, or holds no such key.
    """
    try:
        key = serialization.load_pem_private_key(_read_key(path, where), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(where, f"{path} holds no private key without a password ({error})", _MAKE) from error
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return Signer(key)
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        return Signer(key)
    raise InputError(where, f"{path} holds a key of another kind", f"Use Ed25519 or ECDSA on P-256. {_MAKE}")


def load_verifier(path: Path, where: str) -> Verifier:
    """The public key of a PEM file.

    Args:
        path: the file.
        where: flag or field that names it, for errors.

    Raises:
        InputError: it cannot be read, or holds no such key.
    """
    remedy = "Make one with `openssl pkey -in key.pem -pubout`"
    try:
        key = serialization.load_pem_public_key(_read_key(path, where))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(where, f"{path} holds no public key ({error})", remedy) from error
    if isinstance(key, ed25519.Ed25519PublicKey):
        return Verifier(key)
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return Verifier(key)
    raise InputError(where, f"{path} holds a key of another kind", f"Use Ed25519 or ECDSA on P-256. {remedy}")


def statement(subjects: Mapping[str, str], predicate: Mapping[str, Any]) -> Statement:
    """A statement about files.

    Args:
        subjects: `sha256:…` of each file, by path below the model's folder.
        predicate: SLSA provenance v1: `buildDefinition` and `runDetails`.
    """
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": n, "digest": {"sha256": d.removeprefix("sha256:")}} for n, d in sorted(subjects.items())],
        "predicateType": PREDICATE_TYPE,
        "predicate": dict(predicate),
    }


def seal(content: Statement, signer: Signer) -> bytes:
    """The signed envelope of a statement."""
    payload = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    signature = signer.sign(_authenticated(PAYLOAD_TYPE, payload))
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": signer.verifier.key_id, "sig": base64.b64encode(signature).decode()}],
    }
    return json.dumps(envelope).encode() + b"\n"


def opened(envelope: bytes, verifier: Verifier, where: str) -> Statement:
    """The statement in an envelope, once its signature has been verified.

    Raises:
        ProvenanceError: it is no such envelope, or not signed with this key.
    """
    try:
        value = json.loads(envelope)
        kind, payload = value["payloadType"], base64.b64decode(value["payload"], validate=True)
        signatures = [base64.b64decode(s["sig"], validate=True) for s in value["signatures"]]
    except (ValueError, KeyError, TypeError, binascii.Error, RecursionError) as error:
        raise ProvenanceError(f"{where}: no DSSE envelope. Publish the model again with --signing-key") from error
    message = _authenticated(str(kind), payload)
    if kind != PAYLOAD_TYPE or not any(verifier.accepts(s, message) for s in signatures):
        raise ProvenanceError(
            f"{where}: no valid signature of the key {verifier.key_id[:16]}…: it was changed after it was signed, or "
            "signed with another key. Use the public key of its publisher, or publish the model again"
        )
    # Only what the key has signed is looked into.
    try:
        found: Statement = json.loads(payload)
        right = found["_type"] == STATEMENT_TYPE and found["predicateType"] == PREDICATE_TYPE
        subjects_of(found)
    except (ValueError, KeyError, TypeError, RecursionError):
        right = False
    if not right:
        raise ProvenanceError(f"{where}: what is signed is no SLSA provenance v1. Publish the model again")
    return found


def subjects_of(content: Statement) -> dict[str, str]:
    """`sha256:…` of each file that a statement is about, by name."""
    return {str(s["name"]): f"sha256:{s['digest']['sha256']}" for s in content["subject"]}


def read_envelope(folder: Path) -> bytes:
    """The envelope in a model's folder.

    Raises:
        ProvenanceError: there is none, or it is too large.
    """
    path = folder / ENVELOPE
    try:
        with path.open("rb") as file:
            found = file.read(LARGEST + 1)
    except OSError as error:
        raise ProvenanceError(
            f"{folder}: not signed ({ENVELOPE}: {error.strerror}). Publish it with --signing-key"
        ) from error
    if len(found) > LARGEST:
        raise ProvenanceError(f"{path}: larger than {LARGEST} bytes. Publish the model again")
    return found


def check_folder(folder: Path, verifier: Verifier) -> Statement:
    """Verify the signature and every file of a model's folder; nothing may be missing, changed or added.

    Raises:
        ProvenanceError: as said.
    """
    content = opened(read_envelope(folder), verifier, str(folder / ENVELOPE))
    promised = subjects_of(content)
    present = digests(folder)
    for name in sorted(promised.keys() | present.keys()):
        compare(folder / name, present.get(name), promised.get(name))
    return content


def compare(path: Path, found: str | None, promised: str | None) -> None:
    """Refuse a file that is not as it was signed.

    Raises:
        ProvenanceError: as said.
    """
    if found == promised and found is not None:
        return
    what = "is missing" if found is None else "was not there" if promised is None else "was changed"
    told = f"found {found or 'nothing'}, signed {promised or 'nothing'}"
    raise ProvenanceError(f"{path} {what} when it was signed or since: {told}. Publish the model again")


def digests(folder: Path) -> dict[str, str]:
    """`sha256:…` of every file of a model's folder but its envelope, by path."""
    return {
        path.relative_to(folder).as_posix(): digest_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / ENVELOPE
    }


def digest_of(path: Path) -> str:
    """`sha256:…` of a file."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _authenticated(kind: str, payload: bytes) -> bytes:
    """What is signed: DSSE's pre-authentication encoding."""
    name = kind.encode()
    return b"DSSEv1 %d %b %d %b" % (len(name), name, len(payload), payload)


def _read_key(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(where, f"{path} cannot be read ({error.strerror})", "Name a PEM file") from error
