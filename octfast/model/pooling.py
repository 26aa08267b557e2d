"""How the scans of a volume, an eye or a patient become one answer: gated attention over them, and their logits pooled.

Ilse, Tomczak and Welling, Attention-based deep multiple instance learning, ICML 2018. It is the logits of scans, their
instances, that are pooled, so that what each scan says and how much it counts can be read off. With a classifier of one
layer the mean of logits, weighed or not, is also the logits of the mean of the scans' embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from octfast.errors import UsageError
from octfast.model.heads import POOLED

# How the logits of scans become those of their unit: of each class the mean weighed by attention, the mean, the
# highest, the mean of the k highest.
POOLINGS = ("attention", "mean", "max", "topk")
# Of the attention: how many numbers of a scan's features it is computed from.
HIDDEN = 64
# Of topk: how many scans of a unit count for a class.
TOP_K = 3
# Of the scans that are said to have decided: no more than these, and how many times as much each counts as if all
# counted alike.
DECIDING, ABOVE = 5, 1.5


def pooling_of(kind: str = "attention", k: int | None = None) -> dict[str, Any]:
    """What a bundle keeps of a pooling (docs/bundle-schema.md).

    Parameters
    ----------
    kind : one of `POOLINGS`.
    k : with topk, how many scans count for a class; None takes `TOP_K`.

    Raises
    ------
    UsageError : another word, or a k that is none or does not go with it.
    """
    if kind not in POOLINGS:
        raise UsageError(f"there is no pooling {kind!r}", f"one of {', '.join(POOLINGS)}")
    if k is not None and (kind != "topk" or k < 1):
        raise UsageError(f"pooling {kind} has no k of {k}", "k, from 1, goes with topk")
    return {
        "kind": kind,
        **({"hidden": HIDDEN} if kind == "attention" else {"k": k or TOP_K} if kind == "topk" else {}),
    }


def pooling_in_words(pooling: Mapping[str, Any]) -> str:
    """What becomes of the logits of a unit's scans."""
    return {
        "attention": "the mean of its scans' logits, weighed by attention",
        "mean": "the mean of its scans' logits",
        "max": "of each class the highest of its scans' logits",
        "topk": f"of each class the mean of the {pooling.get('k')} highest of its scans' logits",
    }[pooling["kind"]]


class GatedAttention(nn.Module):
    """A score of each scan; the softmax of the scores of a unit's scans says how much each of them counts.

    It starts at zero, so that all scans of a unit count alike before the first step.

    Parameters
    ----------
    width : of the features.
    hidden : of the two layers between, one of which opens and closes the other.
    """

    def __init__(self, width: int, hidden: int = HIDDEN):
        super().__init__()
        self.drop = nn.Dropout(0.25)
        self.value, self.gate = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of shape (n, 1), of normalised features (n, width)."""
        x = self.drop(x)
        return self.score(torch.tanh(self.value(x)) * torch.sigmoid(self.gate(x)))


class BagHead(nn.Module):
    """A head on pooled features that answers for units: for each scan its logits, then its score.

    Parameters
    ----------
    scan : a head of `octfast.model.heads.POOLED`, whose first module normalises the features.
    pooling : see `pooling_of`; None is that of attention. The score of a scan is 0 with any other.
    """

    def __init__(self, scan: nn.Sequential, pooling: Mapping[str, Any] | None = None):
        super().__init__()
        self.scan, self.pooling = scan, dict(pooling or pooling_of())
        self.attention: GatedAttention | None = None
        if self.pooling["kind"] == "attention":
            width = int(scan[0].num_features)  # type: ignore[arg-type]
            self.attention = GatedAttention(width, self.pooling["hidden"])

    def forward(self, x: Tensor) -> Tensor:
        """Of shape (n, classes + 1)."""
        x = self.scan[0](x)
        logits = self.scan[1:](x)
        return torch.cat([logits, torch.zeros_like(logits[:, :1]) if self.attention is None else self.attention(x)], 1)


def bag_head(scan: nn.Module, name: str, pooling: Mapping[str, Any] | None = None) -> BagHead:
    """A `BagHead` of a head of scans.

    Raises
    ------
    UsageError : the head is none on pooled features.
    """
    if name not in POOLED or not isinstance(scan, nn.Sequential):
        raise UsageError(f"--head {name}: it answers for single scans", f"use one of {', '.join(POOLED)}")
    return BagHead(scan, pooling)


def scan_head(head: nn.Module) -> nn.Module:
    """The head that gives the logits of single scans."""
    return head.scan if isinstance(head, BagHead) else head


def pool(outputs: Tensor, unit: Tensor, units: int, pooling: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The logits of units, and how much each scan counts.

    Parameters
    ----------
    outputs : what a `BagHead` gives, of shape (n, classes + 1).
    unit : which unit each scan is of, of shape (n,), from 0.
    units : how many there are; one without scans has logits of 0.
    pooling : of the head, see `pooling_of`.

    Returns
    -------
    (logits of shape (units, classes); how much each scan counts for the class that its unit is given, of shape (n,),
    which sums to 1 over a unit: its attention, 1/n of n scans, or 1/k of the k scans with that class's highest logits,
    of which equal ones share).
    """
    logits, score = outputs[:, :-1], outputs[:, -1]
    if pooling["kind"] in ("attention", "mean"):
        weight = _shares(score if pooling["kind"] == "attention" else torch.zeros_like(score), unit, units)
        return logits.new_zeros(units, logits.shape[1]).index_add(0, unit, weight[:, None] * logits), weight
    of_class = _highest(logits, unit, units, pooling.get("k", 1))
    pooled = logits.new_zeros(units, logits.shape[1]).index_add(0, unit, of_class * logits)
    given = pooled.argmax(1)[unit]
    return pooled, of_class.gather(1, given[:, None])[:, 0]


def pool_one(outputs: Tensor, pooling: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """As `pool`, of a single unit, in operations that every exporter knows.

    Returns
    -------
    (logits of shape (1, classes); how much each scan counts, of shape (n,)).
    """
    logits, score = outputs[:, :-1], outputs[:, -1]
    if pooling["kind"] in ("attention", "mean"):
        weight = torch.softmax(score if pooling["kind"] == "attention" else torch.zeros_like(score), 0)
        return (weight[:, None] * logits).sum(0, keepdim=True), weight
    own, other = logits[:, None], logits[None]
    higher, equal = (held.to(logits.dtype).sum(1) for held in (other > own, other == own))
    # Equal ones share what is left of the k.
    counted = torch.clamp((pooling.get("k", 1) - higher) / equal, 0, 1)
    of_class = counted / counted.sum(0, keepdim=True)
    pooled = (of_class * logits).sum(0, keepdim=True)
    return pooled, of_class.index_select(1, pooled.argmax(1))[:, 0]


def _shares(score: Tensor, unit: Tensor, units: int) -> Tensor:
    """The softmax of scores over the scans of each unit."""
    highest = score.new_full((units,), -torch.inf).scatter_reduce(0, unit, score.detach(), "amax")
    raised = torch.exp(score - highest[unit])
    return raised / raised.new_zeros(units).index_add(0, unit, raised)[unit]


def _highest(logits: Tensor, unit: Tensor, units: int, k: int) -> Tensor:
    """Of each scan and class 1/k where it is among the k highest of its unit, else 0; of fewer scans all count.

    Equal logits share what is left of the k: before the first step, when a head gives 0 for all, all scans count alike.
    """
    by_value = torch.argsort(logits.detach(), dim=0, descending=True, stable=True)
    order = by_value.gather(0, torch.argsort(unit[by_value], dim=0, stable=True))
    sizes = torch.bincount(unit, minlength=units)
    starts = sizes.cumsum(0) - sizes
    counted = sizes.clamp(max=k)
    # In the order of units, the last that counts is so many places behind the unit's first; a unit may have no scan.
    last = order[(starts + counted - 1).clamp(0, len(order) - 1)]
    least = logits.detach().gather(0, last)[unit]
    above, level = (logits > least).to(logits.dtype), (logits == least).to(logits.dtype)
    sums = logits.new_zeros(2, units, logits.shape[1])
    more, equal = (held.index_add(0, unit, each)[unit] for held, each in zip(sums, (above, level), strict=True))
    count = counted[unit][:, None].to(logits.dtype)
    return (above + level * (count - more) / equal.clamp(min=1)) / count


def deciding_scans(attention: np.ndarray, read: int) -> list[int]:
    """The places of the scans that decided, the most first: the fewest that count for half of an answer.

    They are no more than `DECIDING`, and each counts at least `ABOVE` times as much as if all counted alike.

    Parameters
    ----------
    attention : how much each scan counts, of sum 1 and 0 where one was not read; of shape (scans,).
    read : how many could be read.
    """
    if read < 1:
        return []
    order = np.argsort(-attention, kind="stable")
    enough = int(np.searchsorted(np.cumsum(attention[order]), 0.5)) + 1
    return [int(i) for i in order[: min(enough, DECIDING)] if attention[i] >= ABOVE / read]
