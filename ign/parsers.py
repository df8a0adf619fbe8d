"""Commands whose options an `argparse` parser defines, as commands of click.

The parser stays the one source of the options: it parses, and writes help and errors. click gets a list of the same
options, for the completion in a shell.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import click

Main = Callable[[Sequence[str]], int]
"""Runs a command with its arguments; returns the exit status."""


class ParserCommand(click.Command):
    """A command that hands its arguments, which ``parser`` describes, to ``main`` as they are."""

    def __init__(self, name: str, parser: argparse.ArgumentParser, main: Main, summary: str | None = None) -> None:
        parameters = [_parameter(action) for action in parser._actions if action.dest != "help"]
        super().__init__(
            name, params=parameters, help=parser.description, short_help=summary, callback=lambda **_: None
        )
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
    """The command of a parser, or a group if it has commands, whose names are then the first argument of ``main``."""
    commands = subparsers(parser)
    if not commands:
        return ParserCommand(name, parser, main)

    def run(inner: str, arguments: Sequence[str]) -> int:
        return main([inner, *arguments])

    settings = {"help_option_names": ["-h", "--help"]}
    group = click.Group(name, help=parser.description, epilog=parser.epilog, context_settings=settings)
    summaries = {
        choice.dest: choice.help for action in _subparsers_actions(parser) for choice in action._choices_actions
    }
    for inner, inner_parser in commands.items():
        group.add_command(ParserCommand(inner, inner_parser, partial(run, inner), summaries.get(inner)))
    return group


def subparsers(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    """Name → parser of the commands of a parser; empty if it has none."""
    return {name: inner for action in _subparsers_actions(parser) for name, inner in action.choices.items()}


def _subparsers_actions(parser: argparse.ArgumentParser) -> "list[argparse._SubParsersAction[argparse.ArgumentParser]]":
    return [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]


def _parameter(action: argparse.Action) -> click.Parameter:
    kind = click.Choice(list(action.choices)) if action.choices else click.Path()  # files complete all other values
    if not action.option_strings:
        return click.Argument([action.dest], type=kind, nargs=-1 if action.nargs in ("+", "*") else 1, required=False)
    if action.nargs == 0:
        return click.Option([*action.option_strings, action.dest], is_flag=True, help=action.help)
    return click.Option([*action.option_strings, action.dest], type=kind, help=action.help)
