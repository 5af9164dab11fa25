"""The `recovery` command: it gathers the commands of `service.commands` and prints foreseen errors in one line."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

from service.client import JobFailedError, UnreachableError
from service.commands import changes, datasets, doctor, jobs, keys, models, stack
from service.commands.capacity import capacity
from service.commands.official import import_official
from service.commands.options import (
    DATA_PANEL,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_JOB_FAILED,
    EXIT_UNREACHABLE,
    RUN_PANEL,
    print_line,
)
from service.foreseen import ForeseenError
from service.stack.child import ChildDiedError
from worker.observe.version import version

_EXIT_STATUSES = (
    "Exit status: 0 done; 1 refused or failed, one line on standard error says why; 2 wrong usage; 3 nothing answers "
    "at the service's address; 4 a job that was followed failed or was cancelled; 130 interrupted."
)
_WHERE = (
    "The service's address and key come from --url and --api-key, else from RECOVERY_URL and RECOVERY_API_KEY, else "
    "from `url` and `api_key` in ~/.config/recovery/config.toml, else from a `recovery up` that runs on recovery-data "
    "here."
)
_COMPLETION = "Completion for your shell: recovery --install-completion"

application = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


@application.callback(epilog="\n\n".join([_EXIT_STATUSES, _WHERE, _COMPLETION]))
def _about(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version", is_eager=True)] = False,
) -> None:
    """Train energy-based models by diffusion recovery likelihood, and sample from them."""
    if show_version:
        print_line(version())
        raise typer.Exit


for part in (stack, jobs, models, changes):
    application.add_typer(part.application)
application.add_typer(datasets.application, name="datasets", rich_help_panel=DATA_PANEL)
application.command("import-official", rich_help_panel=DATA_PANEL)(import_official)
application.add_typer(keys.application, name="keys", rich_help_panel=RUN_PANEL)
application.command("capacity", rich_help_panel=RUN_PANEL)(capacity)
application.command("doctor", epilog=doctor.EXAMPLES, rich_help_panel=RUN_PANEL)(doctor.doctor)


def main() -> None:
    """Run the command, and print an error that was foreseen in one line on standard error."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        application()
    except (ForeseenError, OSError) as error:
        if isinstance(error, ChildDiedError):
            errors.print(error.log_tail, markup=False, style="dim")
        errors.print(f"recovery: {error}", markup=False)
        sys.exit(_exit_status(error))
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _exit_status(error: Exception) -> int:
    match error:
        case UnreachableError():
            return EXIT_UNREACHABLE
        case JobFailedError():
            return EXIT_JOB_FAILED
        case _:
            return EXIT_FAILED


if __name__ == "__main__":
    main()
