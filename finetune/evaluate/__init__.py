"""EVALUATE: base and adapter on the held-out rows. Never trains."""
