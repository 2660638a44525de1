"""Decisions of the bus, as values: nothing in here touches a clock, a socket, a file or a log."""
