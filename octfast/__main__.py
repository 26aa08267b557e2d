"""The `octfast` command, also as `python -m octfast`."""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import sys
import time
import traceback
import warnings
from typing import Any

from octfast.errors import OctfastError

_HINTS = {
    errno.ENOSPC: "make room on that disk, or name a folder on another with --out or --cache",
    errno.EDQUOT: "make room in your quota, or name a folder on another disk with --out or --cache",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f), or write to another disk",
    errno.ENOENT: "it was there a moment ago: see that nothing removes it, and that its drive is there",
    errno.EACCES: "see who may read and write it (ls -l), or name another folder with --out or --cache",
    errno.ENOTDIR: "a file stands where a folder should be: move it away, or name another folder",
    errno.EROFS: "name a folder that can be written to, with --out or --cache",
}


def main() -> None:
    """Run the command line; what a user can cause ends in one line that says what is wrong and one what to do."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    # What Apple's GPU cannot do is done by the CPU, and torch says what that is.
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # of a lost connection it prints where in its own source
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|fastai|timm)\.")
    warnings.filterwarnings("default", message=".*MPS backend.*fall back")
    warnings.filterwarnings("ignore", message="DataFrame is highly fragmented")  # pandas', of a table of 300 classes
    for stream in (sys.stdout, sys.stderr):
        # A file name that the terminal's encoding has no letters for is printed all the same.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    from octfast import console

    console.began = time.time()
    console.log_to_terminal()
    try:
        from octfast.cli.root import app

        sys.exit(_ended(app))
    except KeyboardInterrupt:  # while all this is imported
        print("stopped", file=sys.stderr)
        sys.exit(130)
    finally:
        console.began = None


def _ended(app: Any) -> int:
    """Run the app and give the exit code; say on standard error how it ended where that is not well."""
    import typer

    from octfast.console import has_failed, print_error
    from octfast.processes import LostProcessError

    try:
        # Not standalone, as typer would draw boxes around its errors.
        code = app(prog_name="octfast", standalone_mode=False)
        if code == 130:  # so typer says that Ctrl-C was pressed
            print("stopped", file=sys.stderr)
        return code if isinstance(code, int) and code else int(has_failed())
    except OctfastError as e:
        _say_where()
        # Of several processes the first says it for all.
        if _is_first() or isinstance(e, LostProcessError):
            print_error(e.message, e.hint)
        return e.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("stopped", file=sys.stderr)
        return 130
    except MemoryError:
        _say_where()
        print_error("out of memory", "try a smaller --bs or --size, or close other programs")
    except OSError as e:
        if isinstance(e, BrokenPipeError):  # as of `| head`, which has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return 1
        # One without a number is a library's own, and no word of the system's.
        if e.errno is None or isinstance(e, ConnectionError):
            return _own_fault()
        _say_where()
        where = f"{e.filename}: " if e.filename else ""
        hint = _HINTS.get(e.errno, "octfast doctor shows disk space, memory and permissions")
        print_error(f"{where}{e.strerror}", hint)
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


def _is_first() -> bool:
    from octfast.launcher import launched

    return (launched() or (0, 1))[0] == 0


def _misread(error: Any) -> int:
    """Say what of the command line could not be read, and what was perhaps meant."""
    from octfast.console import print_error

    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return error.exit_code
    near = _nearest_first(getattr(error, "option_name", None) or "", getattr(error, "possibilities", None) or ())
    if not _is_first():
        return error.exit_code
    message, _, guess = (error.message if near else error.format_message()).partition(" Did you mean ")
    meant = " or ".join(near) or guess.rstrip("?").replace("'", "").replace(", ", " or ")
    context = getattr(error, "ctx", None)
    help_ = f"see {context.command_path if context else 'octfast'} --help"
    message = _in_plain_words(message.strip().removesuffix("."))
    if not message[1:2].isupper():
        message = message[:1].lower() + message[1:]
    print_error(message, f"did you mean {meant}? Else {help_}" if meant else help_)
    return error.exit_code


def _nearest_first(given: str, names: Any) -> list[str]:
    """The names that were perhaps meant: those that begin as what was given, then the most similar."""
    from difflib import SequenceMatcher

    begun = [name for name in names if given and name.startswith(given)]
    return sorted(begun or names, key=lambda name: -SequenceMatcher(None, given, name).ratio())


# What the library that reads the command line says of a value, and what is said here.
_VALUES = (
    (r"Input should be a valid number.*|.* is not a valid float", "must be a number"),
    (r"Input should be a valid integer.*|.* is not a valid int(eger)?", "must be a whole number"),
    (r"Input should be greater than or equal to (\S+)", r"must be \1 or more"),
    (r"Input should be less than or equal to (\S+)", r"must be \1 or less"),
    (r"Input should be (greater|less) than (\S+)", r"must be \1 than \2"),
    (r"Input should be a valid boolean.*", "must be true or false"),
)


def _in_plain_words(message: str) -> str:
    """The message about a command line, its option first and without the words of a validator."""
    if found := re.fullmatch(r"Invalid value for '?([^':]+)'?: (.*)", message, re.S):
        option, said = found.groups()
        for pattern, plain in _VALUES:
            if re.fullmatch(pattern, said, re.S):
                return f"{option} {re.sub(pattern, plain, said, flags=re.S)}"
        return f"{option}: {said}"
    if found := re.fullmatch(r"Missing (?:argument|parameter|option):? '?([^']+?)'?", message):
        return f"{found[1] if found[1].startswith('-') else found[1].upper()} is missing"
    return re.sub(r"^Option '?(\S+?)'? requires an argument$", r"\1 needs a value", message)


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
