"""The node's HTTPS API, as a kubelet serves it: who calls, whether they may, and what they asked for."""
