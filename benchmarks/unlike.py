"""How well five distances tell a picture that is unlike the training scans, by patient, on what a clinic may meet.

    python benchmarks/unlike.py --data A --other B --weights FILE

A and B are tables or folders of real scans of two devices; without them phantoms stand in, to try the script.
Patients are held out in five folds. Each distance is fitted on the scans of the other folds; its threshold is the one
that 1% of their patients pass when each is judged without their own scans. Reported are the AUROC against the scans of
held-out patients, the share found at the threshold, and the share of held-out patients' scans that it marks by mistake.

- softmax: one minus the largest probability of the head (Hendrycks and Gimpel, 2017).
- energy: minus the logarithm of the summed exponentials of the logits (Liu and others, 2020).
- knn: distance to the k-th nearest training scan, features scaled to length 1 (Sun and others, 2022).
- vim: the norm outside of the main subspace, less the energy (Wang and others, 2022).
- classwise: Mahalanobis distance to the nearest class mean (Lee and others, 2018), the covariance shrunk by Ledoit and
  Wolf, as octfast keeps it.
- mahalanobis: the same to the mean of all, every direction of the covariance kept.
- kept: that with as many directions as octfast keeps in a model.

Features go into octfast's store, where another run of this script finds them again.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import accuracy
import common

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

# Classes of the second set that are held out, as diseases that the model has never seen.
HELD_OUT = ("ERM", "RVO", "RAO", "VID")
MADE = ("noise", "fundus", "chest", "photo", "phantom")
TURNED = ("upside_down", "mirrored")


def main() -> None:
    args = parse()
    about = common.machine()
    common.say(common.describe_machine(about))
    for name in set(METHODS) - set(args.methods.split(",")):
        del METHODS[name]
    with common.work_folder(args.work) as work:
        sets = {name: read(source, args, work) for name, source in (("A", args.data), ("B", args.other))}
        pictures = {**{f"{t}_{n}": turned(s, t, work, args) for n, s in sets.items() for t in TURNED}}
        pictures |= {name: made(name, args.made, work) for name in MADE}
        features = {
            name: accuracy.extract(table, "octfast", 1, args)[0] for name, table in {**sets, **pictures}.items()
        }
    rows, raw = [], {}
    for name, other in (("A", "B"), ("B", "A")):
        strange = {n: features[n] for n in MADE} | {t: features[f"{t}_{name}"] for t in TURNED}
        strange["other_device"] = features[other]
        raw[name] = judge(sets[name], features[name], strange, pictures, args)
        rows += table_of(name, raw[name])
    disease = sets["B"]["label"].isin(HELD_OUT).to_numpy()
    if disease.any():
        seen = sets["B"][~disease].reset_index(drop=True)
        raw["B_seen"] = judge(seen, features["B"][~disease], {"new_disease": features["B"][disease]}, pictures, args)
        rows += table_of("B without " + ", ".join(HELD_OUT), raw["B_seen"])
    common.print_table(rows, "found: share at a threshold of 1% of training patients; alarms: of held-out patients")
    settings = {k: v for k, v in vars(args).items() if k not in ("data", "other", "weights", "work")}
    common.print_json({"results": raw, "settings": settings, "machine": about})


def read(source: str | None, args: argparse.Namespace, work: Path) -> pd.DataFrame:
    from octfast.data.readers.read import read_data

    if source:
        return read_data(source, trainable=False)
    return common.phantom_scans(work / f"phantoms{len(list(work.iterdir()))}", 160, 40, size=96)


def turned(scans: pd.DataFrame, how: str, work: Path, args: argparse.Namespace) -> pd.DataFrame:
    """Up to `made` scans of a set, turned upside down or mirrored, in files of their own; `of` is the row."""
    import pandas as pd
    from PIL import Image, ImageOps

    from octfast.data.preprocess import decode_grey

    some = scans.sample(min(len(scans), 2 * args.made), random_state=0)
    folder = work / f"{how}{len(scans)}"
    folder.mkdir(exist_ok=True)
    rows = []
    for row, path, label, patient in zip(some.index, some["path"], some["label"], some["patient"], strict=True):
        file = folder / f"{row:05d}.png"
        if not file.exists():
            grey = decode_grey(path)
            (ImageOps.flip(grey) if how == "upside_down" else ImageOps.mirror(grey)).save(file)
            Image.open(file).verify()
        rows.append((str(file), label, patient, row))
    return pd.DataFrame(rows, columns=["path", "label", "patient", "of"])


def made(name: str, many: int, work: Path) -> pd.DataFrame:
    """Pictures of no retina: noise, fundus-like and chest-like drawings, a photograph-like one, phantoms."""
    import numpy as np
    import pandas as pd
    from PIL import Image

    folder = work / name
    folder.mkdir(exist_ok=True)
    files = []
    for n in range(many):
        file = folder / f"{n:04d}.png"
        if not file.exists():
            rng = np.random.default_rng((n, len(name)))
            Image.fromarray(DRAWN[name](rng, n)).save(file)
        files.append(str(file))
    return pd.DataFrame({"path": files, "label": ["a", "b"] * (many // 2) + ["a"] * (many % 2), "patient": files})


def noise(rng: np.random.Generator, n: int) -> np.ndarray:
    """Uniform, normal and blurred noise, and speckle."""
    import numpy as np
    from scipy.ndimage import gaussian_filter

    x = rng.random((496, 512)) if n % 4 != 1 else rng.normal(0.5, 0.15, (496, 512))
    if n % 4 == 2:
        x = gaussian_filter(x, rng.uniform(2, 12))
        x = (x - x.min()) / np.ptp(x)
    elif n % 4 == 3:
        x = np.sqrt(rng.exponential(0.03, (496, 512)))
    return (255 * np.clip(x, 0, 1)).astype(np.uint8)


def fundus(rng: np.random.Generator, n: int) -> np.ndarray:
    """A bright disc with a papilla, a macula and vessels, on black."""
    import numpy as np
    from scipy.ndimage import gaussian_filter

    y, x = np.mgrid[-1:1:400j, -1:1:400j]
    r = np.hypot(x, y)
    grey = 120 + 50 * rng.random() - 60 * r + 12 * gaussian_filter(rng.normal(0, 8, r.shape), 6)
    px, py = rng.choice([-1, 1]) * rng.uniform(0.35, 0.5), rng.uniform(-0.1, 0.1)
    grey += 100 * np.exp(-((((x - px) / 0.11) ** 2 + ((y - py) / 0.13) ** 2) ** 2))
    grey -= 45 * np.exp(-((x + px * 0.4) ** 2 + (y - py) ** 2) / 0.03)
    for _ in range(9):
        t = np.linspace(0, 1.3, 400)
        angle = rng.uniform(0, 2 * np.pi) + rng.normal(0, 0.6) * t + 0.2 * np.sin(7 * t + rng.uniform(0, 6))
        vx, vy = px + t * np.cos(angle), py + t * np.sin(angle)
        line = np.zeros_like(grey)
        line[np.clip(((vy + 1) * 200).astype(int), 0, 399), np.clip(((vx + 1) * 200).astype(int), 0, 399)] = 1
        width = rng.uniform(1.0, 2.5)
        grey -= 55 * np.clip(gaussian_filter(line, width) * width * 2.5, 0, 1)
    return np.where(r < 0.95, np.clip(grey, 0, 255), 4).astype(np.uint8)


def chest(rng: np.random.Generator, n: int) -> np.ndarray:
    """Two dark lungs, ribs, a heart and a spine, as in a radiograph of the chest."""
    import numpy as np
    from scipy.ndimage import gaussian_filter

    y, x = np.mgrid[-1:1:480j, -1:1:440j]
    grey = 190 - 60 * np.hypot(x, y * 0.7)
    for side in (-1, 1):
        cx, w = side * rng.uniform(0.38, 0.46), rng.uniform(0.26, 0.33)
        lung = np.exp(-((((x - cx) / w) ** 2 + ((y + 0.02) / 0.68) ** 2) ** 3))
        ribs = 14 * np.cos(22 * (y + 0.5 * (x - cx) ** 2 * 3) + rng.uniform(0, 6))
        grey += lung * (ribs - 120)
    grey += 80 * np.exp(-((x - 0.14) ** 2 / 0.06 + (y - 0.35) ** 2 / 0.1)) + 40 * np.exp(-(x**2) / 0.006)
    grey += 10 * gaussian_filter(rng.normal(0, 6, grey.shape), 4) + rng.normal(0, 4, grey.shape)
    return np.clip(grey + rng.normal(0, 15), 0, 255).astype(np.uint8)


def photo(rng: np.random.Generator, n: int) -> np.ndarray:
    """Edges, discs and shading at all scales, with the spectrum of a photograph (dead leaves)."""
    import numpy as np
    from scipy.ndimage import gaussian_filter

    y, x = np.mgrid[0:400, 0:520]
    grey = np.full(y.shape, 128.0)
    for radius in 12 / rng.random(400) ** 0.6:
        cx, cy = rng.uniform(0, 520), rng.uniform(0, 400)
        grey[(x - cx) ** 2 + (y - cy) ** 2 < min(radius, 200) ** 2] = rng.uniform(0, 255)
    return np.clip(gaussian_filter(grey, 0.8) + rng.normal(0, 3, grey.shape), 0, 255).astype(np.uint8)


def phantom(rng: np.random.Generator, n: int) -> np.ndarray:
    from octfast.data.phantom.draw import make_phantom

    return make_phantom(("CNV", "DME", "DRUSEN", "NORMAL")[n % 4], n)


DRAWN: dict[str, Callable[[Any, int], Any]] = {f.__name__: f for f in (noise, fundus, chest, photo, phantom)}


def judge(
    scans: pd.DataFrame,
    x: np.ndarray,
    strange: dict[str, np.ndarray],
    pictures: dict[str, pd.DataFrame],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Every method on folds by patient: AUROC, shares found and false alarms, each [value, low, high]."""
    import numpy as np
    from sklearn.model_selection import StratifiedGroupKFold

    from octfast.data.splits.groups import identical_files, linked_groups

    y = scans["label"].astype("category").cat.codes.to_numpy().astype(np.int64)
    groups = linked_groups(scans, identical_files(scans["path"].tolist()))
    own = np.full((len(METHODS), len(x)), np.nan)
    marked = np.zeros((len(METHODS), len(x)), bool)
    others = {n: np.zeros((len(METHODS), args.judged, len(v))) for n, v in strange.items()}
    hits = {n: np.zeros((len(METHODS), args.judged, len(v)), bool) for n, v in strange.items()}
    folds = StratifiedGroupKFold(args.folds, shuffle=True, random_state=0).split(x, y, groups)
    for k, (train, test) in enumerate(itertools.islice(folds, args.judged)):
        inner = folds_of(y[train], groups[train])
        together, logits_of = heads(x[train], y[train], inner, args.epochs)
        for m, make in enumerate(METHODS.values()):
            held = np.zeros(len(train))
            for j in range(inner.max() + 1):
                fit, judged = train[inner != j], train[inner == j]
                logits = [h[inner == j] if i else h for i, h in enumerate((logits_of(j, x[fit]), together))]
                held[inner == j] = make(x[fit], y[fit], logits[0])(x[judged], logits[1])
            score = make(x[train], y[train], logits_of(-1, x[train]))
            limit = threshold(held, groups[train])
            own[m, test] = score(x[test], logits_of(-1, x[test]))
            marked[m, test] = own[m, test] > limit
            for n, v in strange.items():
                others[n][m, k] = score(v, logits_of(-1, v))
                hits[n][m, k] = others[n][m, k] > limit
            # Distances of different fits are compared in units of their thresholds.
            own[m, test] -= limit
            for n in strange:
                others[n][m, k] -= limit
        common.say(f"  fold {k + 1} of {args.judged}")
    found = {}
    tested = ~np.isnan(own[0])
    for m, method in enumerate(METHODS):
        found[method] = {"alarms": by_patient(marked[m, tested].astype(float), groups[tested], args.resamples)}
        for n in strange:
            owner = np.arange(len(strange[n]))
            shares = by_patient(hits[n][m].mean(0), owner, args.resamples)
            found[method][n] = {"auroc": round(auc(own[m, tested], others[n][m]), 4), "found": shares}
    return found


def folds_of(y: np.ndarray, groups: np.ndarray) -> np.ndarray:
    import numpy as np
    from sklearn.model_selection import StratifiedGroupKFold

    out = np.zeros(len(y), int)
    for k, (_, inside) in enumerate(StratifiedGroupKFold(5, shuffle=True, random_state=1).split(y, y, groups)):
        out[inside] = k
    return out


def threshold(scores: np.ndarray, groups: np.ndarray) -> float:
    from octfast.model.unlike import patient_threshold

    # It takes distances, which are positive; energies need not be.
    least = scores.min() - 1
    return patient_threshold(scores - least, groups) + least


def auc(own: np.ndarray, strange: np.ndarray) -> float:
    import numpy as np
    from sklearn.metrics import roc_auc_score

    flat = strange.ravel()
    return float(roc_auc_score(np.r_[np.zeros(len(own)), np.ones(len(flat))], np.r_[own, flat]))


def by_patient(values: np.ndarray, owner: np.ndarray, resamples: int) -> list[float]:
    """The mean over scans with a 95% interval, resampled by patient."""
    import numpy as np

    _, codes = np.unique(owner, return_inverse=True)
    sums, counts = np.bincount(codes, values), np.bincount(codes)
    rng = np.random.default_rng(0)
    drawn = [rng.integers(0, len(counts), len(counts)) for _ in range(resamples)]
    means = [sums[d].sum() / counts[d].sum() for d in drawn]
    return [round(float(v), 4) for v in (values.mean(), *np.percentile(means, [2.5, 97.5]))]


def heads(x: np.ndarray, y: np.ndarray, folds: np.ndarray, epochs: int) -> tuple[np.ndarray, Callable]:
    """Heads as octfast trains them: out-of-fold logits, and a function for those by the head of a fold (-1: of all)."""
    import fastai.callback.schedule  # noqa: F401, gives the Learner fit_one_cycle
    import numpy as np
    import torch
    from fastai.callback.progress import ProgressCallback
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from fastai.torch_core import set_seed
    from torch import nn

    from octfast.data.loaders import batch_size
    from octfast.model.heads import linear_head
    from octfast.train.frozen.folds import FoldHeads, FoldLoader
    from octfast.train.store.rows import Values

    set_seed(0)
    model = FoldHeads(nn.Identity(), linear_head(x.shape[1], int(y.max()) + 1), 5)
    store, targets = Values(x), torch.from_numpy(y)
    loaders = [
        FoldLoader(store, targets, folds, True, bs=batch_size(len(x)), shuffle=True, drop_last=True),
        FoldLoader(store, targets, folds, False, bs=512),
    ]
    learn = Learner(DataLoaders(*loaders, device="cpu"), model, CrossEntropyLossFlat(), wd=0.1)
    with learn.removed_cbs(learn._grab_cbs(ProgressCallback)), learn.no_logging():
        learn.fit_one_cycle(epochs, 1.5e-3)
    model.eval()

    def logits(head: int, rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model.heads[head](torch.from_numpy(rows)).numpy()

    out = np.zeros((len(x), int(y.max()) + 1), np.float32)
    for j in range(5):
        out[folds == j] = logits(j, x[folds == j])
    return out, logits


# A method gets the features, classes and logits of the scans that it is fitted on, and gives a function of features and
# logits: the higher, the less like them.


def softmax(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> Callable:
    import numpy as np
    from scipy.special import softmax as soft

    return lambda x, z: 1 - soft(z.astype(np.float64), 1).max(1)


def energy(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> Callable:
    from scipy.special import logsumexp

    return lambda x, z: -logsumexp(z, 1)


def knn(x: np.ndarray, y: np.ndarray, z: np.ndarray, k: int = 5) -> Callable:
    from sklearn.neighbors import NearestNeighbors
    from sklearn.preprocessing import StandardScaler, normalize

    scale = StandardScaler().fit(x)
    near = NearestNeighbors(n_neighbors=k).fit(normalize(scale.transform(x)))
    return lambda x, z: near.kneighbors(normalize(scale.transform(x)))[0][:, -1]


def mahalanobis(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> Callable:
    return _distance(x, len(x))


def kept(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> Callable:
    return _distance(x, None)


def classwise(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> Callable:
    import numpy as np

    means = np.stack([x[y == c].mean(0) for c in np.unique(y)])
    inner = _distance(x - means[np.searchsorted(np.unique(y), y)], None)
    return lambda x, z: np.min([inner(x - m, z) for m in means], axis=0)


def _distance(x: np.ndarray, most: int | None) -> Callable:
    """octfast's distance, with so many directions; None takes as many as octfast keeps."""
    import torch

    from octfast.model.unlike import MOST, fit_distance

    fitted = fit_distance(x, most=most or MOST)
    return lambda x, z: fitted(torch.from_numpy(x.astype("float32"))).numpy()


def vim(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> Callable:
    import numpy as np
    from scipy.special import logsumexp
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    scale = StandardScaler().fit(x)
    pca = PCA(min(512, len(x) // 2), random_state=0, svd_solver="randomized").fit(scale.transform(x))

    def outside(x: np.ndarray) -> np.ndarray:
        x = scale.transform(x)
        return np.linalg.norm(x - pca.inverse_transform(pca.transform(x)), axis=1)

    alpha = z.max(1).mean() / outside(x).mean()
    return lambda x, z: alpha * outside(x) - logsumexp(z, 1)


METHODS = {f.__name__: f for f in (softmax, energy, knn, vim, classwise, mahalanobis, kept)}


def table_of(name: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for method, of in found.items():
        row = {
            "trained on": name,
            "method": method,
            "alarms": f"{of['alarms'][0]:.3f} ({of['alarms'][1]:.3f}-{of['alarms'][2]:.3f})",
        }
        row |= {n: f"{v['auroc']:.3f} {v['found'][0]:.2f}" for n, v in of.items() if n != "alarms"}
        rows.append(row)
    keys = dict.fromkeys(k for r in rows for k in r)
    return [{k: r.get(k, "") for k in keys} for r in rows]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="scans of one device; by default phantoms")
    parser.add_argument("--other", help="scans of another device; by default phantoms")
    parser.add_argument("--weights", required=True, help="of the body; a random one would differ from set to set")
    parser.add_argument("--arch", default="vgg16_bn")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--judged", type=int, default=5, help="of the folds, so many are held out in turn")
    parser.add_argument("--methods", default=",".join(METHODS), help="of the distances, those to compare")
    parser.add_argument("--made", type=int, default=100, help="pictures of each kind that are drawn")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--work", help="folder for what is drawn; by default a temporary one")
    return parser.parse_args()


if __name__ == "__main__":
    main()
