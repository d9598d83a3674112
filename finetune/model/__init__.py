"""Base models: where they come from, the cache they lie in, and how they are loaded."""
