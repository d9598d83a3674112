"""Loops: feedback becomes training data, training data a new version, the gate decides whether it answers from then on."""
