"""`-q` and `-v`: options that every command has, and that its own file need not know of."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but results, warnings and errors.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Say every detail, and where an error arose.")]


def add_verbosity(app: typer.Typer) -> None:
    """Give every command of an app, and of the apps inside it, --quiet and --verbose."""
    for command in app.registered_commands:
        if command.callback is not None:
            command.callback = _with_verbosity(command.callback)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            add_verbosity(group.typer_instance)


def _with_verbosity(function: Callable[..., Any]) -> Callable[..., Any]:
    from octfast.console import set_verbosity

    @functools.wraps(function)
    def command(*args: Any, quiet: bool, verbose: bool, **kwargs: Any) -> Any:
        # Given to no command, what stood before the command's name holds.
        if quiet or verbose:
            set_verbosity(quiet, verbose)
        return function(*args, **kwargs)

    # Typer makes a command from the names, types and defaults that it finds here.
    signature = inspect.signature(function, eval_str=True)
    verbosity = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=option)
        for name, option in (("quiet", QuietOption), ("verbose", VerboseOption))
    ]
    parameters = [*signature.parameters.values(), *verbosity]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command
