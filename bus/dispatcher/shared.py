"""What the units of all functions use together."""

from msgspec import Struct

from bus.cluster.connection import Cluster
from bus.dispatcher.wakes import WakeSignals
from bus.jetstream.connection import Connection
from bus.scaler.events import EventRecorder
from bus.scaler.pods import Scaler


class Shared(Struct, frozen=True, kw_only=True):
    cluster: Cluster
    connection: Connection
    scaler: Scaler
    wakes: WakeSignals
    recorder: EventRecorder
