"""`octfast doctor`: what this machine has for octfast, and what to do about what it lacks."""

from __future__ import annotations

from typing import Annotated

import typer

from octfast.cli import options


def doctor(
    arch: Annotated[str, typer.Option(help="Whose pretrained weights to look for.")] = "vgg16_bn",
    as_json: options.Json = False,
) -> None:
    """Check this machine: Python, torch, GPU, precision, cores, memory, disk, weights, optional packages.

    Nothing is changed and the network is not used. Exit code 1 where training cannot work; a warning says what would
    be slower or missing.

    Examples:

      octfast doctor

      octfast doctor --arch resnet50 --json
    """
    from octfast.console import print_json, print_list
    from octfast.doctor import FAIL, WARN, examine, list_extras

    checks = examine(arch)
    extras = list_extras()
    failed = sum(check.status == FAIL for check in checks)
    warned = sum(check.status == WARN for check in checks)
    if as_json:
        print_json(
            {
                "works": not failed,
                "checks": [check.to_dict() for check in checks],
                "extras": [extra.to_dict() for extra in extras],
            }
        )
        raise typer.Exit(int(failed > 0))
    print_list([(check.status, check.name, check.found, check.advice) for check in checks])
    print("\nOptional packages")
    print_list(
        [
            ("ok", extra.name, extra.purpose, "")
            if extra.installed
            else ("-", extra.name, extra.purpose, f"pip install 'octfast[{extra.name}]'")
            for extra in extras
        ]
    )
    print()
    if failed:
        print(f"Training cannot work as things are: {failed} to mend first, marked fail.")
    elif warned:
        print(f"Training works. {warned} thing{'' if warned == 1 else 's'} to look at, marked warn.")
    else:
        print("Training works, and nothing is to be mended.")
    raise typer.Exit(int(failed > 0))
