"""The command line: `python -m service.bulk project|score|generate|status`; `--help` explains the
exit status.
"""

import argparse
import logging
import secrets
import sys
from collections.abc import Sequence
from functools import partial
from typing import Final

from tqdm.contrib.logging import logging_redirect_tqdm

from service.bulk.output import Output, check_output
from service.bulk.pipeline import parse_options
from service.domain.errors import IgnError, StartupError
from service.environment import prepare_process
from service.settings import local_settings, log_name_warnings

_LOG = logging.getLogger("service.bulk")
DONE = 0
SOME_FAILED = 1
USAGE = 2
STOPPED = 3
INTERRUPTED = 130
_PROG: Final = "python -m service.bulk"


def main(arguments: Sequence[str] | None = None, *, prog: str = _PROG) -> int:
    """Run one command, and name the program ``prog`` in messages; returns the exit status."""
    options = parser(prog).parse_args(arguments)
    _LOG.setLevel(logging.INFO)
    try:
        with logging_redirect_tqdm([_LOG]):  # lines appear above the progress bar
            return _run(options)
    except StartupError as exc:
        line = exc.detail
        status = USAGE
    except (IgnError, OSError) as exc:
        line = f"stopped: {exc}; the same command continues"
        status = STOPPED
    except KeyboardInterrupt:
        line = "interrupted; the same command continues"
        status = INTERRUPTED
    print(f"{prog} {options.task}: {line}", file=sys.stderr)
    return status


def _run(options: argparse.Namespace) -> int:
    output = Output(options.output)
    if options.task == "status":
        print(f"{options.output}: {output.status()}")
        return DONE
    prepare_process()  # before the first import of onnxruntime, whose error is less clear
    from service.bulk.run import Job, open_input, run_local, run_on_ray

    settings = local_settings()
    log_name_warnings()
    check_output(output, options.input, options.pack, options.manifest)
    is_part = options.part is not None
    if is_part and options.part[0] > 1:
        output.wait()
    if options.task == "generate" and options.seed is None:
        previous = (output.previous_job() or {}).get("options", {})
        options.seed = previous.get("seed", secrets.randbits(32))
    job = Job(
        options=parse_options(options.task, vars(options)),
        source=options.input,
        column=options.column,
        shard=options.shard,
        pack=options.pack,
        part=options.part or (1, 1),
    )
    run = partial(run_on_ray, actors=options.actors) if options.ray else run_local
    plan = run(job, open_input(job, output, settings, is_part=is_part), output, settings)
    if left := plan.shards - len(output.complete()):
        print(
            f"{options.output}: {plan.images} images of this part; {left} shards are left to "
            f"other parts"
        )
        return DONE
    manifest, images, failed = output.merge(plan.shards, options.manifest)
    print(f"{manifest}: {images} images{f', {failed} failed' if failed else ''}")
    return SOME_FAILED if failed and not is_part else DONE


def parser(prog: str = _PROG) -> argparse.ArgumentParser:
    """The parser of the command line."""
    top = argparse.ArgumentParser(
        prog=prog,
        description="Run many images through a model without a server. Models and device are "
        "settings of the service (environment variables IGN_…). A stopped run is "
        "continued by the same command.",
        epilog="exit status: 0 all images are done; 1 done, but some images failed (with --part "
        "0); 2 invalid command, nothing was written; 3 stopped, 130 interrupted: complete "
        "shards stay, and the same command continues",
        allow_abbrev=False,
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND", dest="task")
    add = partial(commands.add_parser, allow_abbrev=False)
    project = add("project", help="project images: f^k(x)")
    _source(project)
    _steps(project)
    project.add_argument("--strength", type=float, help="s in (1−s)·x + s·f^k(x), 0…1 (1)")
    _source(add("score", help="measure how far f moves images, compared to real ones"))
    generate = add("generate", help="generate images from noise")
    generate.set_defaults(input="", column="")
    add("status", help="how far a run is").add_argument(
        "output", metavar="OUTPUT", help="folder or URL of a run"
    )
    _output(generate)
    _steps(generate)
    generate.add_argument("-n", type=int, default=1, help="number of images (1)")
    generate.add_argument(
        "--seed", help="0…4294967295, or a text (random; a continued run uses the same)"
    )
    generate.add_argument("--offset", type=int, help="index of the first latent (0)")
    generate.add_argument("--noise-scale", type=float, help="0…2 (1)")
    return top


def _source(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "input",
        metavar="INPUT",
        help="image, folder, .zip or .parquet; path or URL (s3:, gs:, az:, https:)",
    )
    _output(command)
    add("--column", default="image", help="column of a .parquet that holds the images (image)")
    add(
        "--resize",
        choices=("fit", "crop", "stretch"),
        help="how to fit an image of another size (fit)",
    )
    add("--invert", choices=("auto", "true", "false"), help="invert light and dark (auto)")


def _output(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("output", metavar="OUTPUT", help="folder or URL: new, or that of a run to continue")
    add("--model", help="name or name/version (IGN_DEFAULT_MODEL)")
    add("--shard", type=_positive, default=1024, help="images per shard (1024)")
    add(
        "--manifest",
        choices=("jsonl", "parquet"),
        default="jsonl",
        help="format of the manifest (jsonl)",
    )
    add(
        "--actors",
        type=_positive,
        help="with --ray: number of actors (one per GPU, or 4 cores or IGN_THREADS)",
    )
    add = command.add_mutually_exclusive_group().add_argument
    add(
        "--part",
        type=_part,
        metavar="K/N",
        help="only shards K, K + N, …, for N workers, one of each K",
    )
    add("--ray", action="store_true", help="run on Ray Data; all nodes must reach input and output")
    command.set_defaults(pack="files")


def _steps(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--steps", type=int, help="applications of f (that of the model card)")
    add("--tolerance", type=float, help="stop an image once f moves it by less")
    add(
        "--score",
        action="store_const",
        const=True,
        help="also measure drift, which costs one more step",
    )
    add("--format", choices=("png", "jpeg", "webp", "npy"), help="format of the images (png)")
    add(
        "--pack",
        choices=("files", "tar", "parquet"),
        help="keep the images of a shard in one file (files)",
    )


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _part(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError("expected K/N with 1 ≤ K ≤ N, such as 3/8")
    return int(part), int(parts)


if __name__ == "__main__":
    sys.exit(main())
