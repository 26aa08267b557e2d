"""One nn.Module from uint8 pictures of any size to probabilities, made of operations that every exporter knows."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from octfast.data.fit import MOST
from octfast.deploy.export.lines import ATTENTION, DISTANCE, OUTPUT
from octfast.model.bundle.info import BundleInfo
from octfast.model.engine import fold
from octfast.model.pooling import pool_one
from octfast.model.unlike import Unlike

# ITU-R 601-2 as Pillow's mode L has it, in 65,536ths; sums of products stay below 2**24, so that float32 is exact.
LUMA = (19595.0, 38470.0, 7471.0)


class WholeClassifier(nn.Module):
    """Preprocessing, network, temperature and softmax in one, to be exported.

    The preprocessing is `octfast.data.preprocess` again. Its resize is written as two matrix products with the weights
    of Pillow's antialiased bilinear filter, rounded to whole greys after each as Pillow does, because the antialiased
    resize of ONNX is missing from many runtimes and rounds otherwise.

    Parameters
    ----------
    model : a Sequential of body and head, as `load_bundle` gives it; it is copied and the copy folded.
    info : size, mean, std and temperature.
    half : whether the body is kept and run in float16. Preprocessing, head and softmax stay in float32.
    unlike : where given, the distance to the training scans is the last output.

    Attributes
    ----------
    outputs : what it gives, by name and in order.
    """

    mean: Tensor
    std: Tensor
    gives: tuple[str, ...] = (OUTPUT,)

    def __init__(self, model: nn.Sequential, info: BundleInfo, *, half: bool = False, unlike: Unlike | None = None):
        super().__init__()
        body, head = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
        self.body = fold(body)
        self.head = head
        self.unlike = copy.deepcopy(unlike)
        self.outputs = self.gives if unlike is None else (*self.gives, DISTANCE)
        self.size, self.fit = info.size, info.fit
        self.temperature = float(info.temperature)
        self.pooling = dict(info.pooling or {})
        self.half_body = half
        if half:
            self.body.half()
        self.register_buffer("mean", torch.tensor(info.mean, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(info.std, dtype=torch.float32).view(3, 1, 1), persistent=False)

    def forward(self, picture: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Probabilities of pictures, and their distances to the training scans where the model knows them.

        Parameters
        ----------
        picture : uint8 of shape (batch, height, width, channels); one channel is grey, three are red, green and blue,
            a fourth is left out of account.

        Returns
        -------
        float32 of shape (batch, classes); each row sums to 1. With a distance also that, float32 of shape (batch,).
        """
        features = self.features(picture)
        probabilities = torch.softmax(self.head(features) / self.temperature, 1)
        return probabilities if self.unlike is None else (probabilities, self.unlike(features))

    def features(self, picture: Tensor) -> Tensor:
        """What the body gives of pictures, float32 with a row a picture."""
        grey = resize(luma(picture), self.size, self.fit)
        x = (grey.unsqueeze(1) / 255.0 - self.mean) / self.std
        if self.half_body:
            x = x.half()
        return self.body(x).float()


class WholeBag(WholeClassifier):
    """As `WholeClassifier`, of a model that answers for a whole volume, eye or patient."""

    gives = (OUTPUT, ATTENTION)

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """The answer for one unit, and how much each of its scans counts.

        Parameters
        ----------
        picture : all scans of the unit, as of `WholeClassifier.forward`.

        Returns
        -------
        Probabilities, float32 of shape (1, classes); how much each scan counts, float32 of shape (scans,), which sums
        to 1; where the model knows its training scans the distance of each scan to these, float32 of shape (scans,).
        """
        features = self.features(picture)
        logits, attention = pool_one(self.head(features), self.pooling)
        found = torch.softmax(logits / self.temperature, 1), attention
        return found if self.unlike is None else (*found, self.unlike(features))


def whole(
    model: nn.Sequential, info: BundleInfo, *, half: bool = False, unlike: Unlike | None = None
) -> WholeClassifier:
    """What is exported of a model; parameters as of `WholeClassifier`."""
    kind = WholeClassifier if info.level == "scan" else WholeBag
    return kind(model, info, half=half, unlike=unlike)


def luma(picture: Tensor) -> Tensor:
    """Whole greys in float32, of shape (N, H, W), of uint8 pictures of shape (N, H, W, 1, 3 or 4)."""
    # Three copies side by side have a second and third channel whether there was one channel or three.
    side_by_side = torch.cat([picture, picture, picture], 3)
    red, green, blue = (side_by_side[..., i].float() for i in range(3))
    weighted = red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]
    return torch.floor((weighted + 32768.0) / 65536.0)


def resize(grey: Tensor, size: int, fit: str) -> Tensor:
    """Bring whole greys of shape (N, H, W) to (N, size, size) as `octfast.data.preprocess.resize` does, to the bit.

    Where a picture is much taller than wide, Pillow from version 13 on takes columns before rows, and a sample may
    differ by one grey.
    """
    across, down = _positions(grey[0, 0]), _positions(grey[0, :, 0])
    high, low = bilinear_weights(across, size, _seen(across, down, fit))
    narrow = _whole(torch.matmul(grey, high.t()), torch.matmul(grey, low.t()))
    high, low = bilinear_weights(down, size, _seen(down, across, fit))
    return _whole(torch.matmul(high, narrow), torch.matmul(low, narrow))


def _seen(position: Tensor, other: Tensor, fit: str) -> Tensor | None:
    """How many samples of a side are seen, twice, by the positions along it and along the other side; None is all.

    It is `octfast.data.fit.box_of` once more, in tensors, since the sides are open in an exported file.
    """
    most = MOST[fit]
    if most is None:
        return None
    up, down = most
    return torch.minimum(position[-1:] + 1, 2 * ((up * (other[-1:] + 1) + down) // (2 * down)))


def bilinear_weights(position: Tensor, size: int, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weights by which n samples are brought to `size`: Pillow's triangle, wider when shrinking, held in 22 bits.

    Sample x lies |(2 x + 1) size - (2 y + 1) n| / (2 size) samples from the centre of output y, and the triangle
    reaches max(n, size) / size samples. All of it is counted in whole numbers, so that no rounding moves a weight.

    Parameters
    ----------
    position : 2 x + 1 of the n samples, int64.
    seen : twice as many samples as are seen, those in the middle, int64 of shape (1,); the others weigh nothing.

    Returns
    -------
    The upper and the lower 11 bits, float32 of shape (size, n) each. Products of 11 bits by greys, and sums of them,
    are exact in float32 and on units that round factors to 11 bits, as GPUs do; those of 22 bits would not be.
    """
    doubled = position[-1:] + 1  # 2 n, as a tensor, since a number taken from a shape would be fixed by some exporters
    if seen is not None:
        position, doubled = position - 2 * ((doubled - seen) // 4), seen
    reach = torch.clamp(doubled, min=2 * size)
    centre = 2 * torch.arange(size, dtype=torch.int64).unsqueeze(1) + 1
    apart = torch.abs(position.unsqueeze(0) * (2 * size) - centre * doubled)
    weights = torch.clamp(reach * 2 - apart, min=0)
    if seen is not None:
        weights = weights * torch.clamp(torch.minimum(position, seen - position), min=0, max=1)
    total = weights.sum(1, keepdim=True)
    # A long division in two steps, since some runtimes hold whole numbers in 32 bits.
    high = (weights * 2048) // total
    rest = (weights * 2048 - high * total) * 2048
    low = rest // total
    up = (rest - low * total) * 2 >= total
    return high.float(), low.float() + up.float()


def _whole(high: Tensor, low: Tensor) -> Tensor:
    """(2048 high + low) / 2**22, rounded with halves going up."""
    return torch.floor((high + 1024.0 + torch.floor(low / 2048.0)) / 2048.0)


def _positions(row: Tensor) -> Tensor:
    return 2 * torch.arange(row.shape[0], dtype=torch.int64) + 1
