"""The `cogrpo` command: sub-commands come from entry points of the group `cogrpo.commands`.

Those of `cogrpo bench` come from the group `cogrpo.bench`, so that server and trainer each bring
their own. Only the wanted command's module is imported, so `cogrpo --help` needs neither torch nor
Ray.
"""

import itertools
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points, version
from typing import Annotated, Any

import typer

GROUP = "cogrpo.commands"
BENCH = "bench"
BENCH_GROUP = "cogrpo.bench"
USER_ERROR = 2

_HELP = {
    "bench": "Measure service, sampler, learner and kernels, and report ratios.",
    "compare": "Draw a base model and an improved one side by side.",
    "cycles": "Look at, begin and end training cycles of a service.",
    "evaluate": "Score the model on the tasks of an evaluation suite.",
    "export": "Write an improved policy as a folder that others can load.",
    "fetch": "Download a model from the Hub ahead of time, and check it.",
    "forget": "Remove what is older than some days from the log.",
    "generate": "Make pictures from a prompt, here or, with --server, on a service.",
    "policies": "Look at, test, promote and roll back versions on a service.",
    "pretrain": "Train the embedded model from nothing.",
    "reproduce": "Reproduce the paper's tables on the embedded world.",
    "rewards": "Install, convert and try the rewards of real models.",
    "secrets": "Make the keys and passwords of a deployment.",
    "serve": "Run the service.",
    "train": "Improve a model and its schedule with Co-GRPO.",
    "trainer": "Train beside a running service, from what it logs.",
    "trajectories": "Show, and replay, what the service logged last.",
}

_BENCH_HELP = {
    "check": "Compare sampler and learner with the committed ratios.",
    "kernels": "Time each kernel against eager torch and the device's bandwidth.",
    "learner": "Time the learner's gradients against full logits, with the peak of memory.",
    "sampler": "Time the sampler against the straightforward pipeline.",
    "serve": "Load the service, and what it is compared with.",
    "step": "Time a guided denoising step and a picture.",
}

# With the option --server these commands are the client's own and need nothing but the SDK.
_REMOTE = {"generate": EntryPoint("generate", "cogrpo_client.remote:generate", GROUP)}
_REMOTE_HINT = "With --server URL a service does it: `cogrpo {name} --server URL --help`."


def build_app(
    wanted: str | None, *, remote: bool = False, wanted_bench: str | None = None
) -> typer.Typer:
    """The command with all names and one-line helps, and the `wanted` sub-command loaded.

    `remote` loads the one that asks a service, where there is one; `wanted_bench` is the one to
    load of `cogrpo bench`.
    """
    app = typer.Typer(
        help="Co-GRPO Serve: a text-to-image service that learns while it serves.",
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        if entry.name == wanted and remote and entry.name in _REMOTE:
            app.command(entry.name)(_load(_REMOTE[entry.name]))
        elif entry.name == wanted:
            hint = _REMOTE_HINT.format(name=entry.name) if entry.name in _REMOTE else None
            loaded = _load(entry)
            if isinstance(loaded, typer.Typer):
                app.add_typer(loaded, name=entry.name)
            else:
                app.command(entry.name, epilog=hint)(loaded)
        else:
            app.command(entry.name, help=_HELP.get(entry.name, ""))(_not_loaded)
    benches = sorted(entry_points(group=BENCH_GROUP), key=lambda entry: entry.name)
    if benches:
        group = typer.Typer(help=_HELP[BENCH], rich_markup_mode=None, no_args_is_help=True)
        group.callback()(_no_options)
        for entry in benches:
            loaded = _load(entry) if (wanted, wanted_bench) == (BENCH, entry.name) else _not_loaded
            known = None if loaded is not _not_loaded else _BENCH_HELP.get(entry.name, "")
            group.command(entry.name, help=known)(loaded)
        app.add_typer(group, name=BENCH)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; a user's error is one line on standard error and status 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    words = [argument for argument in arguments if not argument.startswith("-")]
    wanted, wanted_bench = (*words, None, None)[:2]
    known = wanted == BENCH or wanted in entry_points(group=GROUP).names
    app = build_app(wanted, remote=_names_a_server(arguments), wanted_bench=wanted_bench)
    command = typer.main.get_command(app)
    try:
        status = command.main(arguments, prog_name="cogrpo", standalone_mode=False)
    except typer.TyperException as error:
        _stop(error.format_message(), f"cogrpo {wanted} --help" if known else "cogrpo --help")
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # nobody reads any more, and the interpreter must not complain about it
        sys.exit(1)
    except ValueError as error:
        if not type(error).__module__.startswith("cogrpo_"):
            raise
        _stop(str(error))
    sys.exit(status if isinstance(status, int) else 0)


def _names_a_server(arguments: Sequence[str]) -> bool:
    """Whether the option --server is among the arguments."""
    options = itertools.takewhile(lambda argument: argument != "--", arguments)
    return any(argument.partition("=")[0] == "--server" for argument in options)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cogrpo {version('cogrpo')}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Options of the command itself; `--version` acts while it is parsed."""


def _load(entry: EntryPoint) -> Callable[..., Any]:
    """A command's function, or the `typer.Typer` of a group of them."""
    try:
        function: Callable[..., Any] = entry.load()
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("cogrpo_"):
            raise
        _stop(
            f"`cogrpo {entry.name}` needs the package {error.name}; install cogrpo[server,trainer]"
        )
    return function


def _no_options() -> None:
    """`cogrpo bench` has none of its own."""


def _not_loaded() -> None:
    raise AssertionError("only the wanted command runs")


def _stop(message: str, hint: str | None = None) -> None:
    line = " ".join(message.split())
    typer.echo(f"cogrpo: {line}" + (f" (see `{hint}`)" if hint else ""), err=True)
    sys.exit(USER_ERROR)
