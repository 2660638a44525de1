"""`python -m nodeless.embedded.setup`: apply the manifests to the API server as soon as it answers, and end.

A step of the embedded system, in a process of its own: the Kubernetes client that it takes is then not carried by the
supervisor for ever.
"""

import argparse
import sys
import time

import anyio

from bus.cluster.connection import ClusterConfig, open_cluster
from bus.cluster.errors import ClusterError
from bus.cluster.manifests import apply_documents, documents_of
from nodeless.embedded.manifests import manifests_directory

FIELD_MANAGER = "nodeless-up"
ANSWERS_WITHIN_S = 60.0
BELIEVED_AFTER_S = 10.0
"""An API server that has just begun to answer refuses what it will take a second later; after this, no means no."""
RETRY_S = 0.05


async def apply_manifests(config: ClusterConfig) -> list[str]:
    """Apply what `manifests/` holds, and return a line for each object. Raises `ClusterError`."""
    documents = documents_of(manifests_directory())
    started_s = time.monotonic()
    while True:
        try:
            async with open_cluster(config) as cluster:
                return await apply_documents(cluster, documents, field_manager=FIELD_MANAGER)
        except ClusterError as error:
            waited_s = time.monotonic() - started_s
            if waited_s > (ANSWERS_WITHIN_S if error.retryable else BELIEVED_AFTER_S):
                raise
        await anyio.sleep(RETRY_S)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m nodeless.embedded.setup", description=__doc__)
    parser.add_argument("--kubeconfig")
    parser.add_argument("--context")
    options = parser.parse_args(arguments)
    try:
        applied = anyio.run(apply_manifests, ClusterConfig(kubeconfig=options.kubeconfig, context=options.context))
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print("\n".join(applied))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
