"""Conversations that every family's template is asked to render, each for one thing that masks get wrong."""

from __future__ import annotations

from finetune.data.row import Message, Row

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}


def said(*turns: tuple[str, str] | tuple[str, str, bool]) -> tuple[Message, ...]:
    """Turns by their first letter: s, u, a."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return tuple(Message(roles[turn[0]], *turn[1:]) for turn in turns)


def call(content: str = "", city: str = "São Paulo") -> Message:
    """The assistant calls a tool."""
    function = {"name": "weather", "arguments": {"city": city}}
    return Message("assistant", content, tool_calls=({"id": "call00001", "type": "function", "function": function},))


def told(content: str) -> Message:
    """What the tool says."""
    return Message("tool", content, tool_call_id="call00001", name="weather")


ASKED = Message("user", "Is it warm?")
TOLD = told('{"c": 31}')

CONVERSATIONS: dict[str, Row] = {
    "one question": Row(1, said(("u", "What is the key?"), ("a", "The key."))),
    "a system turn, and an answer of weight 0": Row(
        1, said(("s", "Be brief."), ("u", "Hello"), ("a", "No.", False), ("u", "And?"), ("a", "Yes."))
    ),
    "blanks and newlines around": Row(1, said(("u", " Hello\n"), ("a", "\n\nYes. \n"))),
    "an empty answer": Row(1, said(("u", "Hello"), ("a", ""), ("u", "And?"), ("a", "Yes"))),
    "letters beyond ASCII": Row(1, said(("u", "Não?"), ("a", "É a órbita nº 7 😀"))),
    "thoughts": Row(
        1,
        said(
            ("u", "Hello"),
            ("a", "<think>\nhm\n</think>\n\nNo"),
            ("u", "And?"),
            ("a", "<think>\nah\n</think>\n\nYes"),
        ),
    ),
    "thoughts of an earlier answer": Row(
        1, said(("u", "Hello"), ("a", "<think>\nhm\n</think>\n\nNo"), ("u", "And?"), ("a", "Yes"))
    ),
    "two answers in a row": Row(1, said(("u", "Hello"), ("a", "Yes"), ("a", "Yes"))),
    "two questions in a row": Row(1, said(("u", "Hello"), ("u", "And?"), ("a", "Yes"))),
    "an answer that holds its question": Row(1, said(("u", "Yes"), ("a", "Yes"), ("u", "Yes"), ("a", "Yes"))),
    "a call of a tool": Row(1, (ASKED, call(), TOLD, Message("assistant", "Yes.")), tools=(TOOL,)),
    "a call in an earlier round": Row(
        1,
        (ASKED, call(), TOLD, Message("assistant", "Yes."), Message("user", "And?"), Message("assistant", "No.")),
        tools=(TOOL,),
    ),
    "words before a call": Row(1, (ASKED, call("Hello"), TOLD, Message("assistant", "Yes.")), tools=(TOOL,)),
    "thoughts before a call, in an earlier round": Row(
        1,
        (
            ASKED,
            call("<think>\nhm\n</think>\n\n"),
            TOLD,
            Message("assistant", "Yes."),
            *said(("u", "And?"), ("a", "No.")),
        ),
        tools=(TOOL,),
    ),
    "a call at the end": Row(1, (*said(("s", "Be brief.")), ASKED, call()), tools=(TOOL,)),
}
"""By what is looked at."""
