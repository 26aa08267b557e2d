"""What the web page says of a volume: from an upload to a line of JSON a B-scan, some at a time; nothing is kept."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from octfast.data.volumes.about import About, BScan
from octfast.data.volumes.kinds import kind_in
from octfast.data.volumes.reader import VolumeReader
from octfast.deploy.app.answers import VOLUMES, Answers, Refused
from octfast.deploy.app.together import Together, Upload
from octfast.deploy.predict.aggregated import AggregatedTable
from octfast.deploy.predict.rows import Row, VolumeTable, Wanted
from octfast.errors import DataError
from octfast.model.aggregation import aggregation_of
from octfast.notices import LONG_NOTICE, SYNTHETIC_NOTE

if TYPE_CHECKING:
    from starlette.responses import Response

# B-scans that are read and answered before other pictures have their turn.
STEP = 8
# The longer side of the picture of the fundus that is sent back, in pixels.
_FUNDUS = 768
# What of a name says something of the file: the cube, sizes and the eye, by which Zeiss's .img are read.
_TELLING = re.compile(
    r"(?:Macular|Optic Disc) ?Cube ?\d{3}x\d{3}(?!\d)|(?<![\d.])\d{1,2}(?:\.\d)?mmx\d{1,2}(?:\.\d)?mm(?![A-Za-z])"
    r"|(?<!\d)\d{1,4}x\d{1,5}(?:x\d{1,5})?(?!\d)|(?<![A-Za-z])O[DS](?![A-Za-z])"
)


class Volume:
    """An upload that is read as a volume, some B-scans at a time.

    Its file is held in memory and read there by another process. Where the system has no files in memory (it is no
    Linux), it lies in a folder of its own among the temporary files until it is closed.

    Parameters
    ----------
    answers : the model and its limits.
    content : of the file; or several files that are one volume, see `octfast.deploy.app.together.Together`.
    name : of the file; its ending counts where the first bytes do not tell what it is, and of Zeiss's .img the size.
    pictures : whether to add the B-scans and the picture of the fundus, as data URIs.

    Attributes
    ----------
    frames : how many B-scans were answered.
    error : why it cannot be read on, or None.

    Raises
    ------
    Refused : it is no volume.
    """

    def __init__(self, answers: Answers, content: bytes | Sequence[Upload], name: str = "", pictures: bool = False):
        kind = _kind_of(content, name) if isinstance(content, bytes) else ""
        self.answers, self.pictures = answers, pictures
        self._files = contextlib.ExitStack()
        self._reader = VolumeReader(memory=answers.limits.volume_memory)
        self._table = VolumeTable(answers.rule)
        self._fitted = _fitted_table(answers)
        try:
            if isinstance(content, bytes):
                path = self._files.enter_context(_held(content, kind, name))
                self._found, self._shown = self._reader.read_all(path, kind), lambda s: s.replace(str(path), "the file")
            else:
                together = self._files.enter_context(Together(content, self._reader))
                self._found, self._shown = together.read(), together.shown
        except OSError as e:
            self.close()
            raise Refused(507, f"the volume cannot be held: {e.strerror}", "try a smaller one") from None
        except Refused:
            self.close()
            raise
        self.frames = 0
        self.error: Refused | None = None

    def read(self) -> list[About | BScan]:
        """What comes next in the file; empty at its end, or where it cannot be read on, which `error` says then."""
        found: list[About | BScan] = []
        try:
            for one in islice(self._found, STEP):
                found.append(one)
        except DataError as e:
            self.error = Refused(422, self._shown(e.message), self._shown(e.hint))
        return found

    def answer(self, found: list[About | BScan]) -> list[dict[str, Any]]:
        """A line for what a file says of a volume, and one for each B-scan with what the model says of it."""
        scans = [scan.pixels for scan in found if isinstance(scan, BScan)]
        said = iter(self.answers.predictor.stream(scans, STEP)) if scans else iter(())
        return [self._about(one) if isinstance(one, About) else self._frame(one, next(said)) for one in found]

    def end(self) -> dict[str, Any]:
        """The last line: what comes of each volume, as `octfast predict` has it in the table of volumes.

        Where the model keeps how B-scans are put together, each has `predicted`, `probability`, `probabilities` and
        `abstained` for the whole, `referred` follows these, and `how` says how.

        Raises
        ------
        Refused : no B-scan could be read.
        """
        if self.error is not None:
            if not self.frames:
                raise self.error
            self._add(Row(0, {"volume": None, "eye": "", "path": "", "error": self.error.message}, True, True))
        rows = sorted(self._table.rows(), key=lambda row: row["volume"])
        whole = {row["volume"]: row for row in self._fitted.rows()} if self._fitted else {}
        for row in rows:
            self._answer_whole(row, whole.get(row["volume"]))
        found: dict[str, Any] = {"end": True, "volumes": [{k: v for k, v in r.items() if k != "path"} for r in rows]}
        if self.error is not None:
            found |= {"error": self.error.message, "hint": self.error.hint}
        return found | self._notices()

    def _notices(self) -> dict[str, Any]:
        synthetic = {"synthetic": SYNTHETIC_NOTE} if self.answers.predictor.info.synthetic else {}
        return {"notice": LONG_NOTICE, **synthetic}

    def _add(self, row: Row) -> None:
        self._table.add(row)
        if self._fitted is not None:
            self._fitted.add(row)

    def _answer_whole(self, row: dict[str, Any], fitted: dict[str, Any] | None) -> None:
        """Give a volume the answer that the model's way of putting its B-scans together has, and its referral."""
        if self._fitted is None or fitted is None or fitted["predicted"] is None:
            return
        # Its urgent_score stays that of its most urgent B-scan, which is named beside it.
        row |= {k: fitted[k] for k in ("predicted", "probability", "abstained", "referred") if k in fitted}
        row["probabilities"] = {c: fitted[f"p_{c}"] for c in self._fitted.rule.classes}
        row["how"] = f"The answer for the volume is {self._fitted.how.words}, as was fitted on held-out scans."

    def close(self) -> None:
        """End the process that reads, and let go of the file."""
        self._reader.close()
        self._files.close()

    def _about(self, about: About) -> dict[str, Any]:
        kept = ("volume", "eye", "maker", "device", "axial_um", "lateral_um", "between_um")
        said = {what: getattr(about, what) for what in kept} | {"notes": list(about.notes)}
        if self.pictures:
            said["slo"] = None if about.slo is None else _fundus(about.slo)
        return {"about": said}

    def _place(self, scan: BScan) -> dict[str, Any]:
        place: dict[str, Any] = {"volume": scan.volume, "frame": scan.frame, "eye": scan.eye}
        place |= {"position_mm": scan.position_mm, "line": scan.line}
        if self.pictures and scan.pixels.size:
            place["picture"] = _png(scan.pixels)
        return place

    def _frame(self, scan: BScan, said: Any) -> dict[str, Any]:
        place = self._place(scan)
        self.frames += 1
        if said.error is not None:
            self._add(Row(0, {**place, "path": "", "error": said.error.message}, False, True))
            return {**place, "error": said.error.message, "hint": said.error.hint}
        remarks = [str(r) for r in said.remarks if str(r) not in said.quality]
        found, _ = self.answers.in_json(said, (scan.pixels.shape[1], scan.pixels.shape[0]), remarks)
        p = {f"p_{c}": q for c, q in found["probabilities"].items()}
        self._add(Row(0, {**found, **p, **place, "path": "", "error": ""}, False, True))
        return {**place, **found}


def _kind_of(content: bytes, name: str) -> str:
    """
    Raises
    ------
    Refused : it is no volume, or not the whole of one.
    """
    try:
        kind = kind_in(io.BytesIO(content), name)
    except DataError as e:
        raise Refused(422, e.message, e.hint) from None
    if kind in ("picture", ""):
        what = "the file is a picture" if kind else "unsupported file type"
        raise Refused(415, what, f"send pictures to /api/predict; volumes are {', '.join(VOLUMES)} or TIFF")
    if kind == "heyex":
        hint = "give the .xml and all pictures beside it together"
        raise Refused(422, "an export of HEYEX is without its pictures", hint)
    return kind


def _fitted_table(answers: Answers) -> AggregatedTable | None:
    """Puts the B-scans of a volume together, where the model keeps how."""
    predictor, rule = answers.predictor, answers.rule
    if "volume" not in predictor.unit_levels:
        return None
    how = aggregation_of(predictor.info.calibration, "volume", predictor.classes)
    return AggregatedTable(how, predictor.classes, Wanted(abstain_below=rule.abstain_below), urgent=rule.urgent)


def response_of(
    volume: Volume,
    first: list[dict[str, Any]],
    more: Callable[[], Awaitable[list[dict[str, Any]]]],
    done: Callable[[], None],
) -> Response:
    """The answer to a request about a volume: JSON lines that are sent as they are made.

    A client that takes none of it for as long as an upload may take is left.

    Parameters
    ----------
    first : the lines that are there already.
    more : gives the next lines; none at the end.
    done : called at the end, whatever comes of it.
    """
    from starlette.responses import Response

    seconds = volume.answers.limits.seconds

    class Lines(Response):
        media_type = "application/x-ndjson"

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            gone = asyncio.ensure_future(_gone(receive))
            try:
                headers = [(b"content-type", self.media_type.encode())]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                lines = first
                while lines and not gone.done():
                    for line in lines:
                        body = json.dumps(line).encode() + b"\n"
                        await asyncio.wait_for(
                            send({"type": "http.response.body", "body": body, "more_body": True}), seconds
                        )
                    lines = [] if "end" in lines[-1] else await more()
                await send({"type": "http.response.body", "body": b""})
            except asyncio.TimeoutError:  # it does not read on
                pass
            finally:
                gone.cancel()
                done()

    return Lines()


async def _gone(receive: Any) -> None:
    """Come back when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


@contextlib.contextmanager
def _held(content: bytes, kind: str, name: str) -> Iterator[Path]:
    """A file of this content that another process can read, of a name that tells nothing of who is in it."""
    plain = "-".join(["volume", *_TELLING.findall(Path(name).name)]) + f".{kind}"
    memory: int | None = None
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):
            memory = os.memfd_create("octfast")
    folder: str | None = None
    try:
        if memory is not None:
            os.truncate(memory, len(content))
            with open(memory, "wb", closefd=False) as f:
                f.write(content)
            place = Path(f"/proc/{os.getpid()}/fd/{memory}")
            if kind != "img":
                yield place
                return
        folder = tempfile.mkdtemp(prefix="octfast-")
        path = Path(folder) / plain
        if memory is not None:
            # A link, as the name alone says how many B-scans there are.
            path.symlink_to(place)
        else:
            path.write_bytes(content)
        yield path
    finally:
        if memory is not None:
            os.close(memory)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _png(pixels: np.ndarray) -> str:
    """Without loss, so that a heat map that is asked for later is of the same picture."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def _fundus(pixels: np.ndarray) -> str:
    picture = Image.fromarray(pixels)
    picture.thumbnail((_FUNDUS, _FUNDUS))
    return _png(np.asarray(picture))
