"""`ign`, and `python -m ign`: one command for all. A command is imported when it is used, so `ign
--help` is quick.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pkgutil import resolve_name
from typing import Any, Final

import click
from click.shell_completion import get_completion_class

import service
from ign.parsers import SETTINGS, commands_of, one_voice
from service.domain.errors import StartupError

Loaders = Mapping[str, tuple[str, Callable[[], click.Command]]]
_PROGRAM: Final = "ign"


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used: name → summary, and the function that
    imports it.
    """

    def __init__(self, name: str, loaders: Loaders, **kwargs: Any) -> None:
        summaries = [
            click.Command(name, short_help=summary) for name, (summary, _) in loaders.items()
        ]
        super().__init__(name, summaries, **kwargs)
        self._loaders = loaders

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the options before the name of a command."""
        with one_voice():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that the arguments name."""
        with one_voice(ctx):
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands, in the order of the help."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Import the command that the arguments name."""
        name, summary, rest = super().resolve_command(ctx, args)
        return name, summary and self._loaders[str(name)][1](), rest


def _client(name: str) -> click.Command:
    try:
        from ign.client import client_command
    except ModuleNotFoundError as exc:
        raise StartupError(
            f"{name} needs {exc.name}: run `pip install ign-client=={service.__version__}`"
        ) from exc
    return client_command(name)


def _bulk() -> click.Command:
    from service.bulk import __main__ as bulk

    prog = f"{_PROGRAM} bulk"
    parser = bulk.parser(prog)
    commands = commands_of(parser, partial(bulk.main, prog=prog))
    return click.Group(
        "bulk", commands, help=parser.description, epilog=parser.epilog, context_settings=SETTINGS
    )


def _training(name: str) -> click.Command:
    from model_export import cli

    return commands_of(cli.parser(_PROGRAM), partial(cli.main, prog=_PROGRAM))[name]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def _completion(shell: str) -> None:
    """Print the script that completes `ign` in a shell, as in: eval "$(ign completion bash)"."""
    script = get_completion_class(shell)
    if script is not None:
        # the last one is the variable through which a shell asks click what completes a word
        click.echo(script(main, {}, _PROGRAM, "_IGN_COMPLETE").source())


_COMMANDS: Final[Loaders] = {
    "serve": (
        "serve models over HTTP, with a page to draw in",
        partial(resolve_name, "service.cli:command"),
    ),
    "models": (
        "list the models that serve would serve",
        partial(resolve_name, "ign.models:models"),
    ),
    "site": (
        "write the page as static files that run the models in the browser",
        partial(resolve_name, "ign.site:site"),
    ),
    "keys": ("add, list and revoke API keys", partial(resolve_name, "ign.keys:keys")),
    "generate": ("generate images from noise", partial(_client, "generate")),
    "project": ("make images real", partial(_client, "project")),
    "score": ("measure how real images look", partial(_client, "score")),
    "interpolate": ("walk between seeds or images", partial(_client, "interpolate")),
    "bulk": ("run many images through a model, without a server", _bulk),
    "data": ("look at images, and say what train would make of them", partial(_training, "data")),
    "train": ("train a model on your images", partial(_training, "train")),
    "export": ("write a trained model as ONNX, verified", partial(_training, "export")),
    "verify": ("check an exported model against its training run", partial(_training, "verify")),
    "import": (
        "import a network of another program, as ONNX or a torch checkpoint",
        partial(_training, "import"),
    ),
    "evaluate": ("measure the quality of an exported model", partial(_training, "evaluate")),
    "figures": ("draw figures of an exported model", partial(_training, "figures")),
    "card": ("write a page about an exported model", partial(_training, "card")),
    "completion": ("print the script that completes commands in a shell", lambda: _completion),
}

main: Final = click.version_option(service.__version__, prog_name=_PROGRAM)(
    LazyGroup(
        _PROGRAM,
        _COMMANDS,
        help="Train, export and serve Idempotent Generative Networks.",
        epilog="`ign COMMAND --help` describes a command.",
        context_settings=SETTINGS,
    )
)
"""The command line of the distribution."""

if __name__ == "__main__":
    main(prog_name=_PROGRAM)
