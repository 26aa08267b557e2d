"""The `octfast` command, also as `python -m octfast`."""

from __future__ import annotations

import io
import os
import sys
import warnings

from octfast.errors import OctfastError


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
    from octfast.cli.app import app
    from octfast.cli.output import log_to_terminal

    log_to_terminal()
    try:
        app()
    except OctfastError as e:
        print(f"error: {e.message}", file=sys.stderr)
        if e.hint:
            print(f"what to do: {e.hint}", file=sys.stderr)
        sys.exit(e.exit_code)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
