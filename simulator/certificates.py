"""Throw-away certificates in the printers' manner: leaf CN = serial, no SAN, issued by an authority made at start."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Credentials:
    """A certificate and its key, PEM."""

    certificate_pem: bytes
    key_pem: bytes

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Files of mode 0600 in `folder`: (certificate, key)."""
        paths = (folder / "certificate.pem", folder / "key.pem")
        for path, pem in zip(paths, (self.certificate_pem, self.key_pem), strict=True):
            path.touch(mode=0o600)
            path.write_bytes(pem)
        return paths


class Authority:
    """A certificate authority that lives as long as this object; a client trusts `ca_pem`, or `ca_file` on disk."""

    def __init__(self, common_name: str = "Simulated Printer CA") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        basic = x509.BasicConstraints(ca=True, path_length=None)
        certificate = self._builder(self._name, self._key.public_key()).add_extension(basic, critical=True)
        self.ca_pem = certificate.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
        self._folder = tempfile.TemporaryDirectory(prefix="simulated-ca-", ignore_cleanup_errors=True)
        self.ca_file = Path(self._folder.name) / "ca.pem"
        self.ca_file.write_text(self.ca_pem)

    def issue(self, serial: str, *, from_days: int = -1, to_days: int = 30) -> Credentials:
        """A leaf with CN = `serial`, valid between so many days from now; like the real ones without extensions."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, serial)])
        builder = self._builder(name, key.public_key(), from_days, to_days)
        certificate = builder.sign(self._key, hashes.SHA256())
        return Credentials(
            certificate.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )

    def _builder(
        self, subject: x509.Name, public_key: ec.EllipticCurvePublicKey, from_days: int = -1, to_days: int = 30
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=from_days))
            .not_valid_after(now + timedelta(days=to_days))
        )


@functools.cache
def shared_authority() -> Authority:
    """One authority for all printers of this process, so that a client needs one CA file."""
    return Authority()
