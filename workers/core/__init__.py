"""Decisions inside a worker, as values."""
