"""Decisions of the virtual node, as values: what to do next for a pod, what its status is, what the node offers."""
