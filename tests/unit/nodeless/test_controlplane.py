"""What is decided about the control plane before anything runs: progress, programs, certificates, ports."""

from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from nodeless.embedded.controlplane.binaries import BINARY_NAME, given_binaries
from nodeless.embedded.controlplane.build import MODULE, link_flags, module_digest
from nodeless.embedded.controlplane.components import PROGRAMS, Layout, Ports, arguments
from nodeless.embedded.controlplane.errors import ProgramMissing
from nodeless.embedded.controlplane.estimate import BuildEstimate, Package, rounded_time
from nodeless.embedded.controlplane.pki import Authority, Pki, keep_kubeconfig
from nodeless.embedded.controlplane.toolchain import needed_version, parsed_version
from nodeless.embedded.ports import PortReservations

PORTS = Ports(api_server=1, etcd=2, etcd_peer=3, scheduler=4, controller_manager=5)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 10**6)), min_size=1, max_size=40), st.randoms())
def test_progress_never_falls_and_ends_before_one_while_linking(
    packages: list[tuple[bool, int]], random: object
) -> None:
    listed = [Package(f"p{index}", *each) for index, each in enumerate(packages)]
    estimate = BuildEstimate(listed, jobs=2)
    order = [package.path for package in listed]
    random.shuffle(order)  # type: ignore[attr-defined]
    before = estimate.fraction
    for path in order:
        estimate.see(f"{path}\n")
        assert before <= estimate.fraction < 1
        before = estimate.fraction

    assert estimate.is_linking


def test_a_resumed_build_counts_only_what_is_left() -> None:
    estimate = BuildEstimate([Package("cached", True, 10**9), Package("new", False, 10), Package("main", False, 1)], 1)

    assert estimate.packages == 1


@pytest.mark.parametrize(("seconds", "text"), [(3, "5 s"), (42, "40 s"), (60, "1 min"), (151, "2 min 30 s")])
def test_times_are_said_as_one_would_say_them(seconds: float, text: str) -> None:
    assert rounded_time(seconds) == text


def test_the_module_pins_a_version_that_the_api_server_tells() -> None:
    assert " -X k8s.io/component-base/version.gitVersion=v1." in link_flags((MODULE / "go.mod").read_text())


def test_the_cache_key_depends_on_every_source(tmp_path: Path) -> None:
    for name in ("go.mod", "go.sum", "main.go"):
        (tmp_path / name).write_text("1")
    before = module_digest(tmp_path)
    digests = {before}
    for name in ("go.mod", "go.sum", "main.go"):
        (tmp_path / name).write_text("2")
        digests.add(module_digest(tmp_path))

    assert len(digests) == 4


def test_a_given_directory_has_to_hold_every_program(tmp_path: Path) -> None:
    for name in PROGRAMS[:2]:
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)

    with pytest.raises(ProgramMissing, match="kube-scheduler, kube-controller-manager"):
        given_binaries(tmp_path, {})
    found = given_binaries(None, {"KUBEBUILDER_ASSETS": str(tmp_path)}, needed=PROGRAMS[:2])
    assert found is not None
    assert found.command("etcd") == (str(tmp_path / "etcd"),)
    assert given_binaries(None, {}) is None


def test_our_own_binary_in_a_given_directory_holds_all_four(tmp_path: Path) -> None:
    (tmp_path / BINARY_NAME).write_text("")
    (tmp_path / BINARY_NAME).chmod(0o755)
    found = given_binaries(tmp_path, {})

    assert found is not None
    assert found.command("kube-scheduler") == (str(tmp_path / BINARY_NAME), "kube-scheduler")


def test_nothing_listens_beyond_loopback_and_nobody_is_anonymous() -> None:
    layout = Layout(Path("/home"))
    server = arguments("kube-apiserver", layout, PORTS)

    assert "--anonymous-auth=false" in server
    assert "--authorization-mode=Node,RBAC" in server
    assert "--kubelet-certificate-authority=/home/pki/ca.crt" in server
    assert not any("token-auth-file" in flag for flag in server)
    for program in PROGRAMS[1:]:
        assert "--bind-address=127.0.0.1" in arguments(program, layout, PORTS)


def test_versions_of_go_are_compared_as_numbers() -> None:
    assert parsed_version("go1.26.8") > parsed_version("1.9")
    assert needed_version("module x\n\ngo 1.26.0\n") == (1, 26, 0)


def test_certificates_are_kept_while_they_hold_and_made_again_when_not(tmp_path: Path) -> None:
    first = Pki(tmp_path, service_address="10.96.0.1")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    Pki(tmp_path, service_address="10.96.0.1")
    same = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    Pki(tmp_path, service_address="10.97.0.1")
    moved = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    assert same == before
    assert {name for name in moved if moved[name] != before[name]} == {"apiserver.crt", "apiserver.key"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.glob("*.key"))
    assert not Authority(tmp_path / "other", "ca").accepts(first.certificate("apiserver").read_bytes())


def test_a_kubeconfig_names_user_and_groups_and_is_kept_while_it_fits(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki", "ca")
    path = tmp_path / "kubeconfig"
    keep_kubeconfig(path, authority, "https://127.0.0.1:1", "system:node:n", ("system:nodes",))
    before = path.read_bytes()
    keep_kubeconfig(path, authority, "https://127.0.0.1:1", "system:node:n", ("system:nodes",))
    assert path.read_bytes() == before

    keep_kubeconfig(path, authority, "https://127.0.0.1:2", "system:node:n", ("system:nodes",))
    assert path.read_bytes() != before
    assert path.stat().st_mode & 0o077 == 0


def test_a_client_certificate_carries_its_groups_as_organisations(tmp_path: Path) -> None:
    pair = Authority(tmp_path, "ca").issue_client("system:node:n", ("system:nodes",))
    subject = x509.load_pem_x509_certificate(pair.certificate).subject

    assert subject.rfc4514_string() == "CN=system:node:n,O=system:nodes"


def test_two_systems_never_hold_one_port_and_get_theirs_again() -> None:
    with PortReservations() as first, PortReservations() as second:
        port = first.reserve()
        assert second.reserve(port) != port
    with PortReservations() as third:
        assert third.reserve(port) == port
