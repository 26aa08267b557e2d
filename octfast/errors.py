"""The errors octfast raises for what a user can cause: what is wrong, and what to do next."""

from __future__ import annotations


class OctfastError(Exception):
    """Something a user can cause and mend.

    Parameters
    ----------
    message : one line that says what is wrong, naming the file or value.
    hint : one line that says what to do next; may be empty.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UsageError(OctfastError):
    """A parameter that cannot be: an unknown name, a number out of range."""

    exit_code = 2


class DataError(OctfastError):
    """Scans that cannot be read, or that cannot be learned from."""


class WeightsError(OctfastError):
    """Pretrained weights that cannot be had, or that do not fit the architecture."""


class BundleError(OctfastError):
    """A run folder or a trained model on disk that cannot be used."""
