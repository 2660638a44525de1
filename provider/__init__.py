"""The virtual node: a virtual kubelet with pluggable backends."""
