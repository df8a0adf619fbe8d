"""Commands whose options an `argparse` parser defines, as commands of click.

The parser stays the one source of the options: it parses, and writes help and errors. click gets a list of the same
options, for the completion in a shell.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

Main = Callable[[Sequence[str]], int]
"""Runs a command with its arguments; returns the exit status."""


class ParserCommand(click.Command):
    """A command that hands its arguments to a function as they are.

    Args:
        name: of the command.
        parser: describes its arguments.
        main: runs it.
    """

    def __init__(self, name: str, parser: argparse.ArgumentParser, main: Main) -> None:
        parameters = [_parameter(action) for action in parser._actions if action.dest != "help"]
        super().__init__(name, params=parameters, help=parser.description, callback=lambda **_: None)
        self._main = main

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the arguments for the parser; click parses them only to complete a word."""
        if ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        ctx.args = args
        return args

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command and exit with its status."""
        sys.exit(self._main(ctx.args))


def from_parser(name: str, parser: argparse.ArgumentParser, main: Main) -> click.Command:
    """The command of a parser, or a group if the parser has commands of its own.

    Args:
        name: of the command.
        parser: its parser.
        main: runs it; the commands of a group are its first argument.
    """
    commands = subparsers(parser)
    if not commands:
        return ParserCommand(name, parser, main)
    group = click.Group(
        name,
        help=parser.description,
        epilog=parser.epilog,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for inner, inner_parser in commands.items():
        command = ParserCommand(inner, inner_parser, lambda args, inner=inner: main([inner, *args]))  # type: ignore[misc]
        command.short_help = _summaries(parser).get(inner)
        group.add_command(command)
    return group


def subparsers(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    """Name → parser of the commands of a parser; empty if it has none."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return action.choices
    return {}


def _summaries(parser: argparse.ArgumentParser) -> Mapping[str, str | None]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return {choice.dest: choice.help for choice in action._choices_actions}
    return {}


def _parameter(action: argparse.Action) -> click.Parameter:
    kind = click.Choice(list(action.choices)) if action.choices else click.Path()  # files complete all other values
    if not action.option_strings:
        return click.Argument([action.dest], type=kind, nargs=-1 if action.nargs in ("+", "*") else 1, required=False)
    if action.nargs == 0:
        return click.Option([*action.option_strings, action.dest], is_flag=True, help=action.help)
    return click.Option([*action.option_strings, action.dest], type=kind, help=action.help)
