"""The commands of the command line, one module each: `add` declares it, `_run` runs it."""
