"""One whole system for the session, and others for tests that break theirs."""

from collections.abc import Iterator

import pytest

from tests.system import System, running_system


@pytest.fixture(scope="session")
def system() -> Iterator[System]:
    with running_system() as running:
        yield running


@pytest.fixture
def own_system() -> Iterator[System]:
    with running_system() as running:
        yield running
