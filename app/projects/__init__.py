"""Projects and their API keys: made, listed and revoked by whoever runs the service, on its command line."""
