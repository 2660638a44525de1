"""The certificates of one embedded control plane: three authorities, what they sign, and kubeconfigs.

    ca              signs the API server's and the nodes' serving certificates and every client certificate
    etcd-ca         signs what etcd and the API server show each other: nobody else reaches etcd
    front-proxy-ca  signs the one client whose word about "who is asking" aggregated API servers believe

Keys are on the curve P-256: made in a fraction of a millisecond where RSA takes a second. Everything is made once and
kept; a leaf is made again when it is about to expire, names other hosts than wanted, or its authority has changed.
Files with a key in them can be read by their owner only.
"""

import base64
import ipaddress
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nodeless.embedded.files import write_private

ADMIN_USER, ADMIN_GROUP = "kubernetes-admin", "system:masters"

AUTHORITY_DAYS = 30 * 365
LEAF_DAYS = 10 * 365
RENEW_DAYS = 30
"""A leaf with less than this left is made again at the next start."""
BACKDATE = timedelta(minutes=5)
"""Clocks of two machines differ."""


class KeyPair(NamedTuple):
    """A certificate and its key, both as PEM."""

    certificate: bytes
    key: bytes


class Authority:
    """One certificate authority, kept as `<name>.crt` and `<name>.key` in a directory; made when it is not there."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory, self.name = directory, name
        self.certificate_path = directory / f"{name}.crt"
        self.key_path = directory / f"{name}.key"
        if not self.certificate_path.exists():  # written last: with it the pair is complete
            pair = _self_signed(f"nodeless-{name}")
            write_private(self.key_path, pair.key)
            write_private(self.certificate_path, pair.certificate)
        self._certificate = x509.load_pem_x509_certificate(self.certificate_path.read_bytes())
        key = serialization.load_pem_private_key(self.key_path.read_bytes(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError(f"{self.key_path} holds a {type(key).__name__}, and an EC key was written there")
        self._key = key

    @property
    def certificate(self) -> bytes:
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue_client(self, name: str, groups: Sequence[str] = ()) -> KeyPair:
        """Return a certificate with which its holder is user `name` in `groups`."""
        return self._issue(name, groups, (), (ExtendedKeyUsageOID.CLIENT_AUTH,))

    def issue_serving(self, name: str, hosts: Sequence[str]) -> KeyPair:
        """Return a certificate for a server reached as any of `hosts` (names or addresses)."""
        return self._issue(name, (), hosts, (ExtendedKeyUsageOID.SERVER_AUTH,))

    def issue_peer(self, name: str, hosts: Sequence[str]) -> KeyPair:
        """Return a certificate good for both ends of a connection, as members of an etcd cluster need it."""
        return self._issue(name, (), hosts, (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH))

    def accepts(self, certificate: bytes, hosts: Sequence[str] = ()) -> bool:
        """True if `certificate` is ours, lasts for a while, and covers `hosts`."""
        try:
            leaf = x509.load_pem_x509_certificate(certificate)
            leaf.verify_directly_issued_by(self._certificate)
        except (ValueError, TypeError, InvalidSignature):  # whatever is wrong with it, it is made again
            return False
        if leaf.not_valid_after_utc - datetime.now(UTC) < timedelta(days=RENEW_DAYS):
            return False
        if not hosts:
            return True
        try:
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return False
        return set(_general_names(hosts)) <= set(names)

    def _issue(
        self, name: str, groups: Sequence[str], hosts: Sequence[str], usages: Sequence[x509.ObjectIdentifier]
    ) -> KeyPair:
        key = ec.generate_private_key(ec.SECP256R1())
        # Kubernetes reads the user from the common name and the groups from the organisations.
        subject = x509.Name(
            [
                *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group, _validate=False) for group in groups),
                x509.NameAttribute(NameOID.COMMON_NAME, name, _validate=False),
            ]
        )
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATE)
            .not_valid_after(min(now + timedelta(days=LEAF_DAYS), self._certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(list(usages)), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName(_general_names(hosts)), critical=False)
        return KeyPair(
            builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM), _private_pem(key)
        )


class Pki:
    """All that is signed for one control plane, in one directory. Opening it makes what is missing."""

    def __init__(self, directory: Path, *, service_address: str) -> None:
        self.directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.ca = Authority(directory, "ca")
        self.etcd_ca = Authority(directory, "etcd-ca")
        self.front_proxy_ca = Authority(directory, "front-proxy-ca")
        loopback = ("127.0.0.1", "::1", "localhost")
        in_cluster = ("kubernetes", "kubernetes.default", "kubernetes.default.svc")
        self._keep_serving(
            "apiserver", (*loopback, *in_cluster, "kubernetes.default.svc.cluster.local", service_address)
        )
        self._keep_serving("kube-scheduler", loopback)
        self._keep_serving("kube-controller-manager", loopback)
        self._keep_client(self.ca, "apiserver-kubelet-client", "kube-apiserver-kubelet-client")
        self._keep_client(self.front_proxy_ca, "front-proxy-client", "front-proxy-client")
        self._keep_client(self.etcd_ca, "apiserver-etcd-client", "kube-apiserver-etcd-client")
        self._keep_client(self.ca, "admin", ADMIN_USER, (ADMIN_GROUP,))
        if not self._is_kept(self.etcd_ca, "etcd", loopback):
            self._keep("etcd", self.etcd_ca.issue_peer("etcd", loopback))
        if not (directory / "sa.pub").exists():
            self._make_service_account_key()

    def certificate(self, name: str) -> Path:
        return self.directory / f"{name}.crt"

    def key(self, name: str) -> Path:
        return self.directory / f"{name}.key"

    def _is_kept(self, authority: Authority, name: str, hosts: Sequence[str] = ()) -> bool:
        path = self.certificate(name)
        return path.exists() and authority.accepts(path.read_bytes(), hosts)

    def _keep(self, name: str, pair: KeyPair) -> None:
        write_private(self.key(name), pair.key)
        write_private(self.certificate(name), pair.certificate)

    def _keep_serving(self, name: str, hosts: Sequence[str]) -> None:
        if not self._is_kept(self.ca, name, hosts):
            self._keep(name, self.ca.issue_serving(name, hosts))

    def _keep_client(self, authority: Authority, name: str, user: str, groups: Sequence[str] = ()) -> None:
        if not self._is_kept(authority, name):
            self._keep(name, authority.issue_client(user, groups))

    def _make_service_account_key(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        write_private(self.key("sa"), _private_pem(key))
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        write_private(self.directory / "sa.pub", public)


def kubeconfig_text(server: str, ca: bytes, user: str, pair: KeyPair, namespace: str = "default") -> str:
    """Return a kubeconfig with everything in it, so that the file can be copied. (JSON, which is YAML.)"""

    def encoded(pem: bytes) -> str:
        return base64.b64encode(pem).decode()

    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "nodeless", "cluster": {"server": server, "certificate-authority-data": encoded(ca)}}
            ],
            "users": [
                {
                    "name": user,
                    "user": {
                        "client-certificate-data": encoded(pair.certificate),
                        "client-key-data": encoded(pair.key),
                    },
                }
            ],
            "contexts": [
                {"name": "nodeless", "context": {"cluster": "nodeless", "user": user, "namespace": namespace}}
            ],
            "current-context": "nodeless",
        },
        indent=2,
    )


def keep_kubeconfig(
    path: Path, authority: Authority, server: str, user: str, groups: Sequence[str] = (), namespace: str = "default"
) -> Path:
    """Make sure that `path` is a kubeconfig for `user` at `server`; one that still holds is left alone."""
    if _holds(path, authority, {"server": server, "user": user, "groups": sorted(groups)}):
        return path
    pair = authority.issue_client(user, groups)
    return write_private(path, kubeconfig_text(server, authority.certificate, user, pair, namespace))


def _kubeconfig(text: str) -> dict[str, Any]:
    """Decode a kubeconfig: JSON as we wrote it, YAML once `kubectl config` has changed it (the namespace, say)."""
    try:
        content = json.loads(text)
    except ValueError:
        import yaml  # only here: hardly anybody's start needs it

        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from error
    if not isinstance(content, dict):
        raise TypeError("not a kubeconfig")
    return content


def _holds(path: Path, authority: Authority, wanted: dict[str, object]) -> bool:
    try:
        content = _kubeconfig(path.read_text())
        cluster, user = content["clusters"][0]["cluster"], content["users"][0]["user"]
        certificate = base64.b64decode(user["client-certificate-data"])
        subject = x509.load_pem_x509_certificate(certificate).subject
        found = {
            "server": cluster["server"],
            "user": subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value,
            "groups": sorted(str(group.value) for group in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)),
        }
        same_authority = base64.b64decode(cluster["certificate-authority-data"]) == authority.certificate
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return False  # not there, or not a file of ours: made again
    return same_authority and found == wanted and authority.accepts(certificate)


def _self_signed(name: str) -> KeyPair:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return KeyPair(certificate.public_bytes(serialization.Encoding.PEM), _private_pem(key))


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return names


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
