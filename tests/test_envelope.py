"""Evidence on paper is trusted if it is whole and signed by a trusted key, and refused otherwise."""

from __future__ import annotations

import base64
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from deploy_gates import envelope
from deploy_gates.core.canonical import JsonObject
from deploy_gates.core.errors import EnvelopeError, WorkspaceError
from deploy_gates.core.evidence import Evidence, Provenance, seal
from deploy_gates.core.gate import GateName, GateResult, Verdict
from deploy_gates.envelope import PrivateKey, PublicKey
from deploy_gates.testing import NOW, a_change, a_snapshot


def evidence(verdict: Verdict = Verdict.PASS) -> Evidence:
    provenance = Provenance(
        policy_digest="b" * 64,
        price_source="genai-prices 0.2.3",
        commit="0d4be12",
        is_dirty=True,
        tool_version="0.1.0",
        started_at=NOW,
        finished_at=NOW + timedelta(seconds=44),
    )
    results = [
        GateResult(gate=gate, verdict=verdict, measured=("−0.6 pt 票",), figures={"low_pt": -0.6})
        for gate in GateName
    ]
    made = seal(a_change(a_snapshot()), results, (), provenance)
    assert made is not None
    return made


def keys() -> tuple[PrivateKey, PublicKey]:
    pair = envelope.generate()
    return (
        envelope.private_key(pair.private_pem.encode(), "ci.pem"),
        envelope.public_key(pair.public_pem.encode(), "ci.pub"),
    )


# --- Writing and reading ------------------------------------------------------------------------


def test_signed_evidence_comes_back_equal_with_the_id_of_its_key(tmp_path: Path) -> None:
    private, public = keys()
    path = tmp_path / "evidence" / "8a41d07.json"

    envelope.write(path, evidence(), private)

    verified = envelope.verify(path, [public], require_signature=True, digest=evidence().digest)
    assert verified.evidence == evidence()
    assert verified.signed_by == public.id == private.id


def test_unsigned_evidence_is_read_where_no_signature_is_required(tmp_path: Path) -> None:
    _, public = keys()
    path = tmp_path / "8a41d07.json"

    envelope.write(path, evidence())

    verified = envelope.verify(path, [public], require_signature=False)
    assert verified.evidence == evidence()
    assert verified.signed_by is None


def test_one_trusted_key_among_several_is_enough() -> None:
    private, public = keys()
    others = [keys()[1] for _ in range(3)]

    verified = envelope.verify(
        envelope.enclose(evidence(), private), [*others, public], require_signature=True
    )

    assert verified.signed_by == public.id


def test_the_key_id_decides_nothing_for_nobody_signed_it() -> None:
    private, public = keys()
    sealed = json.loads(envelope.enclose(evidence(), private))
    sealed["signatures"][0]["keyid"] = "of somebody else"

    verified = envelope.verify(json.dumps(sealed).encode(), [public], require_signature=True)

    assert verified.signed_by == public.id


def test_the_url_safe_alphabet_is_read_too() -> None:
    private, public = keys()
    sealed = json.loads(envelope.enclose(evidence(), private))
    for holder, key in ((sealed, "payload"), (sealed["signatures"][0], "sig")):
        holder[key] = base64.urlsafe_b64encode(base64.b64decode(holder[key])).decode()

    verified = envelope.verify(json.dumps(sealed).encode(), [public], require_signature=True)

    assert verified.signed_by == public.id


def test_key_id_and_signature_are_those_that_openssl_makes() -> None:
    seed = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    key = envelope.private_key(_pem(seed), "seed.pem")

    signature = key.key.sign(
        envelope.pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
    )

    assert key.id == "a050837d85070582"  # openssl pkey -in seed.pem -pubout -outform DER | sha256sum
    assert base64.b64encode(signature) == (  # openssl pkeyutl -sign -rawin
        b"FDBuhhGZHrQaLnHA+xYDozNBKtORTT3EFhGJXczChh8PCqB471sDESzy2zguMGQOk8D+Ij2hb/eoUkqxc/qgCg=="
    )


# --- Refusing -----------------------------------------------------------------------------------


def _edited(sealed: bytes, edit: Callable[[JsonObject], None]) -> bytes:
    raw = json.loads(sealed)
    edit(raw)
    return json.dumps(raw).encode()


def _payload(edit: Callable[[JsonObject], None]) -> Callable[[JsonObject], None]:
    def edit_payload(raw: JsonObject) -> None:
        statement = json.loads(base64.b64decode(str(raw["payload"])))
        edit(statement)
        raw["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()

    return edit_payload


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda raw: raw.update(payloadType="text/plain"), 'is of payloadType "text/plain", not'),
        (lambda raw: raw.pop("payloadType"), "is of payloadType null, not"),
        (lambda raw: raw.update(payload="{}"), "the payload is not base64"),
        (lambda raw: raw.update(payload=7), "the payload is not base64"),
        (lambda raw: raw.update(signatures=None), "no list of at most 16 signatures"),
        (lambda raw: raw.update(signatures=[{}] * 17), "no list of at most 16 signatures"),
        (lambda raw: raw.update(signatures=["x"]), "a signature that is not an object"),
        (lambda raw: raw.update(signatures=[{"sig": "*"}]), "a signature is not base64"),
        (lambda raw: raw.update(signatures=[]), "is not signed, and a signature is required"),
        (_payload(lambda statement: statement.update(subject=[])), "was changed after [0-9a-f]{16} signed"),
    ],
)
def test_an_envelope_that_was_touched_is_refused_in_one_sentence(
    edit: Callable[[JsonObject], None], says: str
) -> None:
    private, public = keys()
    touched = _edited(envelope.enclose(evidence(), private), edit)

    with pytest.raises(EnvelopeError, match=says):
        envelope.verify(touched, [public], require_signature=True)


def test_every_flipped_byte_of_a_signed_payload_is_noticed() -> None:
    private, public = keys()
    sealed = json.loads(envelope.enclose(evidence(), private))
    payload = base64.b64decode(sealed["payload"])

    trusted = 0
    for at in range(0, len(payload), 37):
        touched = bytearray(payload)
        touched[at] ^= 1
        sealed["payload"] = base64.b64encode(bytes(touched)).decode()
        try:
            envelope.verify(json.dumps(sealed).encode(), [public], require_signature=False)
        except EnvelopeError:
            continue
        trusted += 1

    assert trusted == 0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "is no JSON object"),
        (b"{}", "is of payloadType null"),
    ],
    ids=["empty", "binary", "bottomless", "list", "object"],
)
def test_what_is_no_envelope_is_refused(content: bytes, says: str) -> None:
    with pytest.raises(EnvelopeError, match=says):
        envelope.verify(content, (), require_signature=False)


def test_a_key_that_nobody_trusts_signs_nothing() -> None:
    private, _ = keys()
    _, public = keys()

    with pytest.raises(EnvelopeError, match=f"is signed by {private.id}, and trusted are {public.id}"):
        envelope.verify(envelope.enclose(evidence(), private), [public], require_signature=False)


def test_a_signature_that_nobody_can_check_is_none() -> None:
    private, _ = keys()
    sealed = envelope.enclose(evidence(), private)

    assert envelope.verify(sealed, (), require_signature=False).signed_by is None
    with pytest.raises(EnvelopeError, match="there is no trusted key to check the signature with"):
        envelope.verify(sealed, (), require_signature=True)


def test_evidence_for_another_digest_is_refused() -> None:
    other = replace(evidence(), digest="d" * 64)

    with pytest.raises(EnvelopeError, match=r"is evidence for ddddddd, not for [0-9a-f]{7}"):
        envelope.verify(envelope.enclose(other), (), require_signature=False, digest=evidence().digest)


def test_a_statement_of_another_kind_is_refused_though_well_signed() -> None:
    private, public = keys()
    statement = evidence().to_statement() | {"predicateType": "https://slsa.dev/provenance/v1"}
    payload = json.dumps(statement).encode()
    signature = private.key.sign(envelope.pre_authentication_encoding(envelope.PAYLOAD_TYPE, payload))
    sealed = {
        "payloadType": envelope.PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": private.id, "sig": base64.b64encode(signature).decode()}],
    }

    with pytest.raises(EnvelopeError, match="unknown predicateType"):
        envelope.verify(json.dumps(sealed).encode(), [public], require_signature=True)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvelopeError, match=r"8a41d07\.json cannot be read: No such file"):
        envelope.verify(tmp_path / "8a41d07.json", (), require_signature=False)


def test_a_file_beyond_all_bounds_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(envelope.ENVELOPE_MAX_BYTES + 1)

    with pytest.raises(EnvelopeError, match="is larger than"):
        envelope.verify(path, (), require_signature=False)


# --- Disks --------------------------------------------------------------------------------------


def test_a_full_disk_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "8a41d07.json"
    path.write_text("what was there")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(WorkspaceError, match=r"8a41d07\.json cannot be written: .*; nothing was changed"):
            envelope.write(path, evidence())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert path.read_text() == "what was there"
    assert os.listdir(tmp_path) == ["8a41d07.json"]


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "evidence").write_text("a file where a folder should be")

    with pytest.raises(WorkspaceError, match=r"evidence/8a41d07\.json cannot be written"):
        envelope.write(tmp_path / "evidence" / "8a41d07.json", evidence())


def test_writing_again_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "8a41d07.json"
    envelope.write(path, evidence(Verdict.FAIL))

    envelope.write(path, evidence())

    assert envelope.verify(path, (), require_signature=False).evidence == evidence()
    assert os.listdir(tmp_path) == ["8a41d07.json"]


# --- Keys ---------------------------------------------------------------------------------------


def test_a_key_comes_from_the_environment_before_the_file(tmp_path: Path) -> None:
    from_file, from_environment = envelope.generate(), envelope.generate()
    (tmp_path / "ci.pem").write_text(from_file.private_pem)
    environ = {"GATES_KEY": from_environment.private_pem}

    def configured(file: str, variable: str) -> str:
        key = envelope.configured_key(tmp_path, file=file, variable=variable, environ=environ)
        return key.id if key else ""

    assert configured("ci.pem", "GATES_KEY") == from_environment.id
    assert configured("ci.pem", "NOT_SET") == from_file.id
    assert configured("ci.pem", "") == from_file.id
    assert configured("", "") == ""


def test_a_configured_key_that_is_not_there_is_an_error_and_not_unsigned_evidence(tmp_path: Path) -> None:
    with pytest.raises(EnvelopeError, match="GATES_KEY, which is not set"):
        envelope.configured_key(tmp_path, file="", variable="GATES_KEY", environ={})
    with pytest.raises(EnvelopeError, match=r"ci\.pem cannot be read"):
        envelope.configured_key(tmp_path, file="ci.pem", variable="", environ={})


def test_trusted_keys_are_read_from_their_files(tmp_path: Path) -> None:
    pairs = [envelope.generate(), envelope.generate()]
    for number, pair in enumerate(pairs):
        (tmp_path / f"{number}.pub").write_text(pair.public_pem)

    trusted = envelope.public_keys(tmp_path, ["0.pub", "1.pub"])

    assert [key.id for key in trusted] == [pair.id for pair in pairs]


def test_a_key_of_another_kind_is_refused_by_name() -> None:
    other = _pem(X25519PrivateKey.generate())
    locked = _pem(Ed25519PrivateKey.generate(), serialization.BestAvailableEncryption(b"secret"))

    with pytest.raises(EnvelopeError, match=r"ci\.pem holds a private key that is not Ed25519"):
        envelope.private_key(other, "ci.pem")
    with pytest.raises(EnvelopeError, match=r"ci\.pem holds a key behind a password"):
        envelope.private_key(locked, "ci.pem")
    with pytest.raises(EnvelopeError, match=r"ci\.pem holds no private key in PEM"):
        envelope.private_key(b"not a key", "ci.pem")
    with pytest.raises(EnvelopeError, match=r"ci\.pub holds no public key in PEM"):
        envelope.public_key(locked, "ci.pub")


def _pem(
    key: Ed25519PrivateKey | X25519PrivateKey,
    encryption: serialization.KeySerializationEncryption | None = None,
) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        encryption or serialization.NoEncryption(),
    )


UNSIGNED_WITHOUT_CRYPTOGRAPHY = """
import sys
sys.modules["cryptography"] = None  # as if it were not installed
from deploy_gates import envelope
from deploy_gates.core.errors import EnvelopeError
try:
    envelope.private_key(b"", "ci.pem")
except EnvelopeError as error:
    print(error)
"""


def test_without_cryptography_the_error_says_what_to_install() -> None:
    run = subprocess.run(
        [sys.executable, "-c", UNSIGNED_WITHOUT_CRYPTOGRAPHY], capture_output=True, text=True, check=True
    )

    assert run.stdout == (
        "a key is configured, and the package that signs and verifies is not installed\n\n"
        "hint: `pip install 'pytest-deploy-gates[sign]'`\n"
    )


def test_unsigned_evidence_imports_no_cryptography() -> None:
    code = "import sys, deploy_gates.envelope; print([n for n in sys.modules if 'cryptography' in n])"

    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert run.stdout == "[]\n"
