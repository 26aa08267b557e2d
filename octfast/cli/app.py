"""`octfast app`: a trained model as a web page on this machine, with a JSON endpoint beside it."""

from __future__ import annotations

from typing import Annotated

import typer

from octfast.cli import options


def app(
    bundle: options.Bundle,
    host: Annotated[str, typer.Option(help="Address to listen on; the default is reached from this machine alone.")] = (
        "127.0.0.1"
    ),
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port of the page; by default 8731, or a free one if that is taken."),
    ] = None,
    max_mb: Annotated[float, typer.Option("--max-mb", min=0.01, max=1000, help="Largest file, in MB.")] = 20,
    max_megapixels: Annotated[
        float, typer.Option(min=0.01, max=100, help="Largest picture, in millions of pixels.")
    ] = 25,
    max_files: Annotated[int, typer.Option(min=1, max=1000, help="Files that the page takes at once.")] = 50,
    queue: Annotated[
        int,
        typer.Option(
            min=1, max=1000, help="Pictures that may wait at a time; further ones are told to come back later."
        ),
    ] = 32,
    volume_memory: Annotated[
        float | None, typer.Option(min=0.25, help="Memory that reading a volume may take, in GB; by default 4.")
    ] = None,
    urgent: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Classes to mark as urgent; by default those of the model's operating point, else CNV and DME.",
        ),
    ] = None,
    abstain_below: Annotated[
        float | None,
        typer.Option(min=0, max=1, metavar="P", help="Mark scans as unsure whose predicted class has less than this."),
    ] = None,
    answer_anyway: options.AnswerAnyway = False,
    similar: Annotated[
        bool,
        typer.Option(
            "--similar",
            help="Show beside each answer the three scans most like it that the run was trained on, to whoever opens "
            "the page.",
        ),
    ] = False,
    data: options.DataMoved = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            "--host-name",
            metavar="NAME",
            help="Another host name under which the page is reached, such as a proxy's; repeatable.",
        ),
    ] = None,
    root_path: Annotated[
        str, typer.Option(metavar="PATH", help="Path under which a proxy serves the page, such as /octfast.")
    ] = "",
    precision: options.Precision = "auto",
    device: options.Device = "auto",
    weights: options.StockWeights = None,
    open_: Annotated[bool, typer.Option("--open", help="Show the page in your browser.")] = False,
) -> None:
    """Serve a trained model as a web page on this machine. Not a medical device.

    Drop scans on the page and see probabilities, heat maps and an urgent mark; download them as a table. A volume
    (.vol, .e2e, .fda, .fds, .img, DICOM, TIFF of several pages; a DICOM series, or HEYEX's XML and its pictures,
    together) is gone through B-scan by B-scan, beside a curve of their scores; many are larger than the usual 20 MB,
    which --max-mb changes. A scan unlike anything the model was trained on is marked and gets no class, but with
    --answer-anyway. Nothing is sent anywhere else, and nothing is kept on disk. Ctrl-C ends it.

    A model that answers for a whole volume, eye or patient does so here: for the file of a volume, or for pictures that
    are dropped together, with the scans that counted most. A single picture is a unit of one scan, and said to be.

    With --similar each class that is given stands beside the nearest training and validation scans of the run, with
    class and distance; their pictures are then shown to whoever opens the page, so it is off by default. It needs the
    run folder and its scans; the features of these, and of nothing that is dropped on the page, are kept in the cache.

    For programs there is a JSON endpoint with the same limits. A refusal has a status of 400 or more and a JSON with
    `error` and `hint`; 503 says with Retry-After how many seconds to wait.

    Examples:

      octfast app runs/latest --open

      octfast app runs/latest --similar

      curl --data-binary @scan.jpeg http://127.0.0.1:8731/api/predict

      curl -F file=@scan.jpeg 'http://127.0.0.1:8731/api/predict?heatmap=1'

      curl -F file=@eye.vol http://127.0.0.1:8731/api/volume

      curl -F file=@1.png -F file=@2.png http://127.0.0.1:8731/api/unit

      curl http://127.0.0.1:8731/health

      octfast app runs/latest --root-path /octfast --host-name oct.clinic.example
    """
    from octfast.deploy.app.app import need_app

    need_app()
    from octfast.data.volumes.reader import MAX_MEMORY
    from octfast.deploy.app.answers import Limits
    from octfast.deploy.app.app import serve

    serve(
        bundle,
        host,
        port,
        limits=Limits(
            *(round(max_mb * (1 << 20)), round(max_megapixels * 1e6), max_files, queue),
            volume_memory=round(volume_memory * (1 << 30)) if volume_memory else MAX_MEMORY,
        ),
        urgent=None if urgent is None else [c.strip() for c in urgent.split(",") if c.strip()],
        abstain_below=abstain_below,
        answer_anyway=answer_anyway,
        similar=similar,
        data=data,
        allow_hosts=allow_host or (),
        root_path=root_path,
        precision=precision,
        device=device,
        weights=weights,
        open_browser=open_,
        ready=lambda address: print(f"page: {address}   (Ctrl-C ends it)", flush=True),
    )
