"""From a file or a folder to functions: find the handlers, vendor the requirements, make one deterministic archive."""
