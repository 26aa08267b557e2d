"""Bodies, sizes, statistics and preparations of a scan side by side, by patient: what each costs and what it gives.

    python benchmarks/bodies.py --data DATA --weights vgg16_bn=FILE tf_efficientnet_lite0=FILE --features FOLDER

Every body runs once over the scans at each size and with each preparation, and what it gives is kept in the folder of
features, where another run finds it again. On it the arm `single` of accuracy.py, the default's one layer, is trained
over folds by patient. Each line is paired with the default: vgg16_bn at 224 pixels, squeezed; and with `crop`, where
that is among the preparations.

Preparations, of a scan of any shape to a square: `squeeze` (octfast's); `pad` and `crop`, which keep the aspect ratio;
`trim` and `trim2`, which cut to at most 1.5 and 2 times as wide as high and squeeze the rest; `black` and `median`,
which fill white wedges at the border; `band`, which cuts to the rows of the retina. `wide` makes no square: the scan
keeps its proportions to 2.5 : 1 and is squeezed beyond that, the shorter side as long as the size and the other a
multiple of 32. Two joined by `+`, such as `squeeze+crop`, are their features side by side.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import accuracy
import common

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from PIL import Image
    from torch import nn

# A body, its size, how the scans are prepared; then the names of the statistics that a head sees, side by side.
DEFAULT = ("vgg16_bn", 224, "squeeze", "maps 3-5: mean, deviation")
METRICS = ("log_loss", "accuracy", "balanced_accuracy")
STATISTICS: dict[str, dict[str, tuple[str, ...]]] = {
    "vgg": {
        "maps 3-5: mean, deviation": ("mean3", "std3", "mean4", "std4", "mean5", "std5"),
        "maps 3-5: mean": ("mean3", "mean4", "mean5"),
        "last map: mean, deviation": ("mean5", "std5"),
    },
    "maps": {
        "its own": ("own",),
        "last map: mean, deviation": ("own", "own_std"),
        "maps 3-5: mean, deviation": ("mean3", "std3", "mean4", "std4", "mean5", "std5"),
        "maps 3-5 and last: mean, deviation": ("mean3", "std3", "mean4", "std4", "mean5", "std5", "own", "own_std"),
    },
    "tokens": {
        "class token": ("class",),
        "patches: mean, deviation": ("mean", "std"),
        "class token; patches: mean, deviation": ("class", "mean", "std"),
        "patches at 1/2, 3/4 and the end: mean, deviation": ("mean_1", "std_1", "mean_2", "std_2", "mean", "std"),
        "class token; patches at 1/2, 3/4, end": ("class", "mean_1", "std_1", "mean_2", "std_2", "mean", "std"),
    },
}


def main() -> None:
    args = parse()
    about = common.machine()
    common.say(common.describe_machine(about))
    with common.work_folder(args.work) as work:
        scans = accuracy.read(args, work)
        common.say(f"{len(scans)} scans of {scans['patient'].nunique()} patients")
        rows, held = [], {}
        for arch, size, preparation in wanted(args):
            found, seconds = side_by_side(scans, arch, size, preparation, args)
            for name, parts in STATISTICS[kind_of(arch)].items():
                if preparation != "squeeze" and (arch, name) != (DEFAULT[0], DEFAULT[3]):
                    continue
                key = (arch, size, preparation, name)
                held[key] = judge(scans, found, parts, args)
                row = {"body": arch, "size": size, "preparation": preparation, "statistics": name}
                row["numbers"] = sum(found[p].shape[1] for p in parts)
                row["s_per_1000"] = round(seconds, 1)
                bases = {"default": held.get(DEFAULT), "crop": held.get((*DEFAULT[:2], "crop", DEFAULT[3]))}
                rows.append(row | compare(held[key], bases, scans, args.resamples))
                common.say("  " + ", ".join(str(v) for v in rows[-1].values()))
    shown = [{**row, **{k: v[0] for k, v in row.items() if isinstance(v, list)}} for row in rows]
    common.print_table(shown, Path(args.data).name if args.data else "phantoms")
    settings = {**vars(args), "data": Path(args.data).name if args.data else "phantoms", "weights": bool(args.weights)}
    for private in ("work", "features"):
        settings.pop(private)
    common.print_json({"rows": rows, "settings": settings, "machine": about})


def wanted(args: argparse.Namespace) -> list[tuple[str, int, str]]:
    """Body, size and preparation of every pass, the default first."""
    found = [DEFAULT[:3]]
    found += [(DEFAULT[0], DEFAULT[1], p) for p in args.preparations]
    for body in args.bodies:
        arch, _, sizes = body.partition("=")
        found += [(arch, int(size), "squeeze") for size in (sizes or "224").split(",")]
    return list(dict.fromkeys(found))


def kind_of(arch: str) -> str:
    """What statistics a body has: those of a VGG's blocks, of the maps of another network, or of tokens."""
    return "vgg" if arch.startswith("vgg") else "tokens" if arch.startswith(("vit", "deit", "eva")) else "maps"


def side_by_side(
    scans: pd.DataFrame, arch: str, size: int, preparation: str, args: argparse.Namespace
) -> tuple[dict[str, np.ndarray], float]:
    """The features of one preparation, or of several joined by +; and the seconds per 1,000 scans of all of them."""
    import numpy as np

    each = [features(scans, arch, size, part, args) for part in preparation.split("+")]
    return {k: np.concatenate([found[k] for found, _ in each], 1) for k in each[0][0]}, sum(s for _, s in each)


def features(
    scans: pd.DataFrame, arch: str, size: int, preparation: str, args: argparse.Namespace
) -> tuple[dict[str, np.ndarray], float]:
    """All statistics that a body gives of every scan, by name, (scans, channels); and its seconds per 1,000 scans."""
    import numpy as np
    import torch
    from PIL import Image

    from octfast.data.preprocess import decode_grey, normalise, resize
    from octfast.files import sha256_of
    from octfast.model.arch import find_arch

    weights = dict(pair.split("=", 1) for pair in args.weights).get(arch, "none")
    digest = hashlib.sha256(repr((arch, size, preparation, weights != "none" and sha256_of(Path(weights)))).encode())
    for path in scans["path"]:
        digest.update(sha256_of(Path(path)).encode())
    kept = Path(args.features) / f"{arch}-{size}-{preparation}-{digest.hexdigest()[:16]}.npz"
    if kept.is_file():
        with np.load(kept) as stored:
            return {k: stored[k] for k in stored.files if k != "seconds"}, float(stored["seconds"])
    about = find_arch(arch)
    network = with_statistics(arch, size, weights).eval().requires_grad_(False)
    network = network.to(torch.bfloat16 if args.bf16 else torch.float32, memory_format=torch.channels_last)
    prepare, paths = PREPARATIONS[preparation], scans["path"].tolist()

    def read(path: str) -> np.ndarray:
        if preparation == "wide":
            grey = decode_grey(path)
            return np.asarray(grey.resize(in_proportion(grey.size, size), Image.Resampling.BILINEAR))
        return np.asarray(resize(prepare(decode_grey(path)), size, "squeeze"))

    parts: dict[str, list[np.ndarray]] = {}
    order, blocks = range(len(paths)), []
    if preparation == "wide":
        shapes = [in_proportion(Image.open(path).size, size) for path in paths]
        order = sorted(order, key=lambda i: shapes[i])
        for _, same in itertools.groupby(order, key=lambda i: shapes[i]):
            blocks += batched(list(same), 16)
    else:
        blocks = batched(list(order), 16)
    with ThreadPoolExecutor(2) as pool, torch.inference_mode():
        spent = 0.0
        ahead = pool.map(read, [paths[i] for i in blocks[0]])
        for following in [*blocks[1:], []]:
            grey = np.stack(list(ahead))
            ahead = pool.map(read, [paths[i] for i in following])
            x = normalise(grey, about.mean, about.std)
            started = time.perf_counter()
            x = x.to(torch.bfloat16 if args.bf16 else torch.float32).contiguous(memory_format=torch.channels_last)
            for name, vectors in network(x).items():
                parts.setdefault(name, []).append(vectors.float().numpy())
            spent += time.perf_counter() - started
    seconds = 1000 * spent / len(paths)
    back = np.argsort(order)
    found = {name: np.concatenate(vectors)[back] for name, vectors in parts.items()}
    kept.parent.mkdir(parents=True, exist_ok=True)
    np.savez(kept.with_suffix(".part.npz"), seconds=seconds, **found)
    kept.with_suffix(".part.npz").replace(kept)
    common.say(f"  {arch} {size} {preparation}: {seconds:.0f} s per 1,000 scans")
    return found, seconds


def batched(of: list[int], most: int) -> list[list[int]]:
    """A list in pieces of so many at most."""
    return [of[at : at + most] for at in range(0, len(of), most)]


def in_proportion(shape: tuple[int, int], size: int) -> tuple[int, int]:
    """Width and height: the shorter side `size`, the other a multiple of 32 and at most 2.5 times as long."""
    width, height = shape
    longer = 32 * round(size * min(max(width, height) / min(width, height), 2.5) / 32)
    return (longer, size) if width >= height else (size, longer)


def with_statistics(arch: str, size: int, weights: str) -> nn.Module:
    """A network that gives every statistic of a picture's maps or tokens by name."""
    import torch
    from torch import nn

    from octfast.model.arch import drop_classifier, find_arch, make_body, make_network
    from octfast.model.weights.load import load_weights

    about = find_arch(arch)
    network: Any = make_network(about, size)
    drop_classifier(network)
    load_weights(network, arch, weights, needed=("features.",) if about.is_vgg else ())

    def moments(x: torch.Tensor, dims: tuple[int, ...], mean: str, std: str) -> dict[str, torch.Tensor]:
        variance, average = torch.var_mean(x.float(), dims, correction=0)
        return {mean: average, std: (variance + 1e-6).sqrt()}

    class Statistics(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make_body(network, about, pool=False) if about.is_vgg else network

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            out: dict[str, torch.Tensor] = {}
            if kind_of(arch) == "tokens":
                depth = len(network.blocks)
                at = [depth // 2 - 1, depth * 3 // 4 - 1]
                last, between = network.forward_intermediates(x, indices=at, norm=True, output_fmt="NLC")
                first = network.num_prefix_tokens
                for i, patches in enumerate(between, 1):
                    out |= moments(patches, (1,), f"mean_{i}", f"std_{i}")
                return out | {"class": last[:, 0]} | moments(last[:, first:], (1,), "mean", "std")
            if kind_of(arch) == "vgg":
                for i, stage in enumerate(self.inner, 1):
                    x = stage(x)
                    out |= moments(x, (2, 3), f"mean{i}", f"std{i}")
                return out
            last, between = network.forward_intermediates(x)
            for i, m in enumerate(between, 1):
                out |= moments(m, (2, 3), f"mean{i}", f"std{i}")
            if hasattr(network, "conv_head"):
                last = network.bn2(network.conv_head(between[-1]))
            return out | moments(last, (2, 3), "own", "own_std")

    return Statistics()


def judge(
    scans: pd.DataFrame, found: dict[str, np.ndarray], parts: tuple[str, ...], args: argparse.Namespace
) -> np.ndarray:
    """Probabilities of each scan by models without its patient, (repeats, scans, classes)."""
    import fastai.vision.all  # noqa: F401  (gives Learner what accuracy.py calls)
    import numpy as np
    import torch

    plain = np.concatenate([found[p] for p in parts], 1).astype(np.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a head is too small for several, which wait for each other beside other work
    try:
        return accuracy.run_arm("single", scans, {"plain": plain[None]}, args, None)[0]
    finally:
        torch.set_num_threads(threads)


def compare(
    p: np.ndarray, bases: dict[str, np.ndarray | None], scans: pd.DataFrame, resamples: int
) -> dict[str, list[float]]:
    """Each metric with its 95% interval by patients, and less that of others by name: [value, low, high]."""
    drawn = metrics(p, scans, resamples)
    out = {m: accuracy.interval(drawn[m]) for m in METRICS}
    for name, base in bases.items():
        if base is not None:
            other = metrics(base, scans, resamples)
            out |= {f"{m}_less_{name}": accuracy.interval(drawn[m] - other[m]) for m in METRICS}
    return out


def metrics(p: np.ndarray, scans: pd.DataFrame, resamples: int) -> dict[str, np.ndarray]:
    """The metrics, means over the repeats, of all scans and then of each bootstrap resample of the patients."""
    import numpy as np

    y = scans["label"].astype("category").cat.codes.to_numpy()
    owner = scans["patient"].astype("category").cat.codes.to_numpy()
    patients = owner.max() + 1
    drawn = np.random.default_rng(0).multinomial(patients, np.full(patients, 1 / patients), resamples)
    weights = np.concatenate([np.ones((1, len(y))), drawn[:, owner]])
    loss = -np.log(np.maximum(p[:, np.arange(len(y)), y], 1e-12)).mean(0)
    right = (p.argmax(2) == y).mean(0)
    with np.errstate(invalid="ignore"):
        recalls = [(weights[:, y == c] @ right[y == c]) / weights[:, y == c].sum(1) for c in np.unique(y)]
    total = weights.sum(1)
    return {
        "log_loss": weights @ loss / total,
        "accuracy": weights @ right / total,
        "balanced_accuracy": np.nanmean(recalls, axis=0),
    }


def pad(grey: Image.Image) -> Image.Image:
    """The whole scan in the middle of a black square."""
    from PIL import ImageOps

    return ImageOps.pad(grey, (max(grey.size),) * 2, color=0)


def crop(grey: Image.Image) -> Image.Image:
    """The square in the middle of a scan."""
    from PIL import ImageOps

    return ImageOps.fit(grey, (min(grey.size),) * 2)


def trim(grey: Image.Image, most: float) -> Image.Image:
    """The middle of a scan, at most so many times as wide as it is high."""
    width = min(grey.width, round(most * grey.height))
    left = (grey.width - width) // 2
    return grey.crop((left, 0, left + width, grey.height))


def fill(grey: Image.Image, median: bool) -> Image.Image:
    """White that is joined to the border made black, or the median of the rest."""
    import numpy as np
    from PIL import Image
    from scipy import ndimage

    a = np.asarray(grey)
    white = a >= 245
    edge = np.zeros_like(white)
    edge[[0, -1]] = edge[:, [0, -1]] = True
    joined = ndimage.binary_propagation(white & edge, mask=white)
    if joined.mean() < 0.002 or joined.all():
        return grey
    # Compression leaves a seam that is not quite white.
    joined = ndimage.binary_dilation(joined, iterations=4)
    return Image.fromarray(np.where(joined, np.uint8(np.median(a[~joined]) if median else 0), a))


def band(grey: Image.Image) -> Image.Image:
    """The rows of the retina with a margin: those between the 2nd and 98th percentile of what is bright."""
    import numpy as np
    from scipy import ndimage

    a = ndimage.gaussian_filter(np.asarray(fill(grey, False), dtype=np.float32), 3)
    bright = (a > a.mean() + a.std()).sum(1)
    if not bright.any():
        return grey
    share = np.cumsum(bright) / bright.sum()
    first, last = np.searchsorted(share, [0.02, 0.98])
    margin = max(8, round(0.2 * (last - first)))
    return grey.crop((0, max(0, int(first) - margin), grey.width, min(grey.height, int(last) + margin)))


PREPARATIONS: dict[str, Any] = {
    "squeeze": lambda grey: grey,
    "pad": pad,
    "crop": crop,
    "trim": lambda grey: trim(grey, 1.5),
    "trim2": lambda grey: trim(grey, 2),
    "black": lambda grey: fill(grey, False),
    "median": lambda grey: fill(grey, True),
    "band": band,
    "wide": None,
}


def preparation(text: str) -> str:
    """A name of one, or of several joined by +."""
    if not set(text.split("+")) <= set(PREPARATIONS):
        raise argparse.ArgumentTypeError(f"{text!r} is not among {', '.join(PREPARATIONS)}")
    return text


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder or table of scans; by default phantoms")
    parser.add_argument("--weights", nargs="*", default=[], metavar="BODY=FILE", help="by default random")
    for name in ("path", "label", "patient"):
        parser.add_argument(f"--{name}-column", help=f"column of a table with the {name}")
    parser.add_argument("--bodies", nargs="*", default=[], metavar="BODY=SIZE,SIZE", help="beside the default")
    parser.add_argument("--preparations", nargs="*", default=[], type=preparation, help="beside squeeze")
    parser.add_argument("--features", default="features", help="folder where features are kept")
    parser.add_argument("--size", type=int, default=224, help="of phantoms")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--scans", type=int, help="take so many scans, by whole patients")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--bf16", action="store_true", help="bodies in bf16, for a machine that multiplies it")
    parser.add_argument("--work", help="folder for phantoms; by default a temporary one")
    return parser.parse_args()


if __name__ == "__main__":
    main()
