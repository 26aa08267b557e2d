from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser

import pandas as pd


class Text(HTMLParser):
    """The tags and the text of a piece of HTML."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.text, self.sources = [], "", []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for key, value in attrs if key == "src"]

    def handle_data(self, data):
        self.text += f"{data}\n"


def test_a_notebook_shows_a_run(trained):
    shown = Text(trained._repr_html_())
    last = trained.history.iloc[-1]
    counts = trained.scans["split"].value_counts()
    for word in (trained.path.name, "test_resnet", f"{last['valid_loss']:.4g}", *map(str, counts), "history.png"):
        assert word in shown.text, word
    assert "Not a medical device." in shown.text
    (image,) = shown.sources
    assert image.startswith("data:image/png;base64,")


def test_a_notebook_that_is_passed_on_does_not_say_where_the_run_lies(trained, monkeypatch):
    assert str(trained.path.parent) not in Text(trained._repr_html_()).text
    monkeypatch.chdir(trained.path.parent)
    assert str(trained.path.parent) not in Text(trained._repr_html_()).text
    monkeypatch.chdir(trained.path.parents[1])
    assert f"{trained.path.parent.name}/{trained.path.name}" in Text(trained._repr_html_()).text


def test_names_are_escaped(own_run):
    config = own_run.config
    config["arch"] = "<script>alert(1)</script>"
    own_run.write_json("config.json", config)
    scans = pd.read_csv(own_run.path / "scans.csv", dtype=str)
    scans["label"] = scans["label"].replace({"CNV": "<img src=x onerror=alert(1)>"})
    scans.to_csv(own_run.path / "scans.csv", index=False)
    (own_run.figures / "<b>.png").write_bytes(b"")
    shown = Text(own_run._repr_html_())
    assert set(shown.tags) <= {"div", "p", "b", "small", "table", "caption", "tr", "th", "td", "img"}
    assert shown.tags.count("img") == 1 and "<script>" in shown.text and "onerror" in shown.text


def test_a_damaged_run_is_shown_as_far_as_it_goes(own_run):
    (own_run.path / "scans.csv").unlink()
    (own_run.path / "history.csv").write_text("epoch\n")
    shutil.rmtree(own_run.figures)
    text = Text(own_run._repr_html_()).text
    assert "test_resnet" in text and "scans.csv" in text and "history.csv" in text
    (own_run.path / "config.json").write_text(json.dumps([]))
    assert "not a run folder" in Text(own_run._repr_html_()).text
