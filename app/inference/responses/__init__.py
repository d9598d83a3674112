"""/v1/responses for text: OpenAI's newer way to ask, over the same engines as /v1/chat/completions.

Stateless translation there and back (ask.py, answer.py, stream.py), and the answers that are kept for a while so that a
later request can go on from one (kept.py).
"""
