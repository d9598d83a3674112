"""The inference engine: one base, many adapters, a token at a time, in a process of its own. Knows no jobs."""
