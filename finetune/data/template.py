"""Chat templates: the model's own, rendered as transformers renders them, without transformers (which would bring torch).

A template comes with a model, so it is untrusted: it runs in Jinja's immutable sandbox and sees plain data only.
The environment is that of `transformers.utils.chat_template_utils`; a test compares the two.
"""

from __future__ import annotations

import copy
import datetime
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from finetune.data.row import Message

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""For a base without a template whose tokenizer knows <|im_start|> and <|im_end|>."""

PLAIN = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] | capitalize + ': ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""For any other base without a template: `User: …`, newline, `Assistant: …`, end-of-text token."""


class TemplateError(Exception):
    """The template refuses a conversation, or cannot be rendered at all; the message says why."""


class Template:
    """A chat template, ready to render.

    Args:
        source: Jinja text.
        special_tokens: `bos_token`, `eos_token`, … as the tokenizer names them; the template may use them.
    Raises:
        TemplateError: It is no Jinja.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        self.source = source
        self.sha256 = hashlib.sha256(source.encode()).hexdigest()
        self.tools: list[Mapping[str, Any]] = []
        self._special = dict(special_tokens or {})
        try:
            self._compiled = _environment().from_string(source)
        except jinja2.TemplateError as problem:
            raise TemplateError(f"the chat template is no valid Jinja: {problem}") from None

    def with_tools(self, tools: Sequence[Mapping[str, Any]]) -> Template:
        """The same template, where the assistant may call `tools`."""
        bound = copy.copy(self)
        bound.tools = list(tools)
        return bound

    def render(self, messages: Iterable[Message], *, add_generation_prompt: bool = False) -> str:
        """The conversation as one text.

        Args:
            messages: The turns.
            add_generation_prompt: End with the header of an assistant turn, for the model to go on.
        Raises:
            TemplateError: The template refuses the conversation.
        """
        turns = [message.as_json() for message in messages]
        try:
            return self._compiled.render(
                messages=turns,
                tools=self.tools or None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special,
            )
        except MemoryError:
            raise
        except Exception as problem:  # noqa: BLE001  a template is a stranger's program: it may fail in any way
            raise TemplateError(f"the model's chat template refuses it: {problem}") from None


def default_template(known_tokens: Iterable[str]) -> str:
    """The template of a base that has none.

    Args:
        known_tokens: The tokenizer's special tokens.
    """
    return CHATML if {"<|im_start|>", "<|im_end|>"} <= set(known_tokens) else PLAIN


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks answers for transformers; here it only renders what it holds."""

    tags = {"generation"}  # noqa: RUF012  jinja's own shape of it

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """The nodes inside the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(jinja2.utils.Namespace):
    """A namespace that takes no underscored names: they lead to Python's insides."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _refuse_underscore(name)
        jinja2.utils.Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


class _Dict:
    """`dict(…)` without dict's attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """As `dict.fromkeys`."""
        return dict.fromkeys(*args)


def _refuse_underscore(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace may not hold {name!r}")


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Jinja's own filter escapes HTML; templates are written for one that does not."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)  # noqa: DTZ005  as transformers: local time


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_Dict(), namespace=_Namespace
    )
    return environment
