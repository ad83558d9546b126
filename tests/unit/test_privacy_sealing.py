"""Sealing, key rotation and keyed hashes."""

import base64
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from shared.contracts.upgrade_tasks import SealedText
from shared.privacy.sealing import SealBroken, Vault
from shared.privacy.settings import PrivacySettings

OLD, NEW = os.urandom(32), os.urandom(32)
OWNER = {"tenant_id": "t1", "subject_id": "u1"}
vault = Vault([OLD])


@given(st.text())
def test_sealed_text_can_be_opened(text: str) -> None:
    assert vault.open(vault.seal(text, **OWNER), **OWNER) == text


def test_sealing_twice_yields_different_ciphertexts() -> None:
    first, second = vault.seal("x", **OWNER), vault.seal("x", **OWNER)
    assert first.nonce != second.nonce
    assert first.ciphertext != second.ciphertext
    assert len(base64.b64decode(first.nonce)) == 12


@pytest.mark.parametrize(
    "other",
    [
        {"tenant_id": "t2", "subject_id": "u1"},
        {"tenant_id": "t1", "subject_id": "u2"},
        {"tenant_id": "t1u", "subject_id": "1"},
    ],
)
def test_another_owner_cannot_open_it(other: dict[str, str]) -> None:
    with pytest.raises(SealBroken):
        vault.open(vault.seal("secret", **OWNER), **other)


def test_another_purpose_cannot_open_it() -> None:
    with pytest.raises(SealBroken):
        vault.open(vault.seal("secret", **OWNER), **OWNER, purpose="other")


def test_a_modified_seal_is_rejected_without_revealing_the_text() -> None:
    sealed = vault.seal("secret", **OWNER)
    flipped = bytearray(base64.b64decode(sealed.ciphertext))
    flipped[0] ^= 1
    for change in (
        {"ciphertext": base64.b64encode(flipped).decode()},
        {"nonce": "AAAA"},
        {"ciphertext": "%"},
        {"key_id": "0"},
    ):
        with pytest.raises(SealBroken) as error:
            vault.open(sealed.model_copy(update=change), **OWNER)
        assert "secret" not in str(error.value)


def test_a_new_key_in_front_encrypts_and_the_old_one_still_opens() -> None:
    before = vault.seal("old text", **OWNER)
    rotated = Vault([NEW, OLD])
    after = rotated.seal("new text", **OWNER)
    assert before.key_id != after.key_id
    assert rotated.open(before, **OWNER) == "old text"
    assert Vault([NEW]).open(after, **OWNER) == "new text"
    with pytest.raises(SealBroken):
        vault.open(after, **OWNER)


def test_hashes_survive_a_key_rotation() -> None:
    assert Vault([NEW, OLD]).user_ref("t1", "ann") == vault.user_ref("t1", "ann")
    assert Vault([NEW, OLD]).keyed_hash("body", "x") == vault.keyed_hash("body", "x")
    assert Vault([NEW]).keyed_hash("body", "x") != vault.keyed_hash("body", "x")


def test_hashes_differ_by_purpose_tenant_and_part_boundaries() -> None:
    hashes = {
        vault.keyed_hash("a", "bc"),
        vault.keyed_hash("ab", "c"),
        vault.keyed_hash("a", "b", "c"),
        vault.keyed_hash("a", "b", "", "c"),
    }
    assert len(hashes) == 4
    assert vault.user_ref("t1", "ann") != vault.user_ref("t2", "ann")
    assert vault.user_ref("t1", "ann").startswith("u_")
    assert len(vault.user_ref("t1", "ann")) == 34


def test_settings_accept_base64_and_base64url_keys() -> None:
    keys = bytes(range(224, 256)), bytes(32)
    text = f"{base64.urlsafe_b64encode(keys[0]).decode().rstrip('=')} , {base64.b64encode(keys[1]).decode()}"
    settings = PrivacySettings(vault_key=SecretStr(text))
    sealed = Vault([keys[0]]).seal("x", **OWNER)
    assert Vault.from_settings(settings).open(sealed, **OWNER) == "x"
    assert isinstance(sealed, SealedText)


@pytest.mark.parametrize("text", ["", " , ", "c2hvcnQ=", "not base64!", base64.b64encode(bytes(31)).decode()])
def test_an_invalid_key_is_rejected_without_being_shown(text: str) -> None:
    with pytest.raises(ValidationError) as error:
        PrivacySettings(vault_key=SecretStr(text))
    assert "vault_key" in str(error.value)
    assert not text.strip(" ,") or text not in str(error.value)
