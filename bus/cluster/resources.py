"""The kinds that this project reads and writes, by where the API server keeps them."""

from typing import NamedTuple


class Resource(NamedTuple):
    group: str
    """Empty for the core group."""
    version: str
    plural: str
    kind: str
    is_namespaced: bool

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str = "", subresource: str = "") -> str:
        """Return the path below the server; without a namespace, that of all namespaces."""
        parts = ["/apis", self.group, self.version] if self.group else ["/api", self.version]
        if self.is_namespaced and namespace:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part]
        return "/".join(parts)


PODS = Resource("", "v1", "pods", "Pod", True)
NODES = Resource("", "v1", "nodes", "Node", False)
SECRETS = Resource("", "v1", "secrets", "Secret", True)
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap", True)
NAMESPACES = Resource("", "v1", "namespaces", "Namespace", False)
SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts", "ServiceAccount", True)
EVENTS = Resource("", "v1", "events", "Event", True)
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease", True)
FUNCTIONS = Resource("nodeless.dev", "v1alpha1", "functions", "Function", True)
CRDS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", False)
CLUSTER_ROLES = Resource("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole", False)
CLUSTER_ROLE_BINDINGS = Resource("rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding", False)
ROLES = Resource("rbac.authorization.k8s.io", "v1", "roles", "Role", True)
ROLE_BINDINGS = Resource("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding", True)
CERTIFICATE_REQUESTS = Resource(
    "certificates.k8s.io", "v1", "certificatesigningrequests", "CertificateSigningRequest", False
)
TOKEN_REVIEWS = Resource("authentication.k8s.io", "v1", "tokenreviews", "TokenReview", False)
SUBJECT_ACCESS_REVIEWS = Resource("authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", False)
DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment", True)

KNOWN = {
    (each.api_version, each.kind): each
    for each in (
        PODS, NODES, SECRETS, CONFIG_MAPS, NAMESPACES, SERVICE_ACCOUNTS, EVENTS, LEASES, FUNCTIONS, CRDS, CLUSTER_ROLES,
        CLUSTER_ROLE_BINDINGS, ROLES, ROLE_BINDINGS, CERTIFICATE_REQUESTS, DEPLOYMENTS,
    )
}  # fmt: skip


def resource_of(document: dict[str, object]) -> Resource:
    """Return the resource of an object by its apiVersion and kind; raise `KeyError` for one that is not known here."""
    return KNOWN[(str(document.get("apiVersion")), str(document.get("kind")))]
