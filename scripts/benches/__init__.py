"""Where all figures come from: each module is one bench with a `run(options, progress) -> Report`."""
