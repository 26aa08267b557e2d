"""`octfast tune`: searches a recipe for a head on stored features, by patient, and trains the best as a usual run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from octfast.errors import UsageError
from octfast.figure import Files
from octfast.files import numbered_folder
from octfast.launcher import ended_by_signals
from octfast.processes import current, divided
from octfast.run.folder import RUNS
from octfast.train.config import TrainConfig
from octfast.train.device import computing
from octfast.train.job import prepared_scans, train_classifier
from octfast.train.leave_out import with_readable
from octfast.train.tune.dealt import kinds, share_features
from octfast.train.tune.features import store_features, weights_at_hand
from octfast.train.tune.result import Tuned
from octfast.train.tune.trials import SEARCH, Search

log = logging.getLogger("octfast")


@divided(kinds)
@ended_by_signals()
def tune(
    data: str | Path | None = None,
    *,
    minutes: float = 5,
    trials: int | None = None,
    arch: Sequence[str] = ("vgg16_bn",),
    weights: Sequence[str] = ("auto",),
    views: Sequence[int] = (1,),
    out: str | Path | None = None,
    **fields: Any,
) -> Tuned:
    """Search a recipe for a head as `octfast tune` does, and train the best.

    Each trial trains a head on stored features a fold of patients at a time and is judged by its log-loss over the
    others; a trial that lags behind the median is given up. One fold is held back: no trial sees it, and at the end the
    winner and the default recipe are judged on it. Test scans are never touched.

    Parameters
    ----------
    data : as `octfast train` takes it; None takes synthetic phantoms.
    minutes : of the search, after the features have been stored.
    trials : stop after so many in all, those of a search that is gone on with among them.
    arch : bodies to choose from; one without weights at hand is left out, and that is said.
    weights : "auto" for those at hand, "none", or a file; of several bodies as "vgg16_bn=FILE".
    views : numbers of readings of the training scans to choose from.
    out : folder of the search, new or of a search to go on with; None makes a new one in runs/.
    fields : of TrainConfig: epochs, seed, size, folds, columns of a table ...

    Returns
    -------
    What was found; its `run` is trained by the best recipe, from all training and validation scans.

    Raises
    ------
    UsageError : an option that cannot be, no Optuna, or a folder of another search.
    WeightsError : no body has weights at hand.
    OctfastError : see `train_classifier`.
    """
    optuna = _optuna()
    if minutes <= 0 or (trials is not None and trials < 1) or not arch or not views or min(views) < 1:
        raise UsageError("a search needs time, trials, bodies and views", "for example --minutes 5 --views 1")
    config = TrainConfig(data=None if data is None else str(data), **fields)
    if config.chosen_folds < 2:
        raise UsageError(f"--folds {config.chosen_folds}: a search is judged out of fold", "give 2 or more")
    weights_of = weights_at_hand(arch, weights, synthetic=data is None)
    prepared = prepared_scans(config)
    folder = _folder(out)
    log.info("the search is kept in %s", folder)
    if (group := current()) is not None:
        group.goes_on = f"the same command with --out {folder}"
    with computing(config.device, config.deterministic):
        features, prepared = with_readable(
            lambda p: store_features(p, config, weights_of, views), prepared, ("train", "valid")
        )
    share_features(features)
    try:
        search = Search(
            optuna, folder, features, list(dict.fromkeys(views)), config.seed, Files(config.format, config.dpi)
        )
        try:
            search.run(minutes, trials)
        except KeyboardInterrupt:
            if search.losses:
                search.result()
            log.warning("stopped: %d trials are kept; go on by the same command with --out %s", search.count, folder)
            raise
        result = search.result(judge=True)
    finally:
        features.close()
    recipe = search.recipes[result.best]
    log.info("training the best: %s", recipe.describe())
    place = numbered_folder(folder / "run")
    run = train_classifier(replace(config, **recipe.to_dict(), weights=weights_of[recipe.arch], out=str(place)))
    run.write_json("tune.json", result.to_dict())
    return replace(result, run=run.path)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UsageError("a search needs the package optuna", "pip install 'octfast[tune]'") from None
    return optuna


def _folder(out: str | Path | None) -> Path:
    """The folder of a search, made where it is not there."""
    if out is None:
        return numbered_folder(RUNS / f"{datetime.now():%Y%m%d-%H%M%S}-tune").resolve()
    folder = Path(out).expanduser()
    if folder.exists() and not (folder / SEARCH).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and has no search to go on with", "give another folder: --out FOLDER")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UsageError(f"cannot write to {folder}: {e.strerror or e}", "give another folder: --out FOLDER") from None
    return folder.resolve()
