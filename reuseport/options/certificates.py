"""Certificates: from files to what a generation serves TLS with.

A release checks the files before it begins, in the master. The zygote reads them, still as the master's user: the key
is often root's alone. From then on they are the generation's, whatever is put into the files later.
"""

from __future__ import annotations

import os
import ssl
from typing import Any

CERT_REQS = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


class CertificateError(ValueError):
    """`option`: whose value it is that does not do."""

    def __init__(self, option: str, text: str) -> None:
        super().__init__(text)
        self.option = option


class Pems(dict[str, bytes]):
    """What the files hold, by the names of their options; those that are not set are missing."""

    @classmethod
    def read(cls, settings: Any) -> Pems | None:
        """None without --certfile. CertificateError for a file that cannot be read, or stands without another."""
        if not settings.certfile:
            for name in ("keyfile", "ca_certs"):
                if getattr(settings, name):
                    raise CertificateError(name, "means nothing without --certfile")
            if settings.cert_reqs != "none":
                raise CertificateError("cert_reqs", "means nothing without --certfile")
            return None
        if settings.cert_reqs != "none" and not settings.ca_certs:
            raise CertificateError("cert_reqs", "asks for client certificates, which --ca-certs must vouch for")
        pems = cls()
        for name in ("certfile", "keyfile", "ca_certs"):
            if path := getattr(settings, name):
                try:
                    with open(path, "rb") as file:
                        pems[name] = file.read()
                except OSError as error:
                    raise CertificateError(name, f"{path}: {(error.strerror or str(error)).lower()}") from None
        return pems


def context(settings: Any, pems: Pems) -> ssl.SSLContext:
    """A server's context. CertificateError for what OpenSSL does not take, and for a key with a password."""
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_COMPRESSION
    made.set_alpn_protocols(["http/1.1"])
    key_option = "keyfile" if "keyfile" in pems else "certfile"
    locked = False

    def password() -> str:
        nonlocal locked
        locked = True
        return ""

    # OpenSSL takes a chain from a file only; one in memory leaves nothing on the disk.
    fd = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(pems.get("keyfile", b"") + b"\n" + pems["certfile"])
        try:
            made.load_cert_chain(f"/proc/self/fd/{fd}", password=password)
        except ssl.SSLError as error:
            raise _explained(settings, key_option, locked, error) from None
    finally:
        os.close(fd)
    if "ca_certs" in pems:
        try:
            made.load_verify_locations(cadata=pems["ca_certs"].decode("ascii", "replace"))
        except (ssl.SSLError, ValueError):
            raise CertificateError("ca_certs", f"{settings.ca_certs}: holds no certificates in PEM form") from None
    made.verify_mode = CERT_REQS[settings.cert_reqs]
    return made


def _explained(settings: Any, key_option: str, locked: bool, error: ssl.SSLError) -> CertificateError:
    key_path = getattr(settings, key_option)
    if locked:
        return CertificateError(key_option, f"{key_path}: the key has a password, which nobody could type at a release")
    if error.reason == "KEY_VALUES_MISMATCH":
        return CertificateError(key_option, f"{key_path}: the key is not that of the certificate {settings.certfile}")
    try:
        with open(settings.certfile, "rb") as file:
            certificate = file.read()
        with open(key_path, "rb") as file:
            key = file.read()
    except OSError:
        certificate = key = b""
    if certificate and b"-----BEGIN CERTIFICATE-----" not in certificate:
        return CertificateError("certfile", f"{settings.certfile}: holds no certificate in PEM form")
    if key and b"PRIVATE KEY-----" not in key:
        hint = "" if key_option == "keyfile" else "; --keyfile names it where it is a file of its own"
        return CertificateError(key_option, f"{key_path}: holds no private key in PEM form{hint}")
    return CertificateError("certfile", f"{settings.certfile}: {error.reason or error}")
