"""Command line options made of the fields of a request, with the names, types, ranges and help of its body."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from typing import Annotated, Any, Literal, cast

import typer
from pydantic import BaseModel

from model.config import TrainConfig
from model.fields import Config, types_of
from service.bodies.fields import meanings
from service.bodies.options import Option, options_of

Command = Callable[..., None]
Completion = Callable[[str], list[tuple[str, str]]]
_PARAMETER = "options"


def takes_fields(
    body: type[BaseModel], *, only: Collection[str] = (), leave_out: Collection[str] = (), **completions: Completion
) -> Callable[[Command], Command]:
    """Give a command the fields of a body as options, in place of its parameter `options`.

    That parameter gets the values by name, None where an option was not given. `only` keeps some fields, `leave_out`
    drops some, and `completions` completes the values of single fields.
    """
    options = [one for one in options_of(body, leave_out=leave_out) if not only or one.name in only]

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        made = [_parameter(one, completions.get(one.name)) for one in options]
        at = list(signature.parameters).index(_PARAMETER)
        others = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in signature.parameters.values()]
        parameters = [*others[:at], *made, *others[at + 1 :]]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            values = {one.name: given.pop(one.name) for one in options}
            command(**given, **{_PARAMETER: values})

        run.__annotations__ = {one.name: one.annotation for one in parameters}
        cast(Any, run).__signature__ = signature.replace(parameters=parameters)
        return run

    return decorate


def _parameter(option: Option, completion: Completion | None) -> inspect.Parameter:
    kind: Any = option.kind
    settings: dict[str, Any] = {"help": option.meaning or None, "autocompletion": completion}
    if option.kind in (int, float) and not option.words:
        settings |= {"min": option.low, "max": option.high}
    elif option.kind is str and option.words:
        kind = Literal.__getitem__(option.words)
    elif option.words:
        kind, settings["parser"] = str, functools.partial(_number_or_word, option)
        settings["metavar"] = "|".join(["INTEGER", *option.words])
    if option.default is not None:
        settings["show_default"] = str(option.default)
    flag = f"--{option.name.replace('_', '-')}"
    names = [f"{flag}/--no-{flag.removeprefix('--')}"] if option.kind is bool else [flag]
    annotation = Annotated[kind | None, typer.Option(*names, **settings)]
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _number_or_word(option: Option, text: str) -> int | str:
    if text in option.words:
        return text
    if not text.isdecimal():
        raise typer.BadParameter(f"{text!r} is no number, nor {' or '.join(option.words)}")
    return int(text)


def complete_setting(incomplete: str) -> list[tuple[str, str]]:
    """Complete a field of the configuration as `--set` takes it, up to the `=`."""
    return [(f"{name}=", told) for name, told in _settings(TrainConfig) if name.startswith(incomplete)]


def _settings(config: type[Config]) -> list[tuple[str, str]]:
    """Return (path, meaning) of each field of a configuration and of those nested in it."""
    told = meanings(config)
    found = []
    for name, hint in types_of(config).items():
        below = _settings(hint) if isinstance(hint, type) and issubclass(hint, Config) else [("", told[name])]
        found += [(f"{name}.{inner}".removesuffix("."), meaning) for inner, meaning in below]
    return found
