"""Messages between processes, JSON with arrays, laid into the key-value store at which they meet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

# What is known of something, as JSON takes it, and its arrays by name.
Content = tuple[dict[str, Any], "Mapping[str, np.ndarray]"]
# The store takes 8 MiB at a time.
_PIECE = 4 << 20


class Box:
    """Numbers and messages in a store of torch's, which all processes see; nothing in it waits.

    Parameters
    ----------
    store : a `torch.distributed.Store`.
    gone : makes the error that is raised where the store cannot be reached any more.
    """

    def __init__(self, store: Any, gone: Callable[[], Exception]):
        self.store, self.gone = store, gone

    def has(self, key: str) -> bool:
        """Whether there is something under a key."""
        with self._reached():
            return self.store.check([key])

    def set(self, key: str, number: int) -> None:
        """Lay down a number."""
        with self._reached():
            self.store.set(key, str(number))

    def get(self, key: str) -> int:
        """A number; 0 where there is none."""
        with self._reached():
            return int(self.store.get(key)) if self.store.check([key]) else 0

    def add(self, key: str) -> int:
        """Count one more, from 1; no two processes get the same number."""
        with self._reached():
            return self.store.add(key, 1)

    def put(self, key: str, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Lay down a message."""
        from safetensors.numpy import save

        content = save(dict(arrays), metadata={"octfast": json.dumps(about)})
        pieces = max(1, -(-len(content) // _PIECE))
        with self._reached():
            for i in range(pieces):
                self.store.set(f"{key}/{i}", content[i * _PIECE : (i + 1) * _PIECE])
            self.store.set(key, str(pieces))

    def take(self, key: str) -> Content | None:
        """A message, which is gone then; None where there is none."""
        if not self.has(key):
            return None
        content = self._content(key)
        with self._reached():
            for name in [key, *(f"{key}/{i}" for i in range(self.get(key)))]:
                self.store.delete_key(name)
        return content

    def read(self, key: str) -> Content:
        """A message that others read, too."""
        content = self._content(key)
        self.add(f"{key}/read")
        return content

    def thin_out(self, key: str, readers: int) -> bool:
        """Remove what so many have read; only the key stays, as a mark. Whether they had."""
        with self._reached():
            if self.store.add(f"{key}/read", 0) < readers:
                return False
            for i in range(self.get(key)):
                self.store.delete_key(f"{key}/{i}")
            return True

    def _content(self, key: str) -> Content:
        from safetensors.numpy import load

        with self._reached():
            content = b"".join(self.store.get(f"{key}/{i}") for i in range(self.get(key)))
        length = int.from_bytes(content[:8], "little")
        return json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["octfast"]), load(content)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as e:  # torch's own are of this kind
            raise self.gone() from e
