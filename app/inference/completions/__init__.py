"""/v1/completions: a text gone on from as it stands, without a chat template, over the same engines as /v1/chat/completions.

Stateless translation there and back: ask.py, stream.py.
"""
