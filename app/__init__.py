"""The service: HTTP API, worker and the embedded parts. Starting it never imports torch; see docs/architecture.md."""
