"""Heat maps of what raised a class's score: Grad-CAM, HiResCAM, attention or occlusion, at the scan's own size."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from octfast.assess.interpret.heatmap_tokens import token_maps, transformer_in
from octfast.data.fit import box_of, hides
from octfast.data.preprocess import decode_grey, normalise, resize
from octfast.data.wedges import white_wedges
from octfast.errors import DataError, UsageError
from octfast.model.bundle.info import BundleInfo
from octfast.model.engine import Engine
from octfast.model.memory import Passes

log = logging.getLogger("octfast")

METHODS = ("gradcam", "hirescam", "attention", "occlusion")
# Lightness rises evenly along it and hue changes too, so that it reads the same with any colour vision and in grey.
COLOURS = "viridis"
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_layers: WeakKeyDictionary[nn.Module, tuple[int, nn.Module]] = WeakKeyDictionary()


def heat_map(
    model: nn.Sequential,
    info: BundleInfo,
    picture: Image.Image,
    target: int | None = None,
    method: str = "gradcam",
) -> np.ndarray:
    """What raised the score of a class in one picture; it is no evidence of where a disease lies.

    Parameters
    ----------
    model : a Sequential of body and head; it is left as it was.
    info : gives the preprocessing.
    picture : of mode L.
    target : index of the class; None takes the predicted one.
    method : "gradcam", "hirescam", "attention" or "occlusion", see `heat_maps`.

    Returns
    -------
    float32 of shape (picture's height, picture's width), from 0 to 1; zero all over where nothing raised the score, and
    zero where the model does not see the picture.

    Raises
    ------
    UsageError : see `heat_maps`.
    """
    return heat_maps(model, info, [picture], [target], method)[0]


def heat_maps(
    model: nn.Sequential,
    info: BundleInfo,
    pictures: Sequence[Image.Image],
    targets: Sequence[int | None] | None = None,
    method: str = "gradcam",
    *,
    bs: int = 8,
) -> list[np.ndarray]:
    """Heat maps of many pictures, computed in float32 and in batches.

    "gradcam" is Grad-CAM (Selvaraju and others, ICCV 2017), by captum, on the body's last map before it is pooled: its
    channels, weighted by the mean gradient of the class's score, summed, and negative sums set to zero. A head that
    pools several depths is explained by the last alone, and octfast's own by its means alone, not by its standard
    deviations, whose mean gradient is zero. "hirescam" (Draelos and Carin, arXiv 2011.08891), by captum, multiplies
    by the gradient at each position instead, so that those count too.

    A transformer has tokens of patches in place of a map, and "attention" too, which follows them through all blocks;
    see `octfast.assess.interpret.heatmap_tokens.token_maps`.

    "occlusion" (Zeiler and Fergus, ECCV 2014), by captum, slides a square of a seventh of the picture's side, of the
    picture's mean grey, and shows by how much the score fell; it runs the model some 170 times a picture, works with
    any network and depends on no choice of a map.

    Parameters
    ----------
    model, info : see `heat_map`.
    pictures : of mode L, each of its own size.
    targets : an index of a class or None a picture; None takes the predicted class of each.
    bs : pictures a batch.

    Returns
    -------
    See `heat_map`; one a picture.

    Raises
    ------
    UsageError : an unknown method, "attention" of no transformer, or any but occlusion of a network that has neither
        a map of (channels, height, width) nor a token a patch.
    """
    method = check_method(method)
    wanted = [-1 if t is None else t for t in (targets if targets is not None else [None] * len(pictures))]
    maps: list[np.ndarray] = []
    passes = Passes("heat maps")
    for at in range(0, len(pictures), bs):
        part = pictures[at : at + bs]
        raw = _in_passes(passes, model, info, part, wanted[at : at + bs], method)
        maps += [_to_size(m, p.size, info.fit) for m, p in zip(raw, part, strict=True)]
    return maps


def overlay(picture: Image.Image, heat: np.ndarray, alpha: float = 0.45, fit: str = "squeeze") -> Image.Image:
    """A heat map drawn over its picture: the stronger the heat, the more of its colour; where there is none, the scan.

    What the model does not see of the scan is darkened, and a line drawn along it.
    White wedges at the border, which hold nothing of an eye, stay white; the map itself keeps its values there.

    Parameters
    ----------
    picture : of mode L.
    heat : of shape (height, width), 0 to 1, as `heat_map` gives it.
    alpha : how much of the scan the strongest heat covers, 0 to 1.
    fit : that of the model, see `octfast.data.fit.box_of`.

    Returns
    -------
    A PIL image of mode RGB and the picture's size.
    """
    from matplotlib import colormaps

    if heat.shape != (picture.height, picture.width):
        raise ValueError(f"a heat map of {heat.shape} for a picture of {(picture.height, picture.width)}")
    grey = np.asarray(picture.convert("L"), dtype=np.float32)[..., None] / 255
    cover = (alpha * np.sqrt(heat.clip(0, 1)) * _beside_wedges(picture))[..., None]
    mixed = (1 - cover) * grey + cover * colormaps[COLOURS](heat)[..., :3]
    left, top, right, bottom = box_of(picture.width, picture.height, fit)
    if hides(picture.width, picture.height, fit):
        dark = 0.35 * mixed
        # Half a percent of the picture, as it may be shown much smaller.
        line = max(1, max(picture.size) // 200)
        dark[max(0, top - line) : bottom + line, max(0, left - line) : right + line] = 0.8
        dark[top:bottom, left:right] = mixed[top:bottom, left:right]
        mixed = dark
    return Image.fromarray((mixed * 255).round().astype(np.uint8))


def wedges_in_words(picture: Image.Image, heat: np.ndarray) -> str:
    """How much of a heat map lies in white wedges, where `overlay` draws none of it; empty for less than a tenth."""
    wedges = white_wedges(np.asarray(picture.convert("L")))
    share = float(heat[wedges].sum() / heat.sum()) if heat.any() else 0.0
    return f"{share:.0%} of it lies in white wedges, where none is drawn" if share >= 0.1 else ""


def _beside_wedges(picture: Image.Image) -> np.ndarray | float:
    """0 in the white wedges of a scan, rising to 1 within a fiftieth of its side."""
    from scipy import ndimage

    wedges = white_wedges(np.asarray(picture.convert("L")))
    if not wedges.any():
        return 1.0
    return np.clip(ndimage.distance_transform_edt(~wedges) / max(1, min(wedges.shape) / 50), 0, 1)


class HeatMaps:
    """Heat maps of scans on disk, each computed once, however often it is asked for.

    Parameters
    ----------
    model, info, method : see `heat_maps`.

    Raises
    ------
    UsageError : see `heat_maps`; at once, before any scan is read.

    Attributes
    ----------
    info, method : as given.
    """

    def __init__(self, model: nn.Sequential, info: BundleInfo, method: str = "gradcam", *, bs: int = 8):
        self.info, self.method = info, check_method(method)
        self._model, self._bs = model, bs
        self._passes = Passes("heat maps")
        self._maps: dict[tuple[str, str], tuple[np.ndarray, tuple[int, int]] | str] = {}
        if method != "occlusion":
            _explained(model, info.size, method)

    def __len__(self) -> int:
        return sum(not isinstance(m, str) for m in self._maps.values())

    def compute(
        self,
        paths: Sequence[str],
        classes: Sequence[str],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Compute the maps of scans and classes that are still missing; a scan that cannot be read is remembered."""
        asked = dict.fromkeys(zip(map(str, paths), map(str, classes), strict=True))
        missing = [key for key in asked if key not in self._maps]
        for at in range(0, len(missing), self._bs):
            pictures, keys = [], []
            for key in missing[at : at + self._bs]:
                try:
                    pictures.append(decode_grey(key[0]))
                    keys.append(key)
                except DataError as e:
                    self._maps[key] = e.message
            if pictures:
                targets = [self.info.classes.index(name) for _, name in keys]
                raw = _in_passes(self._passes, self._model, self.info, pictures, targets, self.method)
                self._maps |= {k: (m, p.size) for k, m, p in zip(keys, raw, pictures, strict=True)}
            if progress:
                progress(min(at + self._bs, len(missing)), len(missing))

    def get(self, path: str, name: str) -> np.ndarray | str:
        """The map of a scan and a class, as `heat_map` gives it; or the reason why there is none."""
        key = (str(path), str(name))
        self.compute([key[0]], [key[1]])
        kept = self._maps[key]
        return kept if isinstance(kept, str) else _to_size(*kept, self.info.fit)


def check_method(method: str) -> str:
    """
    Raises
    ------
    UsageError : no method of that name, or captum is not installed.
    """
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, n=1, cutoff=0.4)
        raise UsageError(
            f"no heat map by {method!r}", f"did you mean {near[0]}?" if near else f"one of {', '.join(METHODS)}"
        )
    try:
        import captum.attr  # noqa: F401
    except ImportError as e:
        raise UsageError(f"heat maps need captum, which cannot be imported: {e}", "pip install captum") from None
    return method


def last_map(model: nn.Module, size: int) -> nn.Module:
    """The module that gives the body's last map before it is pooled.

    Raises
    ------
    UsageError : the network has none, as transformers, which hand on tokens or maps with the channels last.
    """
    known = _layers.get(model)
    if known and known[0] == size:
        return known[1]
    given: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, _: object, out: object) -> None:
        if isinstance(out, Tensor) and out.ndim > 2:
            given.append((module, out))

    hooks = [m.register_forward_hook(note) for m in model.modules()]
    try:
        with _undisturbed(model) as device, torch.no_grad():
            model(torch.zeros(1, 3, size, size, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    pooled = {id(out) for module, out in given if isinstance(module, _POOLS)}
    for module, out in reversed(given):
        if id(out) in pooled or (out.ndim == 4 and out.shape[2:] == (1, 1)):
            continue
        if out.ndim != 4 or out.shape[0] != 1 or out.shape[2] != out.shape[3]:
            break
        _layers[model] = size, module
        return module
    raise UsageError(
        "gradcam and hirescam need a network that ends in a map of (channels, height, width), or a transformer with a "
        "token a patch; this one does not",
        "use occlusion: --method occlusion",
    )


def _explained(model: nn.Module, size: int, method: str) -> tuple[nn.Module, bool]:
    """What a method looks at, and whether it is a transformer. Raises UsageError as `heat_maps` does."""
    network = transformer_in(model)
    if network is not None:
        return network, True
    if method == "attention":
        raise UsageError("attention is of transformers alone; this network is none", "use --method gradcam")
    return last_map(model, size), False


def _in_passes(
    passes: Passes, model: nn.Sequential, info: BundleInfo, pictures: Sequence[Any], targets: Sequence[int], method: str
) -> list[np.ndarray]:
    """As `_raw_maps`, of fewer pictures at once where memory is too small."""
    parts = passes(len(pictures), lambda part: _raw_maps(model, info, pictures[part], targets[part], method))
    return [one for part in parts for one in part]


def _raw_maps(
    model: nn.Sequential, info: BundleInfo, pictures: Sequence[Image.Image], targets: Sequence[int], method: str
) -> list[np.ndarray]:
    """Maps of the network's own coarse size, not negative; a target of -1 is the predicted class."""
    grey = [np.asarray(resize(p, info.size, info.fit)) for p in pictures]
    x = normalise(np.stack(grey), info.mean, info.std)
    wanted = torch.tensor(targets)
    # The caller may have switched gradients off.
    with torch.inference_mode(False):
        if method != "occlusion":
            layer, tokens = _explained(model, info.size, method)
            if tokens:
                with _undisturbed(model) as device:
                    maps = token_maps(model, layer, x.to(device), wanted.to(device), method, _scores)
            else:
                maps = _cam(model, layer, x, wanted, method)
        else:
            plain = np.stack([np.full((1, 1), round(float(g.mean())), np.uint8) for g in grey])
            maps = _occlusion(model, x, wanted, normalise(plain, info.mean, info.std))
    return list(maps.relu().cpu().numpy())


def _cam(model: nn.Sequential, layer: nn.Module, x: Tensor, targets: Tensor, method: str) -> Tensor:
    from captum.attr import LayerGradCam, LayerGradientXActivation

    with _undisturbed(model) as device:
        wanted = targets.to(device)

        def score(batch: Tensor) -> Tensor:
            return _scores(model(batch), wanted)

        kind = LayerGradCam if method == "gradcam" else LayerGradientXActivation
        relevance = kind(score, layer).attribute(x.to(device))
        assert isinstance(relevance, Tensor)
        return relevance.sum(1).detach()


def _occlusion(model: nn.Sequential, x: Tensor, targets: Tensor, plain: Tensor) -> Tensor:
    from captum.attr import Occlusion

    engine = Engine(model[0], "fp32", tail=model[1])
    side = max(2, round(x.shape[-1] / 7))
    step = max(1, side // 2)

    def score(batch: Tensor) -> Tensor:
        out = engine(batch)
        assert isinstance(out, Tensor)
        return out.cpu().clone()

    maps = []
    with torch.no_grad():
        own = score(x)
        targets = torch.where(targets < 0, own.argmax(1), targets)
        for one, base, target in zip(x, plain, targets.tolist(), strict=True):
            fall = Occlusion(score).attribute(
                one[None],
                sliding_window_shapes=(3, side, side),
                strides=(3, step, step),
                baselines=base[None].expand(1, *one.shape),
                target=target,
                perturbations_per_eval=16,
            )
            maps.append(fall[0, 0])
    # A change of the score by rounding alone means nothing.
    noise = 1e-5 * own.abs().amax(1).clamp_min(1)[:, None, None]
    together = torch.stack(maps)
    return together.where(together > noise, 0.0)


def _scores(out: Tensor, targets: Tensor) -> Tensor:
    chosen = torch.where(targets < 0, out.argmax(1), targets)
    return out.gather(1, chosen[:, None])[:, 0]


def _to_size(raw: np.ndarray, size: tuple[int, int], fit: str) -> np.ndarray:
    """A coarse map stretched over what is seen of a picture of (width, height), its maximum 1."""
    width, height = size
    left, top, right, bottom = box_of(width, height, fit)
    fine = nn.functional.interpolate(
        torch.from_numpy(raw).float()[None, None],
        size=(bottom - top, right - left),
        mode="bilinear",
        align_corners=False,
    )[0, 0].numpy()
    most = float(fine.max())
    whole = np.zeros((height, width), dtype=np.float32)
    if most > 0:
        whole[top:bottom, left:right] = fine / most
    return whole


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[torch.device]:
    """The model in eval mode with nothing to train, so that no graph is kept below the map; then as it was."""
    training = [(m, m.training) for m in model.modules()]
    wanted = [(p, p.requires_grad) for p in model.parameters()]
    try:
        model.eval().requires_grad_(False)
        yield wanted[0][0].device
    finally:
        for module, was in training:
            module.training = was
        for parameter, was in wanted:
            parameter.requires_grad_(was)
