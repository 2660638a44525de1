"""The git bridge: what is pushed to a repository becomes events, one for each updated ref.

`install` puts the hook into a repository. At a push, the hook (`hook.py`) writes the push into the repository's
spool and starts the deliverer (`python -m bus.ingress.git deliver`), which publishes what waits, in order and once,
and ends.
"""
