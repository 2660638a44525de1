"""What can go wrong on a virtual node.

ProviderError
  PodRejected          can never run here: the pod becomes Failed, with this reason and message in its status
  PodNotFound          the backend knows no such pod or container; on stop this is success
  CapacityExceeded     not now                                                     retryable
  BackendUnavailable   nothing was done; try again                                 retryable
"""


class ProviderError(Exception):
    retryable = False


class PodRejected(ProviderError):
    """`reason` is CamelCase, for programs; `message` is for people: what was asked, and what is possible here."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason, self.message = reason, message
        super().__init__(f"{reason}: {message}")


class PodNotFound(ProviderError):
    def __init__(self, uid: str, what: str = "pod") -> None:
        self.uid, self.what = uid, what
        super().__init__(f"no {what} of pod {uid} here")


class CapacityExceeded(ProviderError):
    retryable = True


class BackendUnavailable(ProviderError):
    retryable = True

    def __init__(self, backend: str, reason: str) -> None:
        self.backend, self.reason = backend, reason
        super().__init__(f"backend {backend}: {reason}")
