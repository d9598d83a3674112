"""The trainer: a package with a command line (`python -m finetune`), usable without the service. Never imports `app`."""
