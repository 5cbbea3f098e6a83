"""Signed statements: what was signed is accepted, and nothing else."""

import base64
import json

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from lathe_runtimes import provenance
from lathe_runtimes.errors import InputError
from lathe_runtimes.provenance import ProvenanceError

KINDS = {"ed25519": ed25519.Ed25519PrivateKey.generate, "p256": lambda: ec.generate_private_key(ec.SECP256R1())}


def write_pair(folder, key):
    """PEM files of a pair of keys."""
    folder.mkdir(exist_ok=True)
    none = serialization.NoEncryption()
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(key.private_bytes(pem, pkcs8, none))
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    (folder / "pub.pem").write_bytes(key.public_key().public_bytes(pem, spki))
    return folder / "key.pem", folder / "pub.pem"


@pytest.fixture(params=KINDS)
def pair(request, tmp_path):
    private, public = write_pair(tmp_path / "keys", KINDS[request.param]())
    return provenance.load_signer(private, "--signing-key"), provenance.load_verifier(public, "--key")


@pytest.fixture
def model(tmp_path, pair):
    """A signed model folder."""
    folder = tmp_path / "model"
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text("name: 'm'")
    (folder / "1" / "model.onnx").write_bytes(b"weights")
    content = provenance.statement(provenance.digests(folder), {"buildDefinition": {}, "runDetails": {}})
    (folder / provenance.ENVELOPE).write_bytes(provenance.seal(content, pair[0]))
    return folder


def test_what_was_signed_is_accepted(model, pair):
    content = provenance.check_folder(model, pair[1])
    assert set(provenance.subjects_of(content)) == {"config.pbtxt", "1/model.onnx"}
    assert content["predicateType"] == "https://slsa.dev/provenance/v1"


def change_envelope(model, change):
    path = model / provenance.ENVELOPE
    envelope = json.loads(path.read_bytes())
    change(envelope)
    path.write_text(json.dumps(envelope))


def forged(envelope):
    payload = json.loads(base64.b64decode(envelope["payload"]))
    payload["subject"][0]["digest"]["sha256"] = "0" * 64
    envelope["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()


DAMAGES = {
    "a changed file": (lambda m: (m / "1" / "model.onnx").write_bytes(b"other"), "was changed"),
    "a missing file": (lambda m: (m / "1" / "model.onnx").unlink(), "is missing"),
    "an added file": (lambda m: (m / "1" / "model.py").write_text("evil"), "was not there"),
    "no envelope": (lambda m: (m / provenance.ENVELOPE).unlink(), "not signed"),
    "no JSON": (lambda m: (m / provenance.ENVELOPE).write_text("{"), "no DSSE envelope"),
    "too large": (lambda m: (m / provenance.ENVELOPE).write_bytes(b" " * (provenance.LARGEST + 1)), "larger than"),
    "a forged statement": (lambda m: change_envelope(m, forged), "no valid signature"),
    "another type": (lambda m: change_envelope(m, lambda e: e.update(payloadType="text/plain")), "no valid signature"),
    "no signature": (lambda m: change_envelope(m, lambda e: e.update(signatures=[])), "no valid signature"),
}


@pytest.mark.parametrize(("damage", "told"), DAMAGES.values(), ids=DAMAGES)
def test_everything_else_is_refused(model, pair, damage, told):
    damage(model)
    with pytest.raises(ProvenanceError, match=told):
        provenance.check_folder(model, pair[1])


@pytest.mark.parametrize("kind", KINDS)
def test_another_key_is_refused(model, tmp_path, kind):
    _, public = write_pair(tmp_path / "other", KINDS[kind]())
    with pytest.raises(ProvenanceError, match="no valid signature of the key"):
        provenance.check_folder(model, provenance.load_verifier(public, "--key"))


def test_a_signed_text_that_is_no_provenance_is_refused(pair):
    envelope = provenance.seal({"_type": "something else"}, pair[0])
    with pytest.raises(ProvenanceError, match="no SLSA provenance"):
        provenance.opened(envelope, pair[1], "here")


def test_the_signed_bytes_are_those_of_the_specification():
    assert provenance._authenticated("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


@pytest.mark.parametrize("load", [provenance.load_signer, provenance.load_verifier], ids=["private", "public"])
def test_keys_that_cannot_be_used_are_told_of(tmp_path, load):
    private, public = write_pair(tmp_path, rsa.generate_private_key(65537, 2048))
    own = private if load is provenance.load_signer else public
    with pytest.raises(InputError, match="a key of another kind"):
        load(own, "--flag")
    with pytest.raises(InputError, match=r"--flag: .* cannot be read"):
        load(tmp_path / "missing.pem", "--flag")
    (tmp_path / "text.pem").write_text("hello")
    with pytest.raises(InputError, match="holds no"):
        load(tmp_path / "text.pem", "--flag")
