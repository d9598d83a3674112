"""The worker: claims jobs, runs their pipelines, settles them, delivers callbacks. Serves no HTTP."""
