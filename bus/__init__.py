"""The event bus: events, JetStream, the Function resource, dispatcher, scaler and the ways in."""
