"""Pictures and requests that the tests of the page send."""

import io
import socket
import struct
import zlib

from PIL import Image

from tests.pictures import scan

HERE = "http://127.0.0.1:8731"


def png(picture=None, **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(scan() if picture is None else picture).save(out, "PNG", **options)
    return out.getvalue()


def huge_png(side: int) -> bytes:
    """A PNG whose header claims side x side pixels."""

    def chunk(kind: bytes, held: bytes) -> bytes:
        return struct.pack(">I", len(held)) + kind + held + struct.pack(">I", zlib.crc32(kind + held))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def post(client, content, query="", **headers):
    return client.post(f"/api/predict{query}", content=content, headers=headers)


def refused(response, status, *words):
    assert response.status_code == status, response.text
    found = response.json()
    for word in words:
        assert word in found["error"] + found["hint"]
    assert "\n" not in found["error"] and "Traceback" not in found["error"]
    return found


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]
