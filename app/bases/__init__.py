"""The models file from the operator's side: `llamaflow models add|check|list`. What requests make of it: app/adapters/bases.py."""
