import json
from pathlib import Path

import pytest
from conftest import jpeg, rename_classes, reseal, sattrt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from sattrt.errors import ContractError, InputError
from sattrt.runtime import open_bundle, sign_bundle
from sattrt.runtime.signature import verify_signature


def keys(folder: Path, name: str, private: ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey | None = None) -> tuple[Path, Path]:
    """A key pair in PEM, as openssl writes it."""
    private = private or ed25519.Ed25519PrivateKey.generate()
    paths = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    paths[0].write_bytes(private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    paths[1].write_bytes(private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return paths


def test_only_what_the_owner_of_the_key_signed_is_opened(copy: Path, tmp_path: Path) -> None:
    (private, public), (_, stranger) = keys(tmp_path, "mine"), keys(tmp_path, "other")
    with pytest.raises(ContractError, match="not signed"):
        open_bundle(copy, "onnxruntime-int8", signed_by=public)
    sign_bundle(copy, private)
    open_bundle(copy, "onnxruntime-int8", signed_by=public).close()
    open_bundle(copy, "onnxruntime-int8").close()
    with pytest.raises(ContractError, match="not signed by the owner"):
        open_bundle(copy, "onnxruntime-int8", signed_by=stranger)


def test_a_bundle_that_was_changed_and_sealed_again_is_refused(copy: Path, tmp_path: Path) -> None:
    private, public = keys(tmp_path, "mine")
    sign_bundle(copy, private)
    rename_classes(copy, json.loads((copy / "spec.json").read_text())["classes"][::-1])
    open_bundle(copy, "onnxruntime-int8").close()  # digests alone can't know
    with pytest.raises(ContractError, match="changed since"):
        open_bundle(copy, "onnxruntime-int8", signed_by=public)


def test_what_no_signature_vouches_for_is_refused(copy: Path, tmp_path: Path) -> None:
    private, public = keys(tmp_path, "mine")
    sign_bundle(copy, private)
    for path in (copy / "weights.bin", copy / "more" / "weights.bin"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
        name = path.relative_to(copy).parts[0]
        open_bundle(copy, "onnxruntime-int8").close()
        with pytest.raises(ContractError, match=f"{name} is not part of the bundle"):
            open_bundle(copy, "onnxruntime-int8", signed_by=public)
        with pytest.raises(ContractError, match=f"{name} is not part of the bundle"):
            sign_bundle(copy, private)
        path.unlink()
    (copy / "more").rmdir()
    open_bundle(copy, "onnxruntime-int8", signed_by=public).close()
    (copy / "MODEL_CARD.md").write_text("x")
    with pytest.raises(ContractError, match="was changed"):
        sign_bundle(copy, private)


def test_what_was_signed_is_what_is_read(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody writes another manifest and contract just after the signature was checked."""
    private, public = keys(tmp_path, "mine")
    sign_bundle(copy, private)
    before = (copy / "bundle.json").read_bytes()
    spec = json.loads((copy / "spec.json").read_text())

    def checked_then_changed(folder: Path, manifest: bytes, key: Path) -> None:
        verify_signature(folder, manifest, key)
        reseal(folder, "spec.json", json.dumps(spec | {"classes": spec["classes"][::-1]}).encode())

    monkeypatch.setattr("sattrt.runtime.bundle.verify_signature", checked_then_changed)
    with pytest.raises(ContractError, match=r"spec.json was changed"):
        open_bundle(copy, "onnxruntime-int8", signed_by=public)
    assert (copy / "bundle.json").read_bytes() != before


def test_what_is_no_key_is_named(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "text.pem").write_text("hello")
    private, public = keys(tmp_path, "rsa", rsa.generate_private_key(65537, 2048))
    mine, mine_public = keys(tmp_path, "mine")
    for wrong in (tmp_path / "text.pem", private, tmp_path / "nothing.pem", mine_public):
        with pytest.raises(InputError, match=wrong.name):
            sign_bundle(copy, wrong)
    assert not (copy / "bundle.sig").exists()
    sign_bundle(copy, mine)
    for wrong in (tmp_path / "text.pem", public, tmp_path / "nothing.pem", mine):
        with pytest.raises(InputError, match=wrong.name):
            open_bundle(copy, signed_by=wrong)


def test_an_empty_key_is_refused_and_not_taken_for_none(copy: Path, tmp_path: Path) -> None:
    """As that of an environment variable which is not set."""
    sign_bundle(copy, keys(tmp_path, "mine")[0])
    (tmp_path / "tile.jpg").write_bytes(jpeg((30, 90, 40), 1))
    for key in ("", Path("")):
        with pytest.raises(InputError, match="public key has an empty name"):
            open_bundle(copy, "onnxruntime-int8", signed_by=key)
    for command in (
        ("predict", copy, tmp_path / "tile.jpg", "--require-signature", ""),
        ("map", copy, tmp_path / "tile.jpg", "--set", "signed_by="),
    ):
        done = sattrt(*command)
        assert (done.returncode, done.stdout) == (1, ""), command
        assert "public key has an empty name" in done.stderr, command


def test_every_command_asks_for_the_signature(copy: Path, dataset_folder: Path, tmp_path: Path) -> None:
    (private, public), (_, stranger) = keys(tmp_path, "mine"), keys(tmp_path, "other")
    assert sattrt("sign", copy, "--key", private).stdout == f"{copy / 'bundle.sig'}\n"
    (tmp_path / "tile.jpg").write_bytes(jpeg((30, 90, 40), 1))
    (tmp_path / "stranger.toml").write_text(f'signed_by = "{stranger}"\n')
    for command in (
        ("predict", copy, tmp_path / "tile.jpg", "--require-signature", stranger),
        ("selftest", copy, "--require-signature", stranger),
        ("bench", copy, "--data", dataset_folder, "--out", tmp_path / "report", "--require-signature", stranger),
        ("map", copy, tmp_path / "tile.jpg", "--config", tmp_path / "stranger.toml"),
    ):
        done = sattrt(*command)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), command
        assert "was not signed by the owner of" in done.stderr, command
    done = sattrt("predict", copy, tmp_path / "tile.jpg", "--engine", "onnxruntime-int8", "--require-signature", public)
    assert done.returncode == 0, done.stderr
