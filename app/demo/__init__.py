"""The demonstration (`llamaflow demo`): one real job from a dataset on S3 to answers, through the public API only.

It may use the official `openai` client, boto3 and the embedded supervisor; nothing of the service imports it.
"""
