"""FINE_TUNE: from prepared examples and a base to an adapter, resumable at every step. Reads no dataset, reaches no S3."""
