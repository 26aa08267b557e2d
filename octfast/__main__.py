"""The `octfast` command, also as `python -m octfast`."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import traceback
import warnings
from typing import Any

from octfast.errors import OctfastError

# What the machine refuses, and no fault of the program's.
_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.EIO}


def main() -> None:
    """Run the command line; what a user can cause ends in one line that says what is wrong and one what to do."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|fastai|timm)\.")
    for stream in (sys.stdout, sys.stderr):
        # A file name that the terminal's encoding has no letters for is printed all the same.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    from octfast.console import log_to_terminal

    log_to_terminal()
    from octfast.cli.root import app

    sys.exit(_ended(app))


def _ended(app: Any) -> int:
    """Run the app and give the exit code; say on standard error how it ended where that is not well."""
    import typer

    from octfast.console import print_error

    try:
        # Not standalone, as typer would draw boxes around its errors.
        code = app(prog_name="octfast", standalone_mode=False)
        if code == 130:  # so typer says that Ctrl-C was pressed
            print("stopped", file=sys.stderr)
        return code if isinstance(code, int) else 0
    except OctfastError as e:
        _say_where()
        print_error(e.message, e.hint)
        return e.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("stopped", file=sys.stderr)
        return 130
    except MemoryError:
        _say_where()
        print_error("out of memory", "try a smaller --bs or --size, or close other programs")
    except OSError as e:
        if e.errno not in _REFUSALS:
            return _own_fault()
        _say_where()
        where = f"{e.filename}: " if e.filename else ""
        print_error(f"{where}{e.strerror}", "octfast doctor shows disk space, memory and permissions")
    except Exception as e:
        if isinstance(e, RuntimeError) and "home directory" in str(e):  # pathlib's, of ~nobody/x
            print_error(str(e).lower().rstrip("."), "give the whole path instead of one that begins with ~")
            return 2
        if hasattr(e, "format_message"):  # typer's own, for a command line that it cannot read
            return _misread(e)
        if type(e).__name__ == "OutOfMemoryError":  # torch's
            _say_where()
            print_error("the GPU is out of memory", "try a smaller --bs or --size, or the CPU: CUDA_VISIBLE_DEVICES=")
            return 1
        return _own_fault()
    return 1


def _misread(error: Any) -> int:
    """Say what of the command line could not be read, and what was perhaps meant."""
    from octfast.console import print_error

    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return error.exit_code
    near = sorted(getattr(error, "possibilities", None) or ())
    message, _, guess = (error.message if near else error.format_message()).partition(" Did you mean ")
    meant = " or ".join(near) or guess.rstrip("?").replace("'", "").replace(", ", " or ")
    context = getattr(error, "ctx", None)
    help_ = f"see {context.command_path if context else 'octfast'} --help"
    message = message.strip().removesuffix(".")
    print_error(message[:1].lower() + message[1:], f"did you mean {meant}? Else {help_}" if meant else help_)
    return error.exit_code


def _say_where() -> None:
    """Under --verbose, show where an error arose."""
    if logging.getLogger("octfast").isEnabledFor(logging.DEBUG):
        traceback.print_exc()


def _own_fault() -> int:
    traceback.print_exc()
    print("This is a fault of octfast. Please report it with these lines and those of octfast doctor.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    main()
