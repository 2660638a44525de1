"""The laptop's system: a real control plane, a real broker and our three programs under one supervisor."""
