"""Routes of OpenAI's that this service does not have on purpose: what is said to a client that calls one.

Who comes from there is better told why and what to do instead than that a path is unknown.
"""

from __future__ import annotations

import re

TABLE: tuple[tuple[str, str, str], ...] = (
    (
        r"GET|POST|DELETE",
        r"/v1/fine_tuning/checkpoints/.+/permissions(/[^/]+)?",
        "Permissions on checkpoints are not offered: every key of a project may use the project's checkpoints, and no other key may.",
    ),
    (
        r"POST",
        r"/v1/fine_tuning/alpha/graders/(run|validate)",
        "Graders belong to reinforcement fine-tuning, which is not offered. Train with the method supervised or dpo, and let `evaluation` score the result.",
    ),
    (
        r"GET|POST|DELETE",
        r"/v1/chat/completions(/[^/]+(/messages)?)?",
        "Chat completions are not stored here. Ask with POST /v1/chat/completions; /v1/responses keeps what it answered.",
    ),
    (
        r"POST",
        r"/v1/responses/input_tokens(/count)?",
        "Tokens are not counted ahead here: `usage` of a response has the number.",
    ),
    (
        r"POST",
        r"/v1/responses/compact",
        "Conversations are not compacted here. Send the part of it that matters in `input`.",
    ),
    (
        r"[A-Z]+",
        r"/v1/(embeddings|moderations|batches|images|audio|videos|realtime|vector_stores|assistants|threads|conversations|evals|containers|skills|chatkit)(/.*)?",
        "LlamaFlow fine-tunes and serves models of text; this part of OpenAI's service is not offered.",
    ),
)
"""Methods, paths, and the sentence."""


def sentence(method: str, path: str) -> str | None:
    """Why there is no such route on purpose; None for one that is merely unknown."""
    for methods, paths, said in TABLE:
        if re.fullmatch(methods, method) and re.fullmatch(paths, path.rstrip("/")):
            return said
    return None
