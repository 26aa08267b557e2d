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
    "History": "octfast.train.callbacks",
    "OctfastError": "octfast.errors",
    "Predictor": "octfast.deploy.predictor",
    "Run": "octfast.run.folder",
    "SaveBest": "octfast.train.callbacks",
    "StopEarly": "octfast.train.callbacks",
    "TrainConfig": "octfast.train.config",
    "assign_validation": "octfast.data.splits.hold_out",
    "audit": "octfast.data.audit.audit",
    "calibrate_run": "octfast.assess.calibration.calibrate",
    "class_accuracy": "octfast.assess.interpret.show",
    "compare_runs": "octfast.assess.compare",
    "describe_bundle": "octfast.model.bundle.show",
    "describe_splits": "octfast.data.splits.folds",
    "evaluate_data": "octfast.assess.evaluate",
    "evaluate_run": "octfast.assess.evaluate",
    "evaluate_table": "octfast.assess.metrics.metrics",
    "explore": "octfast.data.explore",
    "export_bundle": "octfast.deploy.export.export",
    "find_label_errors": "octfast.assess.interpret.label_errors",
    "frozen_learner": "octfast.train.frozen.frozen",
    "heat_map": "octfast.assess.interpret.heatmap",
    "interpret_run": "octfast.assess.interpret.interpret",
    "load": "octfast.deploy.predictor",
    "load_bundle": "octfast.model.bundle.read",
    "make_splits": "octfast.data.splits.folds",
    "oct_dataloaders": "octfast.data.loaders",
    "oct_learner": "octfast.train.learner",
    "open_run": "octfast.run.folder",
    "overlay": "octfast.assess.interpret.heatmap",
    "plot_history": "octfast.train.plots",
    "predict": "octfast.deploy.predict.predict",
    "preprocess": "octfast.data.preprocess",
    "read_data": "octfast.data.readers.read",
    "read_scans": "octfast.data.readers.folder",
    "repeat_training": "octfast.train.resume",
    "resume_training": "octfast.train.resume",
    "save_splits": "octfast.data.splits.files",
    "shared_patients": "octfast.data.splits.hold_out",
    "save_run": "octfast.train.save",
    "show_scan": "octfast.assess.interpret.show",
    "suggest": "octfast.deploy.suggest.suggest",
    "summarise": "octfast.model.summary",
    "train_classifier": "octfast.train.job",
    "tune": "octfast.train.tune.search",
    "unit_learner": "octfast.train.unit_learner",
    "write_faulty_phantoms": "octfast.data.phantom.faults",
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
    from octfast.assess.interpret.heatmap import overlay as overlay
    from octfast.assess.interpret.interpret import interpret_run as interpret_run
    from octfast.assess.interpret.interpretation import ClassificationInterpretation as ClassificationInterpretation
    from octfast.assess.interpret.label_errors import find_label_errors as find_label_errors
    from octfast.assess.interpret.show import class_accuracy as class_accuracy
    from octfast.assess.interpret.show import show_scan as show_scan
    from octfast.assess.metrics.metrics import evaluate_table as evaluate_table
    from octfast.assess.report.report import write_report as write_report
    from octfast.data.audit.audit import audit as audit
    from octfast.data.explore import explore as explore
    from octfast.data.loaders import oct_dataloaders as oct_dataloaders
    from octfast.data.phantom.draw import write_phantoms as write_phantoms
    from octfast.data.phantom.faults import write_faulty_phantoms as write_faulty_phantoms
    from octfast.data.preprocess import preprocess as preprocess
    from octfast.data.readers.folder import read_scans as read_scans
    from octfast.data.readers.read import read_data as read_data
    from octfast.data.splits.files import save_splits as save_splits
    from octfast.data.splits.folds import describe_splits as describe_splits
    from octfast.data.splits.folds import make_splits as make_splits
    from octfast.data.splits.hold_out import assign_validation as assign_validation
    from octfast.data.splits.hold_out import shared_patients as shared_patients
    from octfast.deploy.export.export import export_bundle as export_bundle
    from octfast.deploy.predict.predict import predict as predict
    from octfast.deploy.predictor import Predictor as Predictor
    from octfast.deploy.predictor import load as load
    from octfast.deploy.suggest.suggest import suggest as suggest
    from octfast.errors import OctfastError as OctfastError
    from octfast.model.bundle.read import load_bundle as load_bundle
    from octfast.model.bundle.show import describe_bundle as describe_bundle
    from octfast.model.summary import summarise as summarise
    from octfast.run.folder import Run as Run
    from octfast.run.folder import open_run as open_run
    from octfast.train.callbacks import History as History
    from octfast.train.callbacks import SaveBest as SaveBest
    from octfast.train.callbacks import StopEarly as StopEarly
    from octfast.train.config import TrainConfig as TrainConfig
    from octfast.train.frozen.frozen import frozen_learner as frozen_learner
    from octfast.train.job import train_classifier as train_classifier
    from octfast.train.learner import oct_learner as oct_learner
    from octfast.train.plots import plot_history as plot_history
    from octfast.train.resume import repeat_training as repeat_training
    from octfast.train.resume import resume_training as resume_training
    from octfast.train.save import save_run as save_run
    from octfast.train.tune.search import tune as tune
    from octfast.train.unit_learner import unit_learner as unit_learner

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
