"""Requests to the node's API: who asks, which right is needed, which part of a log is wanted."""

from typing import Any

import pytest

from provider.core.authorization import (
    Identity,
    Right,
    access_review,
    identity_of_certificate,
    identity_of_review,
    rights_of,
)
from provider.kubelet.queries import BadQuery, log_query

NOW_NS = 1_769_860_800_000_000_000  # 2026-01-31T12:00:00Z


@pytest.mark.parametrize(
    ("method", "path", "rights"),
    [
        ("GET", "/containerLogs/ns/pod/c", [Right("get", "proxy")]),
        ("POST", "/exec/ns/pod/c", [Right("create", "proxy")]),
        ("GET", "/stats/summary", [Right("get", "stats")]),
        ("GET", "/metrics/resource", [Right("get", "metrics")]),
        ("GET", "/logs/kern.log", [Right("get", "log")]),
        ("GET", "/healthz", [Right("get", "healthz"), Right("get", "proxy")]),
        ("GET", "/pods", [Right("get", "pods"), Right("get", "proxy")]),
        ("GET", "/runningpods/", [Right("get", "pods"), Right("get", "proxy")]),
        ("DELETE", "/", [Right("delete", "proxy")]),
    ],
)
def test_a_request_needs_the_right_that_a_kubelet_asks_for(method: str, path: str, rights: list[Right]) -> None:
    assert list(rights_of(method, path)) == rights


def test_a_certificate_names_user_and_groups() -> None:
    subject = ((("organizationName", "system:masters"),), (("organizationName", "ops"),), (("commonName", "ada"),))

    identity = identity_of_certificate({"subject": subject})

    assert identity == Identity(user="ada", groups=("system:masters", "ops", "system:authenticated"))
    assert identity_of_certificate(None) is None
    assert identity_of_certificate({"subject": ((("organizationName", "ops"),),)}) is None


def test_a_token_review_names_the_user_only_when_the_token_is_good() -> None:
    user = {"username": "ada", "uid": "1", "groups": ["ops"], "extra": {"scope": ["all"]}}

    assert identity_of_review({"status": {"authenticated": True, "user": user}}) == Identity(
        user="ada", uid="1", groups=("ops",), extra=(("scope", ("all",)),)
    )
    assert identity_of_review({"status": {"user": user}}) is None


def test_the_review_asks_for_one_right_on_our_node() -> None:
    review = access_review(Identity(user="ada", groups=("ops",)), Right("get", "proxy"), "vn")

    assert review["spec"]["user"] == "ada"
    assert review["spec"]["resourceAttributes"] == {
        "verb": "get", "version": "v1", "resource": "nodes", "subresource": "proxy", "name": "vn",
    }  # fmt: skip


def test_options_of_kubectl_logs_are_understood() -> None:
    query = log_query(
        [("follow", "true"), ("timestamps", "1"), ("previous", "false"), ("tailLines", "5"), ("limitBytes", "10")],
        now_ns=NOW_NS,
    )

    assert (query.follow, query.timestamps, query.previous) == (True, True, False)
    assert (query.tail_lines, query.limit_bytes) == (5, 10)


def test_seconds_ago_become_a_time() -> None:
    assert log_query([("sinceSeconds", "60")], now_ns=NOW_NS).since_time == "2026-01-31T11:59:00.000000Z"


@pytest.mark.parametrize(
    ("pairs", "lines"), [([("tail", "all")], None), ([("tail", "7")], 7), ([("tailLines", "")], None)]
)
def test_old_and_empty_options_are_understood(pairs: Any, lines: int | None) -> None:
    assert log_query(pairs, now_ns=NOW_NS).tail_lines == lines


@pytest.mark.parametrize(
    ("pairs", "status"),
    [
        ([("tailLines", "-1")], 422),
        ([("limitBytes", "0")], 422),
        ([("sinceSeconds", "0")], 422),
        ([("sinceSeconds", "5"), ("sinceTime", "2026-01-31T12:00:00Z")], 422),
        ([("stream", "Stderr")], 422),
        ([("tailLines", "many")], 400),
        ([("tailLines", "9" * 30)], 400),
        ([("sinceTime", "yesterday")], 400),
    ],
)
def test_options_that_cannot_be_followed_are_refused(pairs: Any, status: int) -> None:
    with pytest.raises(BadQuery) as raised:
        log_query(pairs, now_ns=NOW_NS)

    assert raised.value.status == status
