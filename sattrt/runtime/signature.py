"""Who made a bundle: an Ed25519 signature over its manifest, and so over the digest of every file in it.

    sign_bundle(Path("engines/eurosat"), Path("key.pem"))              # writes bundle.sig
    read_bundle(Path("engines/eurosat"), Path("key.pub.pem"))          # ContractError unless that key signed this very manifest

Keys are PEM files as `openssl genpkey -algorithm ed25519` writes them. Needs the package cryptography, on the machine that asks alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import ContractError, InputError, no_library
from ..spec import is_file, read_bytes

SIGNATURE = "bundle.sig"


def sign(manifest: bytes, key: Path) -> bytes:
    """The signature of a bundle's manifest by a private key. InputError for what is no such key."""
    serialization, ed25519, _, unsupported = _cryptography()
    try:
        private = serialization.load_pem_private_key(read_bytes(key), None)
    except (ValueError, TypeError, unsupported) as error:
        raise InputError(
            f"{key} is not an unencrypted private key in PEM ({error}). Make one: openssl genpkey -algorithm ed25519"
        ) from None
    if not isinstance(private, ed25519.Ed25519PrivateKey):
        raise InputError(f"{key} is a private key of another kind. Make one: openssl genpkey -algorithm ed25519")
    signature: bytes = private.sign(manifest)
    return signature


def verify_signature(folder: Path, manifest: bytes, key: Path) -> None:
    """ContractError unless the owner of this public key signed the bundle's manifest, as it was read; InputError for what is no such key."""
    if key == Path():  # of a variable that is not set
        raise InputError("The public key has an empty name. Give its file, or ask for no signature.")
    serialization, ed25519, invalid, unsupported = _cryptography()
    try:
        public = serialization.load_pem_public_key(read_bytes(key))
    except (ValueError, unsupported) as error:
        raise InputError(f"{key} is not a public key in PEM ({error}). Make it: openssl pkey -in PRIVATE -pubout") from None
    if not isinstance(public, ed25519.Ed25519PublicKey):
        raise InputError(f"{key} is a public key of another kind than Ed25519. Make it: openssl pkey -in PRIVATE -pubout")
    if not is_file(folder / SIGNATURE):
        raise ContractError(f"{folder} is not signed: it has no {SIGNATURE}. Don't use it, or ask its maker for a signed one.")
    try:
        public.verify(read_bytes(folder / SIGNATURE), manifest)
    except invalid:
        raise ContractError(f"{folder} was not signed by the owner of {key}, or was changed since. Don't use it.") from None


def _cryptography() -> tuple[Any, Any, Any, Any]:
    try:
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise no_library("cryptography, which signs and verifies,", "sattrt[sign]", error) from None
    return serialization, ed25519, InvalidSignature, UnsupportedAlgorithm
