"""Namespaces of teams: who reaches etcd, whose keys lie where, and who signs certificates."""

from __future__ import annotations

import base64
import shutil
import subprocess
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.helpers.manifests import (
    CLIENT,
    EXAMPLES,
    FROM_CERTIFICATES,
    KUBERNETES,
    PRODUCTION,
    SERVERS,
    TEAM,
    identity,
    pods,
    rendered,
)


def test_clients_come_from_namespaces_with_the_label() -> None:
    """The label admits pods of its own namespace and of namespaces with the same label."""
    for folder in SERVERS:
        (policy,) = [
            one
            for one in rendered(folder)
            if (one["kind"], one["metadata"]["name"]) == ("NetworkPolicy", "etcd")
        ]
        clients, members, prometheus = policy["spec"]["ingress"]
        label = {"matchLabels": CLIENT}
        assert clients == {
            "from": [{"podSelector": label}, {"namespaceSelector": label, "podSelector": label}],
            "ports": [{"port": "client"}],
        }
        assert members["from"] == [{"podSelector": policy["spec"]["podSelector"]}]
        assert prometheus["ports"] == [{"port": "metrics"}]
    (namespace,) = [one for one in rendered(TEAM) if one["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"].items() >= CLIENT.items()
    for _, name, template in pods(rendered(EXAMPLES)):
        assert template["metadata"]["labels"].items() >= CLIENT.items(), name


def test_a_teams_namespace_has_only_its_own_key(tmp_path: Path) -> None:
    """Neither what is applied there nor the Secret beside it has a key of root or of a server."""
    subprocess.run([KUBERNETES / "certificates.sh", "etcdsem", tmp_path, "team-a"], check=True)
    (secret,) = rendered("team-a", tmp_path)
    assert identity(secret) == ("Secret", "etcdsem-client-tls", "team-a")
    key = base64.b64encode((tmp_path / "team-a/tls.key").read_bytes()).decode()
    assert "".join(secret["data"]["tls.key"].split()) == key
    service = rendered(".", tmp_path)
    assert {identity(one)[1:] for one in service} == {(one, "etcdsem") for one in FROM_CERTIFICATES}
    used = {
        volume["secret"]["secretName"]
        for _, _, template in pods(rendered(TEAM) + rendered(EXAMPLES))
        for volume in template["spec"]["volumes"]
        if "secret" in volume
    }
    assert used == {"etcdsem-client-tls"}


def test_cert_manager_makes_the_same_certificates(tmp_path: Path) -> None:
    """The component's names, users and usages are those of certificates.sh."""
    subprocess.run([KUBERNETES / "certificates.sh", "etcdsem", tmp_path, "team-a"], check=True)
    shutil.copytree(KUBERNETES, tmp_path / "copy")
    path = tmp_path / "copy" / PRODUCTION / "kustomization.yaml"
    text = path.read_text()
    path.write_text(
        text.replace("components:\n", "components:\n  - ../../components/cert-manager\n")
    )
    requested = {
        one["spec"]["secretName"]: one["spec"]
        for one in rendered(PRODUCTION, tmp_path / "copy")
        if one["kind"] == "Certificate" and not one["spec"].get("isCA")
    }
    folders = {"team-a-client-tls": "team-a", "etcdsem-operator-tls": "operator"}
    assert set(requested) == FROM_CERTIFICATES | set(folders)
    for name, spec in requested.items():
        pem = (tmp_path / folders.get(name, name) / "tls.crt").read_bytes()
        certificate = x509.load_pem_x509_certificate(pem)
        (user,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        assert spec["commonName"] == user.value
        names = [
            one.value
            for extension in certificate.extensions
            if isinstance(extension.value, x509.SubjectAlternativeName)
            for one in extension.value
        ]
        asked = {*spec.get("dnsNames", ()), *spec.get("ipAddresses", ())}
        assert asked == set(map(str, names)), name
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        server = ExtendedKeyUsageOID.SERVER_AUTH in usage
        assert ("server auth" in spec["usages"]) == server, name
        assert "client auth" in spec["usages"], name
        assert spec["issuerRef"] == {"name": "etcd"}  # of this namespace, not of the cluster
