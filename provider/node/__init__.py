"""The node as the API sees it: its registration, its pods and their status, and what it tells in Events."""
