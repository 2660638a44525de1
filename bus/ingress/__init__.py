"""The ways in: events that do not come from a NATS client."""
