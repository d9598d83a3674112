"""Datasets and results: rows that name objects on S3, uploads, and the one S3 client of the API."""
