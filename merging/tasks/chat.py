"""Chat templates: a prompt as an instruct model was tuned to see it.

A template is a program of its model's authors. It runs in Jinja's sandbox, with the
tags, filters and functions that transformers offers, for which templates are written;
and in some seconds, or it is stopped where a loop or a macro begins anew.
"""

import functools
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_format
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from merging.runtime.errors import UserError

# What `strftime_now` tells, where transformers tells the present day: a model has the
# same prompts, and so the same score, on every day. It is the date that Llama 3's own
# templates write where they are not told any.
TODAY = datetime(2024, 7, 26)
SECONDS = 10.0  # of a prompt, which takes a thousandth of one
_LARGEST_PRODUCT = 10**6  # characters, elements or bits
# Methods of texts that make them longer by a number; and, in formats, what says one.
_WIDENING = ("center", "ljust", "rjust", "zfill", "expandtabs")
_PERCENT = re.compile(r"%(?:\([^)]*\))?[-+ #0]*([*\d]*(?:\.[*\d]*)?)")
_BRACED = re.compile(r"\{[^{}:]*:([^}]*)")
_SHOWN = 300  # characters of what a template says of its failure


class ChatTemplate:
    """A chat template, compiled.

    Args:
      text: its source.
      tokens: {"bos_token": spelling, …}, the special tokens that it may name.

    Raises:
      UserError: it can't be read, or fails on a plain prompt.
    """

    def __init__(self, text: str, tokens: Mapping[str, str]):
        sandbox = _Sandbox(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
        )
        sandbox.filters |= {"tojson": _bounded(_to_json), "format": _formatted}
        for name in ("center", "indent", "wordwrap", "batch", "slice"):
            sandbox.filters[name] = _bounded(sandbox.filters[name])
        sandbox.globals |= {"raise_exception": _refuse, "strftime_now": TODAY.strftime}
        self._tokens, self._sandbox = dict(tokens), sandbox
        try:
            self._template = sandbox.from_string(_stepping(sandbox, text))
        except Exception as error:  # syntax, depth: whatever a file may hold
            reason = _said(error)
            raise UserError(f"the chat template can't be read: {reason}") from None
        self.wrap("a")  # Refused here rather than in the midst of reading examples.

    def wrap(self, prompt: str) -> str:
        """Return a user's prompt in the template, up to where the answer begins.

        Raises:
          UserError: the template fails.
        """
        return self.render([{"role": "user", "content": prompt}])

    def render(
        self, messages: Sequence[Mapping[str, Any]], answering: bool = True
    ) -> str:
        """Return messages in the template, up to where an answer begins.

        Args:
          messages: each has a `role` and `content`.
          answering: False: up to where the last message, which is begun, goes on.

        Raises:
          UserError: the template fails.
        """
        self._sandbox.until = time.monotonic() + SECONDS
        try:
            text = self._template.render(
                messages=list(messages),
                add_generation_prompt=answering,
                tools=None,
                documents=None,
                **self._tokens,
            )
            text.encode()  # half of a surrogate pair is no text
        except Exception as error:  # of a stranger's program, any
            raise UserError(f"the chat template fails: {_said(error)}") from error
        if not answering:
            # Templates end a turn; and many drop white space at a message's ends.
            begun = str(messages[-1]["content"]).strip()
            text = text[: text.rfind(begun) + len(begun)] if begun in text else text
        return text


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's, whose loops, macros, products and powers come to an end."""

    intercepted_binops = frozenset(("*", "**", "%"))
    until = float("inf")

    def step(self) -> None:
        """Go on, if there is time left."""
        if time.monotonic() > self.until:
            raise jinja2.TemplateError(f"it takes longer than {SECONDS:g} seconds")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Return a product or a power, if it is no trap."""
        sizes = [x.bit_length() if isinstance(x, int) else 1 for x in (left, right)]
        size = sum(sizes)
        for one, other in ((left, right), (right, left)):
            if isinstance(one, str | list | tuple) and isinstance(other, int):
                size = len(one) * other
        if operator == "**" and isinstance(right, int):
            size = sizes[0] * right
        if operator == "%" and isinstance(left, str):
            _require_narrow_format(_PERCENT.findall(left))
        if size > _LARGEST_PRODUCT:
            raise jinja2.TemplateError(f"what {operator} makes is too large")
        return super().call_binop(context, operator, left, right)

    # By place alone: a macro may have parameters of any name.
    def call(self, context: Any, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a method or a macro, unless it is told of a width that is a trap."""
        if getattr(called, "__name__", "") in _WIDENING:
            _require_narrow(*args, *kwargs.values())
        return super().call(context, called, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Any:
        """Return what `format` of a text is, if no width in it is a trap."""
        if getattr(value, "__name__", "") in ("format", "format_map"):
            text = getattr(value, "__self__", None)
            if isinstance(text, str):
                _require_narrow_format(_BRACED.findall(text))
        return super().wrap_str_format(value)


def _bounded(made: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that takes no number larger than any width."""

    @functools.wraps(made)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        _require_narrow(*args, *kwargs.values())
        return made(*args, **kwargs)

    return filtered


def _require_narrow(*told: Any) -> None:
    """Raise if a function is told a number that would be a trap for a width."""
    if any(isinstance(x, int) and abs(x) > _LARGEST_PRODUCT for x in told):
        raise jinja2.TemplateError("a number is too large")


def _require_narrow_format(parts: Sequence[str]) -> None:
    """Raise if a part of a format has a width that would be a trap, or is told one."""
    for part in parts:
        numbers = [int(n[:20]) for n in re.findall(r"\d+", part)]
        if "*" in part or "{" in part or max(numbers, default=0) > _LARGEST_PRODUCT:
            raise jinja2.TemplateError("a number is too large")


def _formatted(text: Any, /, *args: Any, **kwargs: Any) -> str:
    _require_narrow_format(_PERCENT.findall(str(text)))
    return do_format(text, *args, **kwargs)


def _stepping(sandbox: _Sandbox, text: str) -> nodes.Template:
    """Return a template that takes a step whenever a loop or a macro begins anew."""
    template = sandbox.parse(text)
    for part in template.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
        call = nodes.Call(nodes.EnvironmentAttribute("step"), [], [], None, None)
        part.body.insert(0, nodes.ExprStmt(call, lineno=part.lineno))
    return template.set_environment(sandbox)


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())[:_SHOWN]
    return text if text.isprintable() else repr(text)


class _Generation(Extension):
    """``{% generation %}…{% endgeneration %}`` marks what an assistant says."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own sorts keys and escapes what HTML would.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
