"""Commands whose errors are one line each, in the words of the command line.

Messages of the package name parameters as Python does: `` `patch` `` and `` `resume=False` `` between backticks; a
parameter with a constant also without them, and one at the beginning of a message (``patch: got 5``). Here, and nowhere
else, those that are options of the command are spelled as options: ``--patch``, ``--no-resume``.

All text for a terminal passes `echo`, `Formatter` or `Group`: names and attributes of files cannot control the
terminal, and secrets in URLs are masked.
"""

from __future__ import annotations

import ast
import logging
import re
from typing import Any

import click

from gridrad_cube.schema import mask_secrets, printable

#: Errors that are about what was asked for; anything else is a fault of the program and shows its traceback.
EXPECTED = (ValueError, OSError, ImportError)

_PARAMETER = re.compile(
    r"`(?P<quoted>[a-z]\w*)(?:=(?P<value>[^`]*))?`"
    r"|(?<![\w./?&-])(?P<bare>[a-z]\w*)=(?P<constant>None|True|False|'[^']*')"
    r"|^(?P<first>[a-z]\w*)(?=: )"
)


def clean(text: str) -> str:
    """Return text that a terminal can show, with secrets masked. Lines stay."""
    return mask_secrets(printable(text, keep="\n\t"))


def echo(text: Any, *, err: bool = False) -> None:
    """Print a line or several, on standard output or standard error."""
    click.echo(clean(str(text)), err=err)


class Command(click.Command):
    """A command that turns expected errors into one line and exit status 1, and an interruption into status 130."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interruption:
            echo(spell(str(interruption) or "Interrupted.", ctx), err=True)
            ctx.exit(130)
        except EXPECTED as error:
            if ctx.find_root().params.get("debug"):
                raise
            raise click.ClickException(spell(_one_line(error), ctx)) from error


class Group(click.Group):
    """A group of commands, in the order in which they are added."""

    command_class = Command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. Errors in its arguments are shown like other messages."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            error.message = clean(error.message)  # type: ignore[misc]
            raise

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(self.commands)


class Formatter(logging.Formatter):
    """A formatter of log records in the words of the command line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        ctx = click.get_current_context(silent=True)
        text = super().format(record)
        return clean(spell(text, ctx) if ctx else text)


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def spell(text: str, ctx: click.Context) -> str:
    """Spell the parameters that a message names as options and arguments of a command.

    Parameters
    ----------
    text
        A message, with parameters between backticks.
    ctx
        The context of the command. A name that is not one of its parameters stays as it is.
    """
    params = {param.name: param for param in ctx.command.get_params(ctx)}
    root = ctx.find_root()
    others = root.command.commands.values() if isinstance(root.command, click.Group) else ()
    # A remedy may be an option of an earlier command.
    elsewhere = {
        param.name: param for command in others for param in command.params if param.name not in params
    }

    def replace(match: re.Match[str]) -> str:
        name = match["quoted"] or match["bare"] or match["first"]
        value = match["value"] or match["constant"]
        switch = params.get(f"no_{name}")
        if value in ("None", "False") and switch is not None:
            return switch.opts[0]
        param = params.get(name) or (elsewhere.get(name) if match["quoted"] else None)
        if param is None:
            return match[0]
        if isinstance(param, click.Argument):
            return param.human_readable_name
        flag = max(param.opts, key=len)
        if value == "False" and param.secondary_opts:
            return param.secondary_opts[0]
        if value in (None, "", "True"):
            return flag
        return f"no {flag}" if value == "None" else f"{flag} {_spell_value(value)}"

    return _PARAMETER.sub(replace, text)


def _spell_value(value: str) -> str:
    """Spell a value as on the command line; a tuple of a channel, a variable and its units as CHANNEL=NAME:UNITS."""
    try:
        found = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
    if not isinstance(found, (tuple, list)):
        return str(found)
    if all(isinstance(item, tuple) and len(item) == 3 for item in found):
        return " ".join(
            f"{channel}={name}" + (f":{units}" if units else "") for channel, name, units in found
        )
    return " ".join(map(str, found))
