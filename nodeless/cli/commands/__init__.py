"""How commands are called and what they take; what they do is imported when they run."""
