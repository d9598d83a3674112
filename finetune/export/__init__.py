"""What a finished training becomes: a merged model or a GGUF file where asked for, then an upload with a manifest and a card."""

MERGED, GGUF = "merged", "model-f16.gguf"
"""What EXPORT_MODEL leaves in exported/, and what it is called below the result's prefix."""
