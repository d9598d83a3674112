"""What a run's tasks may ask of the service where they share no disk with it: internal routes, by the run's own token."""
