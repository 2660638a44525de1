"""The only door to nats-py: connection, storing, reading, consuming, bundles, credentials.

Rules learnt from the library's source and its issues: never `fetch` (a task per message, and a pull lost over a
restart is noticed at its timeout), never `drain` with a pull subscription, nothing that relies on cancelling one of
its calls (some swallow it).
"""
