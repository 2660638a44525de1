"""A real Kubernetes control plane on one machine: found or built, given certificates, described to a supervisor.

`build` finds or makes the binary, `pki` the certificates and kubeconfigs, `components` the flags of the four programs,
`launch` puts them together. No kubelet is here: the nodes of this system are virtual.
"""
