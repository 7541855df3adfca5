"""Evidence on paper: an in-toto statement in a DSSE envelope, signed with Ed25519, and verified.

`cryptography` is imported when a key is at hand, and not before: unsigned evidence needs none.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from deploy_gates import files
from deploy_gates.core.canonical import Json, JsonObject, short
from deploy_gates.core.errors import EnvelopeError
from deploy_gates.core.evidence import Evidence

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
ENVELOPE_MAX_BYTES = 16 << 20
SIGNATURES_MAX = 16
KEY_MAX_BYTES = 64 << 10


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicKey:
    """A key that is trusted, and the short name of it that signatures carry."""

    id: str
    key: Ed25519PublicKey


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivateKey:
    """A key to sign with."""

    id: str
    key: Ed25519PrivateKey


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyPair:
    """A new key, as the two PEM texts to keep: one secret, one for everybody."""

    id: str
    private_pem: str
    public_pem: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """Evidence that could be read, and the id of the trusted key that signed it, if one did."""

    evidence: Evidence
    signed_by: str | None


def write(path: Path, evidence: Evidence, key: PrivateKey | None = None) -> None:
    """Put the envelope of `evidence` at `path`, whole or not at all; signed if there is a `key`."""
    files.replace(path, enclose(evidence, key))


def enclose(evidence: Evidence, key: PrivateKey | None = None) -> bytes:
    """The envelope of `evidence`."""
    statement = evidence.to_statement()
    payload = json.dumps(statement, allow_nan=False, sort_keys=True).encode()
    signatures: list[Json] = []
    if key is not None:
        signature = key.key.sign(pre_authentication_encoding(PAYLOAD_TYPE, payload))
        signatures.append({"keyid": key.id, "sig": base64.b64encode(signature).decode()})
    envelope: JsonObject = {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode(),
        "signatures": signatures,
    }
    return (json.dumps(envelope, indent=2) + "\n").encode()


def verify(
    source: Path | bytes,
    public_keys: Sequence[PublicKey],
    *,
    require_signature: bool,
    digest: str = "",
) -> Verified:
    """The evidence in an envelope, if it can be trusted; `EnvelopeError` says why it cannot.

    A signature that does not fit is refused also where none is required. With `digest`, the evidence has to
    be for exactly that.
    """
    name, content = (str(source), read(source)) if isinstance(source, Path) else ("the envelope", source)
    envelope = _parse(content, name)
    payload_type = envelope.get("payloadType")
    if payload_type != PAYLOAD_TYPE:
        raise EnvelopeError(
            f"{name} is of payloadType {json.dumps(payload_type)[:100]}, not {json.dumps(PAYLOAD_TYPE)}"
        )
    payload = _unbase64(envelope.get("payload"), f"{name}: the payload")
    signed_by = _signed_by(envelope, payload, public_keys, name)
    if require_signature and signed_by is None:
        _refuse_unsigned(envelope, name)
    evidence = Evidence.from_statement(_parse(payload, f"{name}: the payload"))
    if digest and evidence.digest != digest:
        raise EnvelopeError(f"{name} is evidence for {short(evidence.digest)}, not for {short(digest)}")
    return Verified(evidence=evidence, signed_by=signed_by)


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """What is signed, by DSSE v1: the type and the payload, each behind its length."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


# --- Keys ---------------------------------------------------------------------------------------


def generate() -> KeyPair:
    """A new Ed25519 key pair."""
    _need_cryptography()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    return KeyPair(
        id=_key_id(key.public_key()),
        private_pem=key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode(),
        public_pem=key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode(),
    )


def configured_key(root: Path, *, file: str, variable: str, environ: Mapping[str, str]) -> PrivateKey | None:
    """The key to sign with: from the environment `variable` if it is set, else from `file`; `None` for none.

    A key that is configured and cannot be used is an error: unsigned evidence would look like a choice.
    """
    if variable and environ.get(variable):
        return private_key(environ[variable].encode(), f"the environment variable {variable}")
    if file:
        return private_key(read(root / file, KEY_MAX_BYTES), file)
    if variable:
        raise EnvelopeError(
            f"evidence is to be signed with the key in {variable}, which is not set",
            hint=f"set {variable}, or take `key_env` out of [tool.deploy_gates.evidence]",
        )
    return None


def private_key(pem: bytes, name: str) -> PrivateKey:
    """The Ed25519 private key in `pem`; `name` says where it is from."""
    _need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise EnvelopeError(f"{name} holds a key behind a password; it has to be without one") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise EnvelopeError(f"{name} holds no private key in PEM") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise EnvelopeError(f"{name} holds a private key that is not Ed25519")
    return PrivateKey(id=_key_id(key.public_key()), key=key)


def public_keys(root: Path, names: Sequence[str]) -> tuple[PublicKey, ...]:
    """The trusted keys in those PEM files, relative to `root`."""
    return tuple(public_key(read(root / name, KEY_MAX_BYTES), name) for name in names)


def public_key(pem: bytes, name: str) -> PublicKey:
    """The Ed25519 public key in `pem`; `name` says where it is from."""
    _need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise EnvelopeError(f"{name} holds no public key in PEM") from error
    if not isinstance(key, Ed25519PublicKey):
        raise EnvelopeError(f"{name} holds a public key that is not Ed25519")
    return PublicKey(id=_key_id(key), key=key)


def _key_id(key: Ed25519PublicKey) -> str:
    from cryptography.hazmat.primitives import serialization

    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()[:16]


def _need_cryptography() -> None:
    try:
        import cryptography  # noqa: F401  # asked for by everything that touches a key
    except ImportError as error:
        raise EnvelopeError(
            "a key is configured, and the package that signs and verifies is not installed",
            hint="`pip install 'pytest-deploy-gates[sign]'`",
        ) from error


# --- Reading ------------------------------------------------------------------------------------


def _signed_by(envelope: JsonObject, payload: bytes, trusted: Sequence[PublicKey], name: str) -> str | None:
    """The id of the trusted key that signed; `None` if there is no signature, or no key to check it with."""
    signatures = envelope.get("signatures")
    if not isinstance(signatures, list) or len(signatures) > SIGNATURES_MAX:
        raise EnvelopeError(f"{name} has no list of at most {SIGNATURES_MAX} signatures")
    if not signatures or not trusted:
        return None
    from cryptography.exceptions import InvalidSignature

    signed = pre_authentication_encoding(PAYLOAD_TYPE, payload)
    claimed: list[str] = []
    for each in signatures:
        if not isinstance(each, dict):
            raise EnvelopeError(f"{name} has a signature that is not an object")
        signature = _unbase64(each.get("sig"), f"{name}: a signature")
        claimed.append(str(each.get("keyid", ""))[:100])
        for public in trusted:  # the key id is a hint that nobody signed: it chooses nothing
            try:
                public.key.verify(signature, signed)
            except InvalidSignature:
                continue
            return public.id
    known = {public.id for public in trusted}.intersection(claimed)
    if known:
        raise EnvelopeError(
            f"{name} was changed after {min(known)} signed it: the signature does not fit the payload"
        )
    raise EnvelopeError(
        f"{name} is signed by {', '.join(claimed)}, and trusted are {', '.join(key.id for key in trusted)}",
        hint="add its public key to `public_keys` in [tool.deploy_gates.evidence], if it is yours",
    )


def _refuse_unsigned(envelope: JsonObject, name: str) -> NoReturn:
    if envelope.get("signatures"):
        raise EnvelopeError(
            f"{name} is signed, and there is no trusted key to check the signature with",
            hint="name one in `public_keys` in [tool.deploy_gates.evidence]",
        )
    raise EnvelopeError(
        f"{name} is not signed, and a signature is required",
        hint="set `key_file` or `key_env` in [tool.deploy_gates.evidence] where the gates run",
    )


def read(path: Path, max_bytes: int = ENVELOPE_MAX_BYTES) -> bytes:
    """The bytes of a file. `EnvelopeError` if it cannot be read, or is too large to be an envelope."""
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise EnvelopeError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(content) > max_bytes:
        raise EnvelopeError(f"{path} is larger than {max_bytes:,} bytes")
    return content


def _parse(content: bytes, name: str) -> JsonObject:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise EnvelopeError(f"{name} is not JSON") from error
    if not isinstance(value, dict):
        raise EnvelopeError(f"{name} is no JSON object")
    return value


def _unbase64(value: Json, name: str) -> bytes:
    """The bytes; the standard and the URL-safe alphabet are both in use."""
    try:
        if not isinstance(value, str):
            raise ValueError
        return base64.b64decode(value.translate(str.maketrans("-_", "+/")), validate=True)
    except ValueError as error:
        raise EnvelopeError(f"{name} is not base64") from error
