"""How the scans of a volume, an eye or a patient become one answer: gated attention over them, and their logits pooled.

Ilse, Tomczak and Welling, Attention-based deep multiple instance learning, ICML 2018. The classifier is one layer, so
that the logits of a unit are the mean of its scans' logits, weighed by attention: what each scan says and how much it
counts can be read off.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from octfast.errors import UsageError
from octfast.model.heads import POOLED

# Of the attention: how many numbers of a scan's features it is computed from.
HIDDEN = 64


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
    """A head on pooled features with attention beside it: for each scan its logits, then its score.

    Parameters
    ----------
    scan : a head of `octfast.model.heads.POOLED`, whose first module normalises the features.
    hidden : see `GatedAttention`.
    """

    def __init__(self, scan: nn.Sequential, hidden: int = HIDDEN):
        super().__init__()
        self.scan, self.hidden = scan, hidden
        self.attention = GatedAttention(int(scan[0].num_features), hidden)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Of shape (n, classes + 1)."""
        x = self.scan[0](x)
        return torch.cat([self.scan[1:](x), self.attention(x)], 1)


def bag_head(scan: nn.Module, name: str, hidden: int = HIDDEN) -> BagHead:
    """A `BagHead` of a head of scans.

    Raises
    ------
    UsageError : the head is none on pooled features.
    """
    if name not in POOLED or not isinstance(scan, nn.Sequential):
        raise UsageError(f"--head {name}: it answers for single scans", f"use one of {', '.join(POOLED)}")
    return BagHead(scan, hidden)


def scan_head(head: nn.Module) -> nn.Module:
    """The head that gives the logits of single scans."""
    return head.scan if isinstance(head, BagHead) else head


def pool(outputs: Tensor, unit: Tensor, units: int) -> tuple[Tensor, Tensor]:
    """The logits of units, and how much each scan counts.

    Parameters
    ----------
    outputs : what a `BagHead` gives, of shape (n, classes + 1).
    unit : which unit each scan is of, of shape (n,), from 0.
    units : how many there are; one without scans has logits of 0.

    Returns
    -------
    (logits of shape (units, classes); attention of shape (n,), which sums to 1 over a unit).
    """
    logits, score = outputs[:, :-1], outputs[:, -1]
    highest = score.new_full((units,), -torch.inf).scatter_reduce(0, unit, score.detach(), "amax")
    raised = torch.exp(score - highest[unit])
    total = raised.new_zeros(units).index_add(0, unit, raised)
    attention = raised / total[unit]
    pooled = logits.new_zeros(units, logits.shape[1]).index_add(0, unit, attention[:, None] * logits)
    return pooled, attention
