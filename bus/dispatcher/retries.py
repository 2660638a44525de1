"""When the retries of one function are due, from the records in `ATTEMPTS`; read on from where it was read last."""

from contextlib import aclosing
from datetime import datetime

import msgspec

from bus.core.attempts import History
from bus.core.topology import ATTEMPTS
from bus.jetstream.connection import Connection
from bus.jetstream.reading import read

_histories = msgspec.json.Decoder(History)


class Retries:
    def __init__(self, namespace: str, function: str, stream: str) -> None:
        self._pattern = f"attempts.{namespace}.{function}.{stream}.*"
        self._next = 1
        self._due: dict[int, float] = {}

    async def read(self, connection: Connection, epoch_s: float) -> None:
        """Take the records written since the last time; `epoch_s` is the time now."""
        self._due = {sequence: due for sequence, due in self._due.items() if due > epoch_s}
        async with aclosing(read(connection, ATTEMPTS, self._pattern, start=self._next)) as messages:
            async for message in messages:
                self._next = message.sequence + 1
                sequence = int(message.subject.rsplit(".", 1)[1])
                due_at = _histories.decode(message.data).due_at
                due = datetime.fromisoformat(due_at).timestamp() if due_at else 0.0
                if due > epoch_s:
                    self._due[sequence] = due
                else:
                    self._due.pop(sequence, None)

    def forget(self) -> None:
        """Read from the beginning next time: the broker may have lost its store, and counts anew."""
        self._next = 1
        self._due.clear()

    def due_s(self, epoch_s: float, now_s: float) -> dict[int, float]:
        """Return the due times by event sequence, on the clock that shows `now_s` at `epoch_s`."""
        return {sequence: due - epoch_s + now_s for sequence, due in self._due.items()}
