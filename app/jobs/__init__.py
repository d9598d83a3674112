"""Jobs: their routes, shapes, states, checks, logs and command line."""
