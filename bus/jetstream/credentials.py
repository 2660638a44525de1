"""Keys and signed tokens of NATS' decentralised authentication: operator, account, users."""

import os
import time

import nkeys
from msgspec import Struct

from bus.core.credentials import (
    Permissions,
    account_claims,
    base64url,
    operator_claims,
    signing_input,
    user_claims,
)


class Authority(Struct, frozen=True, kw_only=True):
    """What an embedded broker needs to know, and the seed that mints its users."""

    operator_token: str
    account_key: str
    account_token: str
    account_seed: str
    """Secret: whoever has it may make users of the account."""
    system_key: str
    system_token: str


def new_authority(name: str = "nodeless") -> Authority:
    """Make an operator, an account with JetStream and a system account. The operator's own seed is not kept: it
    signs nothing more.
    """
    operator = _key_pair(nkeys.PREFIX_BYTE_OPERATOR)
    account = _key_pair(nkeys.PREFIX_BYTE_ACCOUNT)
    system = _key_pair(nkeys.PREFIX_BYTE_ACCOUNT)
    now_s = int(time.time())
    operator_key, account_key, system_key = (_public(pair) for pair in (operator, account, system))
    return Authority(
        operator_token=_signed(
            operator, operator_claims(key=operator_key, name=name, system_account=system_key, now_s=now_s)
        ),
        account_key=account_key,
        account_token=_signed(
            operator,
            account_claims(issuer=operator_key, key=account_key, name=name, has_jetstream=True, now_s=now_s),
        ),
        account_seed=bytes(account.seed).decode(),
        system_key=system_key,
        system_token=_signed(
            operator,
            account_claims(issuer=operator_key, key=system_key, name="system", has_jetstream=False, now_s=now_s),
        ),
    )


def mint_user(account_seed: str, name: str, permissions: Permissions) -> str:
    """Return the text of a credentials file for a new user. Raises `ValueError` where the seed is no account's
    seed.
    """
    try:
        account = nkeys.from_seed(bytearray(account_seed.strip().encode()))
        account_key = _public(account)
    except Exception as error:  # nkeys has no common base for its errors
        raise ValueError(f"this is no NATS account seed (it begins with SA): {error}") from error
    user = _key_pair(nkeys.PREFIX_BYTE_USER)
    claims = user_claims(
        issuer=account_key, key=_public(user), name=name, permissions=permissions, now_s=int(time.time())
    )
    token = _signed(account, claims)
    return (
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{bytes(user.seed).decode()}\n------END USER NKEY SEED------\n"
    )


def server_configuration(authority: Authority) -> str:
    """Return the part of a nats-server configuration that makes it trust this authority."""
    return (
        f"operator: {authority.operator_token}\n"
        f"system_account: {authority.system_key}\n"
        "resolver: MEMORY\n"
        "resolver_preload: {\n"
        f"  {authority.account_key}: {authority.account_token}\n"
        f"  {authority.system_key}: {authority.system_token}\n"
        "}\n"
    )


def _key_pair(prefix: int) -> nkeys.KeyPair:
    return nkeys.from_seed(nkeys.encode_seed(os.urandom(32), prefix))


def _public(pair: nkeys.KeyPair) -> str:
    return bytes(pair.public_key).decode()


def _signed(pair: nkeys.KeyPair, claims: dict[str, object]) -> str:
    text = signing_input(claims)
    return f"{text}.{base64url(pair.sign(text.encode()))}"
