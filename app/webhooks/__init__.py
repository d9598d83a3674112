"""Callbacks: what is owed, how it is delivered, and where it may go."""
