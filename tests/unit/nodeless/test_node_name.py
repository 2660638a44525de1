"""What the node of a system is called."""

from pathlib import Path

from nodeless.embedded.home import Home
from nodeless.embedded.system import NODE_NAME, node_name


def test_in_a_cluster_of_its_own_a_node_has_the_plain_name(tmp_path: Path) -> None:
    assert node_name(Home.at(tmp_path), is_embedded=True) == NODE_NAME


def test_in_a_shared_cluster_every_home_has_a_node_of_its_own_and_keeps_it(tmp_path: Path) -> None:
    first, second = Home.at(tmp_path / "first"), Home.at(tmp_path / "second")

    assert node_name(first, is_embedded=False) == node_name(first, is_embedded=False)
    assert node_name(first, is_embedded=False) != node_name(second, is_embedded=False)
    assert len(node_name(first, is_embedded=False)) <= 63
