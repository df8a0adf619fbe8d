"""The command line: `python -m service.bulk project|score|generate`.

Exit status:

0    all is done
1    all is done, but for pictures that could not be used; the manifest says which, and why
2    the command cannot be meant so; nothing was done
3    the run stopped on its way; what is done stays, and the same command goes on behind it
130  interrupted; likewise
"""

import argparse
import secrets
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from service.bulk.files import check_apart, check_local
from service.bulk.job import SCHEMAS, Job, parsed
from service.bulk.output import Output, check_form
from service.bulk.progress import shown
from service.bulk.readers import open_source
from service.domain.errors import IgnError, StartupError
from service.environment import check_installed, installed_runtimes, keep_precision, silence_runtime
from service.settings import from_environment

if TYPE_CHECKING:
    from service.bulk.local import Extent

    Way = Callable[..., Extent]

DONE, PARTLY, USAGE, STOPPED, INTERRUPTED = 0, 1, 2, 3, 130
_SEED_BITS: Final = 32


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = parser().parse_args(arguments)
    try:
        return _run(options)
    except StartupError as exc:
        return _stop(exc.detail, USAGE)
    except (IgnError, OSError) as exc:
        detail = exc.detail if isinstance(exc, IgnError) else str(exc)
        return _stop(f"stopped: {detail}; the same command goes on from here", STOPPED)
    except KeyboardInterrupt:
        return _stop("interrupted; the same command goes on from here", INTERRUPTED)


def _stop(line: str, status: int) -> int:
    print(f"service.bulk: {line}", file=sys.stderr)  # noqa: T201
    return status


def _run(options: argparse.Namespace) -> int:
    check_installed(installed_runtimes())  # before anything imports onnxruntime, which would fail less clearly
    silence_runtime()
    keep_precision()
    settings = from_environment()
    check_local(options.output)
    output = Output(Path(options.output))
    check_apart(options.input, output.root)
    output.check()
    check_form(options.manifest)
    job = _job(options, output)
    with ExitStack() as opened:
        source = None
        if job.source:
            source = opened.enter_context(
                closing(open_source(job.source, column=job.column, limit=settings.max_body_bytes))
            )
        opened.enter_context(output.claimed())
        extent = _way(options)(job, source, output, settings, partial(shown, stream=sys.stderr))
        manifest, bad = output.merge(extent.shards, options.manifest)
    told = f", {bad} of them could not be used" if bad else ""
    print(f"{manifest}: {extent.pictures} pictures{told}")  # noqa: T201
    return PARTLY if bad else DONE


def _way(options: argparse.Namespace) -> "Way":
    from service.bulk import local

    if not options.ray:
        return local.here
    from service.bulk.ray_data import through_ray

    return partial(through_ray, actors=options.actors)


def _job(options: argparse.Namespace, output: Output) -> Job:
    names = {field for schema in SCHEMAS.values() for field in schema.model_fields}
    given = {name: value for name, value in vars(options).items() if name in names and value is not None}
    if options.task == "generate" and "seed" not in given:
        before = (output.remembered() or {}).get("options", {})
        given["seed"] = before.get("seed", secrets.randbits(_SEED_BITS))
    asked = parsed(options.task, given)
    return Job(options=asked, source=options.input, column=options.column, shard=options.shard)


def parser() -> argparse.ArgumentParser:
    """What may be said."""
    top = argparse.ArgumentParser(
        prog="python -m service.bulk",
        description="Send many pictures through a model without a server. Models, device and limits are those of the "
        "service's settings, the environment variables IGN_…. The same command again goes on where it was stopped.",
        epilog="exit status: 0 done, 1 some pictures could not be used, 2 usage, 3 stopped, 130 interrupted",
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND", dest="task")
    project = commands.add_parser("project", help="make pictures real: f^k(x)")
    _source(project)
    _applying(project)
    project.add_argument("--strength", type=float, help="s of (1−s)·x + s·f^k(x), 0…1 (1)")
    score = commands.add_parser("score", help="how far f moves pictures, beside held-out real ones")
    _source(score)
    generate = commands.add_parser("generate", help="new pictures from noise")
    generate.set_defaults(input="", column="")
    _output(generate)
    _applying(generate)
    generate.add_argument("-n", type=int, default=1, help="how many (1)")
    generate.add_argument("--seed", type=int, help="0…4294967295 (one is chosen, and kept in the output)")
    generate.add_argument("--offset", type=int, help="number of the first latent (0)")
    generate.add_argument("--noise-scale", type=float, help="0…2 (1)")
    return top


def _source(command: argparse.ArgumentParser) -> None:
    command.add_argument("input", metavar="INPUT", help="folder, .zip or .parquet; or a URL that fsspec reads")
    _output(command)
    command.add_argument("--column", default="image", help="of a table: where the pictures are (image)")
    command.add_argument(
        "--resize", choices=("fit", "crop", "stretch"), help="how a picture of another size fits (fit)"
    )
    command.add_argument("--invert", type=_invert, metavar="auto|true|false", help="exchange light and dark (auto)")


def _output(command: argparse.ArgumentParser) -> None:
    command.add_argument("output", metavar="OUTPUT", help="folder; a new one, or that of the run to be continued")
    command.add_argument("--model", help="name or name/version (IGN_DEFAULT_MODEL)")
    command.add_argument("--shard", type=_positive, default=1024, help="pictures kept together (1024)")
    command.add_argument(
        "--manifest", choices=("jsonl", "parquet"), default="jsonl", help="form of the manifest (jsonl)"
    )
    command.add_argument("--ray", action="store_true", help="run on Ray Data; input and output reachable by every node")
    command.add_argument("--actors", type=_positive, help="with --ray: models at work (one a GPU, else one a node)")


def _applying(command: argparse.ArgumentParser) -> None:
    command.add_argument("--steps", type=int, help="applications of f (the model's own)")
    command.add_argument("--tolerance", type=float, help="stop a picture once f moves it by less")
    command.add_argument("--score", action="store_const", const=True, help="also measure drift, for one more step")
    command.add_argument("--format", choices=("png", "jpeg", "webp", "npy"), help="of the pictures (png)")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _invert(text: str) -> bool | str:
    if text not in ("auto", "true", "false"):
        raise argparse.ArgumentTypeError("expected auto, true or false")
    return text if text == "auto" else text == "true"


if __name__ == "__main__":
    sys.exit(main())
