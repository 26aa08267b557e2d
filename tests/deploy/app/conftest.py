import threading
from dataclasses import replace

import pytest

from octfast.deploy.app.answers import Answers, Limits
from octfast.deploy.app.app import bind, make_app, url
from octfast.deploy.predictor import load
from tests.deploy.app.uploads import HERE, free_port


@pytest.fixture(scope="module")
def predictor(trained):
    found = load(trained.bundle, precision="fp32")
    found.info = replace(found.info, synthetic=True)
    return found


@pytest.fixture(scope="module")
def client(predictor):
    testclient = pytest.importorskip("starlette.testclient")
    pytest.importorskip("python_multipart")
    limits = Limits(max_bytes=1 << 20, max_pixels=2_000_000, seconds=5)
    with testclient.TestClient(make_app(Answers(predictor, limits), ["oct.clinic"]), base_url=HERE) as client:
        yield client


@pytest.fixture
def server(predictor):
    """The app as uvicorn serves it, with room for three pictures."""
    yield from _served(predictor, Limits(queue=3, seconds=1))


@pytest.fixture
def slow_server(predictor):
    """The same, with the time for an upload that is usual."""
    yield from _served(predictor, Limits(queue=3))


def _served(predictor, limits):
    uvicorn = pytest.importorskip("uvicorn")
    listener = bind("127.0.0.1", free_port())
    running = uvicorn.Server(
        uvicorn.Config(make_app(Answers(predictor, limits)), http="h11", ws="none", log_level="error")
    )
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield url(listener)
    running.should_exit = True
    thread.join(10)
    listener.close()
