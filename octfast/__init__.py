"""octfast trains, judges and hands on classifiers of retinal OCT B-scans. Not a medical device.

In a notebook:

    from octfast import Learner, oct_dataloaders, oct_learner, frozen_learner, ClassificationInterpretation

    dls = oct_dataloaders("OCT2017")
    learn = oct_learner(dls, "vgg16_bn")
    frozen_learner(learn).fit_one_cycle(10, 2e-3)
    ClassificationInterpretation.from_learner(learn).plot_top_losses(9)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "Learner": "fastai.learner",
    "ClassificationInterpretation": "octfast.assess.interpret.interpretation",
    "OctfastError": "octfast.errors",
    "Predictor": "octfast.deploy.predictor",
    "Run": "octfast.run.folder",
    "TrainConfig": "octfast.train.config",
    "calibrate_run": "octfast.assess.calibration.calibrate",
    "class_accuracy": "octfast.assess.interpret.show",
    "compare_runs": "octfast.assess.compare",
    "evaluate_data": "octfast.assess.evaluate",
    "evaluate_run": "octfast.assess.evaluate",
    "evaluate_table": "octfast.assess.metrics.metrics",
    "export_bundle": "octfast.deploy.export.export",
    "find_label_errors": "octfast.assess.interpret.label_errors",
    "frozen_learner": "octfast.train.frozen",
    "heat_map": "octfast.assess.interpret.heatmap",
    "interpret_run": "octfast.assess.interpret.interpret",
    "load": "octfast.deploy.predictor",
    "load_bundle": "octfast.model.bundle.read",
    "oct_dataloaders": "octfast.data.loaders",
    "oct_learner": "octfast.train.learner",
    "open_run": "octfast.run.folder",
    "predict": "octfast.deploy.predict.predict",
    "preprocess": "octfast.data.preprocess",
    "read_scans": "octfast.data.readers.folder",
    "show_scan": "octfast.assess.interpret.show",
    "train_classifier": "octfast.train.job",
    "write_phantoms": "octfast.data.phantom.draw",
    "write_report": "octfast.assess.report.report",
}

__all__ = sorted(_PUBLIC)

if TYPE_CHECKING:
    from fastai.learner import Learner as Learner

    from octfast.assess.calibration.calibrate import calibrate_run as calibrate_run
    from octfast.assess.compare import compare_runs as compare_runs
    from octfast.assess.evaluate import evaluate_data as evaluate_data
    from octfast.assess.evaluate import evaluate_run as evaluate_run
    from octfast.assess.interpret.heatmap import heat_map as heat_map
    from octfast.assess.interpret.interpret import interpret_run as interpret_run
    from octfast.assess.interpret.interpretation import ClassificationInterpretation as ClassificationInterpretation
    from octfast.assess.interpret.label_errors import find_label_errors as find_label_errors
    from octfast.assess.interpret.show import class_accuracy as class_accuracy
    from octfast.assess.interpret.show import show_scan as show_scan
    from octfast.assess.metrics.metrics import evaluate_table as evaluate_table
    from octfast.assess.report.report import write_report as write_report
    from octfast.data.loaders import oct_dataloaders as oct_dataloaders
    from octfast.data.phantom.draw import write_phantoms as write_phantoms
    from octfast.data.preprocess import preprocess as preprocess
    from octfast.data.readers.folder import read_scans as read_scans
    from octfast.deploy.export.export import export_bundle as export_bundle
    from octfast.deploy.predict.predict import predict as predict
    from octfast.deploy.predictor import Predictor as Predictor
    from octfast.deploy.predictor import load as load
    from octfast.errors import OctfastError as OctfastError
    from octfast.model.bundle.read import load_bundle as load_bundle
    from octfast.run.folder import Run as Run
    from octfast.run.folder import open_run as open_run
    from octfast.train.config import TrainConfig as TrainConfig
    from octfast.train.frozen import frozen_learner as frozen_learner
    from octfast.train.job import train_classifier as train_classifier
    from octfast.train.learner import oct_learner as oct_learner

    __version__: str


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("octfast")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'octfast' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
