"""The page of a review and its endpoints: what they take, and what they refuse."""

import pytest

from octfast.deploy.review.session import Review

pytest.importorskip("starlette")
pytest.importorskip("python_multipart")
pytest.importorskip("httpx")
pytest.importorskip("uvicorn")

from starlette.testclient import TestClient

from octfast.deploy.review.app import make_review_app

HERE = "http://127.0.0.1"


@pytest.fixture
def review(own_run):
    return Review(own_run, pictures=False)


@pytest.fixture
def client(review):
    with TestClient(make_review_app(review), base_url=HERE) as client:
        yield client


def test_a_decision_by_the_page_is_kept(client, review):
    listed = client.get("/api/list").json()
    item = listed["items"][0]
    other = next(c for c in listed["classes"] if c != item["label"])
    answer = client.post("/api/decide", json={"id": 0, "decision": "relabel", "new": other})
    assert answer.json()["new"] == other and other in review.file.read_text()
    assert client.get("/api/list").json()["items"][0]["decision"] == "relabel"
    assert client.post("/api/undo").json()["decision"] == ""
    assert client.post("/api/undo").json() == {"id": None}


def test_pictures_come_as_png_and_train_answers_with_figures(client, review):
    for path in ("scan", "heat"):
        found = client.get(f"/api/{path}/0")
        assert found.headers["content-type"] == "image/png" and found.content.startswith(b"\x89PNG")
    refused = client.post("/api/train")
    assert refused.status_code == 422 and "no label was changed" in refused.json()["error"]
    client.post("/api/decide", json={"id": 0, "decision": "relabel", "new": review.rows["suggested"][0]})
    assert set(client.post("/api/train").json()["figures"]) == {"log_loss", "accuracy"}


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b"[" * 3000, b'{"id": "0", "decision": "agree"}', b'{"id": 0}', b"x" * 5000]
)
def test_what_is_no_decision_is_refused_with_a_sentence(client, review, body):
    found = client.post("/api/decide", content=body)
    assert found.status_code in (400, 413) and found.json()["error"] and not review.file.exists()


def test_other_hosts_other_pages_and_other_addresses_are_refused(client):
    assert client.get("/", headers={"host": "evil.example"}).status_code == 403
    elsewhere = {"origin": "http://evil.example"}
    assert client.post("/api/undo", headers=elsewhere).status_code == 403
    for path in ("/api/scan/9999", "/static/none.js", "/static/..%2Fapp.py", "/etc/passwd"):
        assert client.get(path).status_code == 404
    assert client.get("/api/decide").status_code == 405


def test_the_page_loads_nothing_from_elsewhere(client):
    page = client.get("/")
    assert "Not a medical device" in page.text and "default-src 'none'" in page.headers["content-security-policy"]
    for name in ("review.js", "review.css", "app.css", "icon.svg"):
        assert client.get(f"/static/{name}").status_code == 200
