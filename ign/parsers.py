"""Commands whose options an `argparse` parser defines, as commands of click, and the one form of
their errors.

The parser stays the one source of the options: it parses. click writes help and errors, and
completes in a shell.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from typing import Any, Final

import click
from click.exceptions import NoArgsIsHelpError

from service.domain.errors import IgnError, StartupError, printable

Main = Callable[[Sequence[str]], int]  # runs a command with its arguments; returns the exit status
SETTINGS: Final[Any] = {"help_option_names": ["-h", "--help"]}


# What the two libraries say → what the user reads.
_PLAIN: Final = (
    (r"Missing option '(.+?)' \(env var: '(.+)'\)\.?", r"\1 or the variable \2: missing"),
    (
        r"the following arguments are required: (.+)|Missing (?:argument|option) '(.+?)'.*",
        r"\1\2: missing",
    ),
    (r"No such (option|command):? '(.+?)'\.?", r"no \1 \2"),
    (
        r"No such (option|command):? '(.+?)'\.? \(?Did you mean '?(.+?)'?\?\)?",
        r"no \1 \2; did you mean \3?",
    ),
    (r"Got unexpected extra arguments? \((.*)\)", r"\1: one argument too many"),
    (r"argument (\S+): invalid choice: (\S+) \(choose from (.*)\)", r"\1: \2 is not one of \3"),
    (r"argument (\S+): invalid \w+ value: (.*)", r"\1: \2 is no number"),
    (r"argument (.+?): (.*)|(?:Invalid value for|Option) '(.+?)':? (.*)", r"\1\3: \2\4"),
)


@contextmanager
def one_voice(context: click.Context | None = None) -> Iterator[None]:
    """Let each error in the block show itself as one line: `ign COMMAND: what; what to do`."""
    try:
        yield
    except NoArgsIsHelpError:
        raise
    except (click.ClickException, IgnError) as exc:
        error = (
            exc
            if isinstance(exc, click.ClickException)
            else click.ClickException(printable(exc.detail))
        )
        del (getattr(error, "possibilities", None) or [])[1:]  # the nearest is the first
        text = error.format_message()
        program = f"ign {context.invoked_subcommand or ''}".strip() if context else "ign"
        if isinstance(error, click.UsageError):
            program = error.ctx.command_path if error.ctx else program
            for pattern, plain in _PLAIN:
                text = re.sub(f"^{pattern}$", plain, text)
            if not text.endswith("?"):  # which says what to do
                text = f"{text.rstrip('.')}; `{program} --help` tells more"
        fails = type(error) is click.ClickException and not isinstance(exc, StartupError)
        vars(error).update(
            show=partial(click.echo, f"{program}: {text}", err=True), exit_code=1 if fails else 2
        )
        raise error from None


class ParserCommand(click.Command):
    """A command that hands its arguments, which ``parser`` checks, to its callback as they are."""

    parser: argparse.ArgumentParser

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Check the arguments by the parser; click parses them to complete a word, and to show the
        help.
        """
        if ctx.resilient_parsing or not {"-h", "--help"}.isdisjoint(args):
            return super().parse_args(ctx, args)
        vars(self.parser)["error"] = ctx.fail
        _, unknown = self.parser.parse_known_args(args)
        if unknown:
            name, _, _ = unknown[0].partition("=")
            near = get_close_matches(name, self.parser._option_string_actions, 1)
            raise click.NoSuchOption(name, possibilities=near, ctx=ctx)
        ctx.args = args
        return args


def commands_of(parser: argparse.ArgumentParser, main: Main) -> dict[str, click.Command]:
    """The commands of a parser by name; ``main`` gets the name as its first argument."""

    @click.pass_context
    def run(ctx: click.Context) -> None:
        sys.exit(main([str(ctx.command.name), *ctx.args]))

    (subparsers,) = vars(parser)["_subparsers"]._group_actions
    commands: dict[str, click.Command] = {}
    for choice in subparsers._choices_actions:
        inner = subparsers.choices[choice.dest]
        summary = choice.help or ""
        command = ParserCommand(
            choice.dest,
            params=[_parameter(action) for action in inner._actions if action.dest != "help"],
            help=f"{summary[:1].upper()}{summary[1:]}.",
            short_help=summary,
            callback=run,
            context_settings=SETTINGS,
        )
        command.parser = inner
        commands[choice.dest] = command
    return commands


def _parameter(action: argparse.Action) -> click.Parameter:
    # files complete all other values
    kind = click.Choice(list(action.choices)) if action.choices else click.Path()
    names = [*action.option_strings, action.dest]
    metavar = action.metavar if isinstance(action.metavar, str) else None
    if not action.option_strings:
        some = action.nargs in ("+", "*")
        return click.Argument(
            names, type=kind, nargs=-1 if some else 1, required=False, metavar=metavar
        )
    if action.nargs == 0:
        return click.Option(names, is_flag=True, help=action.help)
    if metavar is None and not action.choices:
        metavar = "NUMBER" if action.type in (int, float) else (action.dest or "").upper()
    return click.Option(
        names, type=kind, help=action.help, required=action.required, metavar=metavar
    )
