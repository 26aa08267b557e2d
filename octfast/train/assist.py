"""What the processes of a training above the first do: they compute what process 0 deals to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from octfast.data.prepare import Prepared
from octfast.errors import DataError, OctfastError
from octfast.files import sha256_of
from octfast.launcher import refuse_other_device
from octfast.model.arch import find_arch
from octfast.model.bundle.carry import unpacked
from octfast.model.engine import Engine
from octfast.model.forward import answer_for_scans
from octfast.processes import Computed, Content, Kinds
from octfast.train.block.dealt import train_folds
from octfast.train.build import new_dataloaders
from octfast.train.config import TrainConfig
from octfast.train.device import computing
from octfast.train.frozen.dealt import run_blocks, versions
from octfast.train.frozen.frozen import hash_of_body, parts_of
from octfast.train.frozen.views import Views
from octfast.train.learner import match_normalisation
from octfast.train.parallel.beside import follow


def kinds() -> Kinds:
    """The questions of a training that another process answers, see `octfast.processes.Group.assist`."""
    helper = _Helper()
    return {
        "scans": helper.take,
        "activations": helper.activations,
        "fit": helper.fit,
        "folds": helper.folds,
        "predictions": answer_for_scans,
    }


class _Helper:
    """What a process knows of the Learner of process 0: its scans and its model."""

    def __init__(self) -> None:
        self._where = ExitStack()

    def take(self, about: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Make the same DataLoaders and the same model."""
        if (here := versions()) != about["versions"]:
            apart = ", ".join(f"{n} {here[n]} instead of {v}" for n, v in about["versions"].items() if here[n] != v)
            raise OctfastError(f"the processes have other packages: {apart}", "install the same on all machines")
        self.model, self.info, _ = unpacked(about, arrays)
        table = pd.DataFrame(about["scans"])
        prepared = Prepared(table, table.iloc[:0].assign(reason=""), Path(about["root"]))
        self.config = config = TrainConfig(**about["config"])
        # Until other scans are told of, or this process ends.
        self._where.close()
        self._where.enter_context(computing(config.device, config.deterministic))
        self.dls = new_dataloaders(prepared, config)
        match_normalisation(self.dls, find_arch(self.info.arch))

    def activations(self, about: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Computed:
        """What the frozen part gives of blocks of scans, as in `octfast.train.frozen.dealt`."""
        prefix = parts_of(self.model)[: about["modules"]]
        if hash_of_body(prefix) != about["body"]:
            raise OctfastError("the frozen part is another one in this process", "install the same on all machines")
        device = torch.device(self.dls.device or "cpu")
        refuse_other_device(about["device"], device.type)
        train = self.dls.train
        dl = self.dls.valid if not about["training"] else train if about["views"] > 1 else self.dls.test_dl(train.items)
        source = _Checked(dl, about["views"], about["seed"], device, about["workers"])
        source.digests = arrays["digests"]
        network = nn.Sequential(*prefix).eval()
        engine = Engine(network, about["precision"], device, compiled=about["compiled"])
        blocks = source.blocks(arrays["wanted"].tolist())

        def compute(claims: Iterator[int]) -> Iterator[Content]:
            for values in run_blocks(source, engine, (blocks[k] for k in claims)):
                yield {}, {"values": _smaller(values, about["dtype"])}

        return compute

    def fit(self, about: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Train a copy of the model beside process 0."""
        follow(self.dls, self.model, self.info.head, about, arrays)

    def folds(self, about: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Computed | None:
        """Train folds of the last block, as in `octfast.train.block.dealt`."""
        return train_folds(self.dls, self.model, self.info.head, self.config, about, arrays)


class _Checked(Views):
    """Views that are made only of the scans that process 0 has, content and all."""

    def decode(self, rows: Sequence[int]) -> Any:
        items = self.dl.items
        for row in rows:
            path = Path(items["path"].iloc[row])
            if bytes.fromhex(sha256_of(path)) != self.digests[row].tobytes():
                raise DataError(f"{path} is another file than process 0 has", "copy the scans again to this machine")
        return super().decode(rows)


def _smaller(values: np.ndarray, dtype: str) -> np.ndarray:
    """In the dtype of the store, where that loses nothing that process 0 would have to know of."""
    if dtype != "float16" or not np.isfinite(values).all() or np.abs(values).max(initial=0) > np.finfo(dtype).max:
        return values
    return values.astype(dtype)
