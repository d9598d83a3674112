"""The registry: bases, adapters by name, their versions, and /v1/models."""
