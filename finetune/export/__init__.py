"""What a finished training becomes: an upload with a manifest, or one archive."""
