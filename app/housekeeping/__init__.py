"""Retention and clean-up: folders of ended jobs, orphans on S3, rows past their time, the cache. A file a duty; any worker, or `llamaflow housekeeping`."""
