"""`llamaflow doctor`: where database, S3, folders and processes disagree, as after a restore from a backup, and what mends it."""
