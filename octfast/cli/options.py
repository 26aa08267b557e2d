"""Options and arguments that several commands share, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

_MOVED = "Where the run's own scans are now, if it was copied from elsewhere."

Run = Annotated[Path | None, Argument(help="Run folder; by default the newest, runs/latest.")]
Bundle = Annotated[Path, Argument(help="Folder of a trained model, or a run folder.")]
Data = Annotated[
    Path,
    Argument(help="Folder of scans or volumes, a CSV, TSV or parquet table, a .txt list, or a MedMNIST .npz file."),
]

Split = Annotated[str, Option(help="valid, test or train.")]
Moved = Annotated[Path | None, Option("--moved", help=_MOVED)]
DataMoved = Annotated[Path | None, Option("--data", "--moved", help=_MOVED)]
"""Of commands that take no other data, whose option was first called --data."""

PathColumn = Annotated[str | None, Option(help="Column of a table with the files.")]
LabelColumn = Annotated[str | None, Option(help="Column with the classes.")]
PatientColumn = Annotated[str | None, Option(help="Column with the patients.")]
SplitColumn = Annotated[str | None, Option(help="Column with train, valid or test.")]
PatientFrom = Annotated[
    str | None,
    Option(
        help="Where the patient stands: folder, folder:2 (the one above), name, a pattern, a column, or tag (volumes)."
    ),
]
LabelFrom = Annotated[
    str | None, Option(help="Where the class stands: folder, folder:2 (the one above), a pattern or a column.")
]

Urgent = Annotated[str | None, Option(help="Classes to refer, as CNV,DME; 'none' for none. By default these two.")]
Sensitivity = Annotated[
    float | None,
    Option(help="Wanted sensitivity of urgent referral on held-out scans; by default the model's own, else 0.95."),
]
Prevalence = Annotated[str | None, Option(help="Shares of classes to give PPV and NPV at, as CNV=.02,DME=.01.")]
Costs = Annotated[Path | None, Option(help="CSV of what a mistake costs, actual by predicted; by default Kermany's.")]
Resamples = Annotated[int, Option(help="Resamples of the bootstrap over patients.")]
BootstrapSeed = Annotated[int, Option("--seed", min=0, help="Seed of the bootstrap.")]
By = Annotated[list[str] | None, Option(help="Column whose groups are judged one by one; repeatable.")]

Level = Annotated[
    str | None,
    Option(
        help="Judge each volume, eye or patient, by what a model of scans says of its scans; by default what the model "
        "answers for."
    ),
]

FigureFormat = Annotated[str, Option("--format", help="Format of the figures: png, svg or pdf.")]
Dpi = Annotated[
    int, Option(help="Resolution of the figures in dots per inch, 20 to 1200: 120 for a screen, 300 for print.")
]

HeatMaps = Annotated[
    bool, Option("--heatmaps/--no-heatmaps", help="Beside each scan what raised the predicted class's score.")
]
Method = Annotated[
    str,
    Option(
        help="Method of the heat maps: gradcam, hirescam, attention (transformers), or occlusion (slow, any network)."
    ),
]

AnswerAnyway = Annotated[
    bool, Option("--answer-anyway", help="Give a class to scans that are unlike the training scans, too.")
]
Arch = Annotated[str, Option(help="A torchvision name that fastai knows, or any timm name.")]
Head = Annotated[str, Option(help="octfast, fastai or article.")]
Precision = Annotated[str, Option(help="auto, fp32, bf16 or fp16.")]
Device = Annotated[str, Option(help="auto (a CUDA GPU where there is one, else the CPU), cpu, cuda, cuda:1 or mps.")]
StockWeights = Annotated[
    Path | None,
    Option("--weights", help="File of stock weights, for a slim bundle; by default where torch and timm keep them."),
]
Threads = Annotated[int | None, Option("--workers", min=1, help="Threads; by default one per core, 8 at most.")]
Cache = Annotated[
    Path | None,
    Option("--cache", metavar="DIR", help="The cache folder, else OCTFAST_CACHE, else the system's place for caches."),
]
Json = Annotated[bool, Option("--json", help="Print the results as JSON.")]
