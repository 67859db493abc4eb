"""TLS to a Bambu Lab printer: who is at the other end, when certificates name a serial number instead of a host.

A printer's certificate has CN = serial number, no alternative names, is often sent without its intermediates, and may
be X.509 version 1 (A1 mini). So the usual host check cannot work: the name sent and compared is the serial number.
The chain is checked against Bambu Lab's authorities when a file of them is given; without one, or for a model whose
authority is not in that file yet, the certificate itself is pinned on first use and any later change refused.
"""

from __future__ import annotations

import hashlib
import ssl
from typing import Any, NamedTuple, Self

from cryptography import x509
from cryptography.x509.oid import NameOID


class IdentityRefused(ssl.SSLCertVerificationError):
    """The machine at this address is not provably the printer with this serial number. `reason` is in plain words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


NO_AUTHORITY = (
    "no known authority vouches for the printer's certificate: it is a newer model, or another machine is there"
)


class Trust(NamedTuple):
    """What makes a printer's certificate acceptable, always one with its serial number.

    `ca_file` (PEM) signed it, or it is the very one that was pinned: `fingerprint` (SHA-256, 64 hex digits). With
    neither given any is accepted, to be pinned by the caller from then on.
    """

    serial: str
    ca_file: str | None = None
    fingerprint: str | None = None

    def ways(self) -> list[Trust]:
        """Each way to accept a certificate by itself; the next is worth a try when no authority vouched."""
        if self.ca_file and self.fingerprint:
            return [self._replace(fingerprint=None), self._replace(ca_file=None)]
        return [self]

    def pinning(self, fingerprint: str | None) -> Trust:
        """The same, with the certificate pinned that was just accepted unless an authority vouches for it."""
        return self if self.ca_file else self._replace(fingerprint=fingerprint)


class PrinterTlsContext(ssl.SSLContext):
    """A client context that names the serial in SNI and refuses any certificate but that printer's, at the handshake.

    It takes one of Trust.ways(). The check sits in the handshake itself, so that paho-mqtt, the FTP control channel and
    its data channel all pass it.
    """

    trust: Trust
    seen_fingerprint: str | None

    def __new__(cls, trust: Trust, *, highest: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED) -> Self:
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    def __init__(self, trust: Trust, *, highest: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED) -> None:
        """Raises OSError (ssl.SSLError among them) when the file of authorities cannot be read."""
        super().__init__()
        self.trust = trust
        self.seen_fingerprint = None
        self.sslsocket_class = _PrinterSocket
        self.minimum_version = ssl.TLSVersion.TLSv1_2
        self.maximum_version = highest
        self.check_hostname = False
        self.verify_mode = ssl.CERT_NONE
        if trust.ca_file:
            # The certificates have no key-usage extension and come without intermediates.
            self.verify_flags = (self.verify_flags | ssl.VERIFY_X509_PARTIAL_CHAIN) & ~ssl.VERIFY_X509_STRICT
            self.verify_mode = ssl.CERT_REQUIRED
            self.load_verify_locations(cafile=trust.ca_file)

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
        """As in the base class, with the serial number as the server's name whatever the caller believes it to be."""
        options["server_hostname"] = self.trust.serial
        return super().wrap_socket(*args, **options)

    def check_leaf(self, certificate: bytes | None) -> None:
        """Raises IdentityRefused unless this DER certificate is the printer's."""
        if certificate is None:
            raise IdentityRefused("the printer showed no certificate")
        fingerprint = hashlib.sha256(certificate).hexdigest()
        pinned = (self.trust.fingerprint or "").replace(":", "").lower()
        if pinned and fingerprint != pinned:
            raise IdentityRefused(
                "the printer's certificate has changed since it was first seen: another machine may be posing as it, or"
                " it was replaced or reset. Check the printer, then confirm the new certificate"
            )
        name = _common_name(certificate)
        if name != self.trust.serial:
            raise IdentityRefused(_other_printer(name, self.trust.serial))
        self.seen_fingerprint = fingerprint


class _PrinterSocket(ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:
        super().do_handshake(block)
        certificate = self.getpeercert(binary_form=True)
        if certificate is None and self.session_reused:
            return  # a resumed session belongs to the peer whose certificate was checked when it began
        context = self.context
        assert isinstance(context, PrinterTlsContext)
        context.check_leaf(certificate)


def _common_name(certificate: bytes) -> str | None:
    try:
        names = x509.load_der_x509_certificate(certificate).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(names[0].value) if names else None
    except ValueError:  # not a certificate that can be read
        return None


def _other_printer(found: str | None, wanted: str) -> str:
    if found and found.lower() == wanted.lower():
        return "the serial number is right but for capital letters; enter it exactly as the printer shows it"
    if found and len(found) <= 40 and found.isascii() and found.isalnum():
        return f"the printer at this address has the serial number {found}, not {wanted}"
    return "the machine at this address is not the printer with this serial number"
