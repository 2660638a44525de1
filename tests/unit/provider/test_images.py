import pytest

from provider.core.images import cold_reason, is_worker, refusal_of, repository_of
from provider.core.launch import ContainerLaunch


@pytest.mark.parametrize(
    ("image", "repository"),
    [
        ("nodeless/worker", "nodeless/worker"),
        ("nodeless/worker:0.1.0", "nodeless/worker"),
        ("nodeless/worker:0.1.0@sha256:abc", "nodeless/worker"),
        ("registry:5000/a/b", "registry:5000/a/b"),
        ("registry:5000/a/b:1", "registry:5000/a/b"),
    ],
)
def test_a_repository_is_an_image_without_tag_and_digest(image: str, repository: str) -> None:
    assert repository_of(image) == repository


def test_only_the_runtimes_own_repository_is_a_worker() -> None:
    assert is_worker("nodeless/worker:1")
    assert not is_worker("evil/nodeless/worker:1")
    assert not is_worker("nodeless/worker-2")


@pytest.mark.parametrize(
    ("container", "reason"),
    [
        (ContainerLaunch(name="a", image="nodeless/worker:1"), None),
        (ContainerLaunch(name="a", image="nodeless/worker:1", command=("sh",)), "CommandNotSupported"),
        (ContainerLaunch(name="a", image="nodeless/worker:1", args=("x",)), "CommandNotSupported"),
        (ContainerLaunch(name="a", image="nodeless/host", command=("date",)), None),
        (ContainerLaunch(name="a", image="nodeless/host", args=("date",)), None),
        (ContainerLaunch(name="a", image="nodeless/host"), "CommandMissing"),
        (ContainerLaunch(name="a", image="nginx"), "ErrImageNeverPull"),
    ],
)
def test_what_a_machine_without_an_engine_cannot_run_is_refused(container: ContainerLaunch, reason: str | None) -> None:
    refusal = refusal_of(container)

    assert (refusal.reason if refusal else None) == reason
    assert refusal is None or "'a'" in refusal.message


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"PYTHONPATH": "/x"}, "PYTHONPATH"),
        ({"LD_PRELOAD": "x.so", "MALLOC_ARENA_MAX": "1"}, "LD_PRELOAD, MALLOC_ARENA_MAX"),
        ({"NODELESS_NATS_URL": "wss://bus"}, "WebSocket"),
        ({"NODELESS_NATS_URL": "nats://bus", "PATH": "/bin", "MY_PYTHON": "1"}, ""),
    ],
)
def test_what_must_act_before_imports_makes_a_worker_start_cold(environment: dict[str, str], words: str) -> None:
    reason = cold_reason(environment)

    assert words in reason
    assert bool(reason) == bool(words)
