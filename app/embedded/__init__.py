"""The one-machine defaults: Postgres, S3 server and engine as child processes under one supervisor (`llamaflow up`)."""
