"""The text of an answer while its tokens come: whole characters only, and nothing of a stop string is ever shown.

Knows how to decode ids through a function; no torch, no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
"""What decoders show for bytes that are no character, such as the first half of one."""


class TextStream:
    """One answer.

    Text is decoded from the last shown token on, because what a token reads as can depend on the one before it (leading
    spaces, bytes of one character over several tokens).

    Args:
        decode: Ids to text, special tokens left out.
        stops: Texts that end the answer and are not part of it.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self._decode, self._stops = decode, tuple(stops)
        self._ids: list[int] = []
        self._context, self._shown = 0, 0
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token.

        Returns:
            What can be shown now; empty while a character or a possible stop string is incomplete. After that, `stopped`
            tells whether a stop string ended the answer.
        """
        self._ids.append(token)
        return self._release(self._fresh(final=False), final=False)

    def finish(self) -> str:
        """What was still held back, when no token will follow."""
        return "" if self.stopped else self._release(self._fresh(final=True), final=True)

    def _fresh(self, *, final: bool) -> str:
        before = self._decode(self._ids[self._context : self._shown])
        text = self._decode(self._ids[self._context :])
        if len(text) <= len(before) or (text.endswith(REPLACEMENT) and not final):
            return ""
        self._context, self._shown = self._shown, len(self._ids)
        return text[len(before) :]

    def _release(self, fresh: str, *, final: bool) -> str:
        text = self._held + fresh
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = 0 if final else max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` could begin."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
