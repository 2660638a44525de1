"""The only door to nats-py: connection, storing, reading, consuming, bundles, credentials.

Rules learnt from the library's source and its issues: never `fetch` (a task per message, and a pull lost over a
restart is noticed at its timeout), never `drain` with a pull subscription, nothing that relies on cancelling one of
its calls (some swallow it).
"""

import sys

# Where aiohttp is installed, nats-py imports it for WebSocket URLs, which we do not offer: half of the time that the
# import takes (0.1 s) and 10 MB of each process, a worker's cold start among them. Without it the library goes on.
if "aiohttp" not in sys.modules:
    sys.modules["aiohttp"] = None  # type: ignore[assignment]
    import nats.aio.transport  # noqa: F401

    del sys.modules["aiohttp"]
