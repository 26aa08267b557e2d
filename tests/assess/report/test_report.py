from __future__ import annotations

import base64
import io
import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from octfast.assess import predictions
from octfast.assess.evaluate import evaluate_run
from octfast.assess.metrics.costs import kermany_costs
from octfast.assess.report.model_card import model_card
from octfast.assess.report.provenance import cautions, run_provenance, train_command, training_rows
from octfast.assess.report.report import CARD, REPORT, write_report
from octfast.assess.report.tables import cell
from octfast.data.loaders import oct_transforms
from octfast.errors import BundleError, OctfastError, UsageError
from octfast.model.bundle.write import update_info
from octfast.notices import SYNTHETIC_NOTE
from octfast.run.folder import open_run

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """What a page holds: its elements with their attributes and text, and whether all were closed in order."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[tuple[str, int]] = []
        self.texts: list[list[str]] = []
        self.misplaced: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag in ("td", "th", "li", "p", "tr"):
            self.handle_data(" ")
        self.elements.append((tag, dict(attrs)))
        self.texts.append([])
        if tag not in VOID:
            self.open.append((tag, len(self.elements) - 1))

    def handle_endtag(self, tag):
        if not self.open or self.open[-1][0] != tag:
            self.misplaced.append(tag)
            return
        self.open.pop()

    def handle_data(self, data):
        for _, i in self.open:
            self.texts[i].append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]

    def words(self, tag: str = "body") -> list[str]:
        return [
            " ".join("".join(t).split()) for (name, _), t in zip(self.elements, self.texts, strict=True) if name == tag
        ]

    def section(self, name: str) -> str:
        at = next(i for i, (tag, attrs) in enumerate(self.elements) if tag == "section" and attrs["id"] == name)
        return " ".join("".join(self.texts[at]).split())


def page_of(run, split=None, **asked) -> Page:
    asked = {"resamples": 200, **asked}
    return Page(write_report(run, split, **asked).read_text(encoding="utf-8"))


def renamed(run, names: dict[str, str], files: dict[str, str] | None = None):
    """Give the classes and some files of a run other names, wherever it names them."""
    for file in run.path.glob("*.csv"):
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
        for column in ("label", "predicted"):
            if column in table:
                table[column] = table[column].map(lambda c: names.get(c, c))
        if "path" in table:
            table["path"] = table["path"].map(lambda p: (files or {}).get(p, p))
        table.rename(columns={f"p_{a}": f"p_{b}" for a, b in names.items()}).to_csv(file, index=False)
    info = json.loads((run.bundle / "octfast.json").read_text(encoding="utf-8"))
    info["classes"] = [names.get(c, c) for c in info["classes"]]
    (run.bundle / "octfast.json").write_text(json.dumps(info), encoding="utf-8")
    return run


def of_people(run):
    """The run, its model taken for one of scans of people, whose report says more than one of phantoms."""
    update_info(run.bundle, synthetic=False)
    return run


@pytest.fixture
def own_run(own_run):
    return of_people(own_run)


@pytest.fixture(scope="module")
def written(trained, tmp_path_factory):
    """A report of the test split of the trained run, with its run."""
    run = of_people(open_run(shutil.copytree(trained.path, tmp_path_factory.mktemp("report") / "run")))
    file = write_report(run, "test", resamples=200)
    return run, file, Page(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def judged(written):
    """What is known of the run, and its figures on test."""
    return run_provenance(written[0]), evaluate_run(written[0], "test", resamples=200)


def test_one_file_that_asks_nothing_of_the_network(written):
    run, file, page = written
    assert file == run.path / REPORT and file.stat().st_size < 5_000_000
    assert not page.misplaced and not page.open
    assert not page.all("script") and not page.all("iframe") and not page.all("object")
    for attrs in (attrs for _, attrs in page.elements):
        for name, value in attrs.items():
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "action"):
                assert value.startswith(("#", "data:")), value
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "url(" not in file.read_text(encoding="utf-8") and "@import" not in file.read_text(encoding="utf-8")
    assert not [p.name for p in run.path.iterdir() if p.name.startswith(".")]


def test_a_page_that_all_can_read(written):
    _, _, page = written
    assert page.all("html")[0]["lang"] == "en-GB" and page.all("meta")[0]["charset"] == "utf-8"
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(set(ids)) == len(ids)
    links = [a["href"] for a in page.all("a")]
    assert links[0] == "#summary" and {href[1:] for href in links} <= set(ids)
    assert {"main", "header", "footer", "nav"} <= {tag for tag, _ in page.elements}
    tables = [i for i, (tag, _) in enumerate(page.elements) if tag == "table"]
    assert len(tables) >= 8 and all(page.elements[i + 1][0] == "caption" and "".join(page.texts[i + 1]) for i in tables)
    assert all("scope" in attrs for attrs in page.all("th"))


def test_every_picture_is_in_it_and_described(written):
    _, _, page = written
    pictures = page.all("img")
    assert len(pictures) >= 10
    for attrs in pictures:
        kind, content = re.fullmatch(r"data:image/([a-z+]+);base64,(.*)", attrs["src"]).groups()
        content = base64.b64decode(content, validate=True)
        assert len(attrs["alt"]) > 15
        if kind == "svg+xml":
            assert b"</svg>" in content[-20:] and b"<script" not in content
        else:
            with Image.open(io.BytesIO(content)) as picture:
                assert picture.size == (int(attrs["width"]), int(attrs["height"]))


def test_its_figures_are_those_of_the_evaluation(written):
    run, _, page = written
    found = evaluate_run(run, "test", resamples=200)
    row = found.overall.set_index("metric").loc["accuracy"]
    shown = cell("accuracy", row["value"], row["low"], row["high"])
    summary = page.section("summary")
    counts = found.counts
    assert shown.text in summary and shown.interval in summary
    assert f"{counts['right']} of {counts['scans']} scans right" in summary
    assert f"missed {counts['missed_urgent']['argmax']}" in summary
    cells = [int(t) for t in page.words("span") if re.fullmatch(r"\d+", t)]
    assert sum(cells) == counts["scans"]
    kept = json.loads((run.path / "metrics-test.json").read_text(encoding="utf-8"))
    assert kept["right"] == counts["right"]
    for row in found.per_class[found.per_class["metric"] == "sensitivity"].itertuples():
        assert cell("sensitivity", row.value, row.low, row.high).text in page.section("results")


def test_it_says_what_it_is_at_both_ends(written):
    _, _, page = written
    words = page.words()[0]
    assert words.startswith("Skip to the results Not a medical device.")
    assert "Not a medical device." in page.words("footer")[0]
    assert SYNTHETIC_NOTE not in words


def test_a_run_on_phantoms_says_so_and_is_compared_with_nothing(own_run):
    info = json.loads((own_run.bundle / "octfast.json").read_text(encoding="utf-8"))
    (own_run.bundle / "octfast.json").write_text(json.dumps({**info, "synthetic": True}), encoding="utf-8")
    page = page_of(own_run, "test", heatmaps=False)
    assert SYNTHETIC_NOTE in page.section("summary") and SYNTHETIC_NOTE in page.words("footer")[0]
    assert "Kermany et al." not in page.section("referral")
    assert SYNTHETIC_NOTE in (own_run.path / CARD).read_text(encoding="utf-8").replace("\\", "")


def test_the_largest_losses_stand_beside_similar_scans_where_asked(own_run):
    page = page_of(own_run, "test", k=2, heatmaps=False, similar=True)
    shown = [a["alt"] for a in page.all("img") if "most like it" in str(a["alt"])]
    # A dark page turns curves into their negatives, and must not do so with scans.
    before = (own_run.path / REPORT).read_text(encoding="utf-8").split("{ filter: invert")[:-1]
    assert [re.split(r"[{}]|\*/", each[-500:])[-1].strip() for each in before] == [".plot:not(.scans) img"]
    assert any("scans" in str(a.get("class")).split() for a in page.all("figure"))
    assert len(shown) == 1 and str(shown[0]).startswith("2 scans") and "--similar" in page.section("repeat")
    own_run.write_json("config.json", own_run.config | {"head": "fastai"})
    assert "No similar scans" in page_of(open_run(own_run.path), "test", k=2, heatmaps=False, similar=True).section(
        "errors"
    )
    assert "Scans like these" not in page_of(own_run, "test", k=2, heatmaps=False).section("errors")


def test_beside_volumes_similar_scans_are_said_to_have_the_labels_of_theirs(of_volumes, tmp_path):
    run = open_run(shutil.copytree(of_volumes.path, tmp_path / "run"))
    assert "A label is that of the whole volume" in page_of(run, k=2, heatmaps=False, similar=True).section("errors")


def test_published_figures_stand_beside_the_four_classes(written):
    _, _, page = written
    words = page.section("referral")
    assert "96.6% 95.3 to 97.6" in words and "another test set" in words and "six experts" in words


def test_the_model_card_has_the_sections_of_mitchell_and_the_figures(written):
    run, _, _ = written
    text = (run.path / CARD).read_text(encoding="utf-8")
    heads = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert heads == [
        *("Model details", "Intended use", "Factors", "Metrics", "Evaluation data", "Training data"),
        *("Quantitative analyses", "Ethical considerations", "Caveats and recommendations"),
    ]
    row = evaluate_run(run, "test", resamples=200).overall.set_index("metric").loc["accuracy"]
    assert cell("accuracy", row["value"]).text in text
    assert text.count("**Not a medical device.**") == 2 and not text.startswith("---")
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len(tables) > 20 and all(line.endswith("|") for line in tables)


HOSTILE = {
    "CNV": "<script>alert(1)</script>",
    "DME": '"><img src=x onerror=alert(1)>',
    "DRUSEN": "$x^2$ & {{ 7 * 7 }} \\alpha \u202etxt",
    "NORMAL": "normal | eyes " + "long" * 15,
}


def test_hostile_names_stay_text(own_run):
    first = pd.read_csv(own_run.predictions_file("test")).sort_values("loss")["path"].iloc[-1]
    evil = "CNV/</title><svg onload=alert(1)>\"'`-${1}.jpeg"
    page = page_of(renamed(own_run, HOSTILE, {first: evil}), "test", urgent=[HOSTILE["CNV"]], heatmaps=False)
    assert not page.misplaced and not page.all("script") and not page.all("svg")
    assert all(set(a) <= {"src", "alt", "width", "height"} and a["src"] != "x" for a in page.all("img"))
    words = page.words()[0]
    assert "\u202e" not in words
    assert "<script>alert(1)</script>" in words and "{{ 7 * 7 }}" in words and "<svg onload=alert(1)>" in words
    card = (own_run.path / CARD).read_text(encoding="utf-8")
    assert "<script" not in card.replace("\\<", "") and r"\<script\>" in card
    rows = [line for line in card.splitlines() if "normal" in line and line.startswith("|")]
    assert rows and all(r"normal \| eyes" in line for line in rows)


@settings(max_examples=25)
@given(st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=30), min_size=2, max_size=2))
def test_any_text_stands_in_a_model_card_as_it_is(judged, names):
    markdown_it = pytest.importorskip("markdown_it")
    known, found = judged
    card = model_card(known, "test", found, names, [])
    rendered = Page(markdown_it.MarkdownIt().enable("table").render(card))
    items = rendered.words("li")
    assert not rendered.misplaced and items[:2] == [" ".join(n.split()) for n in names]
    assert {tag for tag, _ in rendered.elements} <= {
        *("h1", "h2", "p", "strong", "code", "pre", "ul", "li"),
        *("table", "thead", "tbody", "tr", "th", "td"),
    }


def test_without_test_scans_validation_is_judged_and_that_is_said(own_run):
    scans = pd.read_csv(own_run.path / "scans.csv", dtype=str).query("split != 'test'")
    scans.to_csv(own_run.path / "scans.csv", index=False)
    own_run.predictions_file("test").unlink()
    page = page_of(own_run, heatmaps=False)
    assert "so the figures are too good" in page.section("summary")
    assert "There is no test split." in page.section("data")
    assert "validation alone" in page.section("claim")


def test_the_training_scans_are_judged_with_a_caution(own_run):
    page = page_of(own_run, "train", heatmaps=False)
    assert "trained on: the figures say nothing of new scans" in page.section("summary")


def without_history(run):
    (run.path / "history.csv").unlink()
    return "training", "There is no history to show"


def damaged_history(run):
    (run.path / "history.csv").write_text("epoch,train_loss,valid_loss\n1,x,y\n")
    return "training", "The history cannot be drawn"


def without_scans_table(run):
    (run.path / "scans.csv").unlink()
    return "data", "The scans of this run are not known"


def damaged_left_out(run):
    (run.path / "left-out.csv").write_text("nothing of the kind\n")
    return "data", "Files were left out, but which is not known"


def without_scans(run):
    for file in (*run.path.glob("predictions-*.csv"), run.path / "scans.csv"):
        table = pd.read_csv(file, dtype=str)
        table.assign(path="/nowhere/" + table["path"].str.replace("/", "_")).to_csv(file, index=False)
    return "errors", "no such file"


def without_notes(run):
    config = {k: v for k, v in run.config.items() if k in ("data", "classes")}
    run.write_json("config.json", config)
    return "data", "Nothing was found, and no warning was given"


@pytest.mark.parametrize(
    "damage",
    [without_history, damaged_history, without_scans_table, damaged_left_out, without_scans, without_notes],
    ids=lambda f: f.__name__,
)
def test_what_is_missing_is_said_in_its_place(own_run, damage):
    section, words = damage(own_run)
    assert words in page_of(own_run, "test").section(section)


def test_a_validation_split_too_small_to_calibrate_on_says_why(written):
    _, _, page = written
    assert "not calibrated: too few held-out scans to calibrate on" in page.section("calibration")


def test_a_temperature_is_shown_with_its_reliability_before_and_after(own_run):
    info = json.loads((own_run.bundle / "octfast.json").read_text(encoding="utf-8"))
    info |= {"temperature": 1.7, "calibration": {"split": "valid", "scans": 300, "patients": 80}}
    info["calibration"]["conformal"] = {"coverage": 0.9, "threshold": 0.2}
    (own_run.bundle / "octfast.json").write_text(json.dumps(info), encoding="utf-8")
    words = page_of(own_run, "test", heatmaps=False).section("calibration")
    assert "a temperature of 1.7, fitted on 300 held-out scans of 80 patients" in words
    assert "before after" in words and "holds the true class in 90% of cases" in words


def test_classes_without_an_urgent_one(own_run):
    page = page_of(renamed(own_run, {"CNV": "A", "DME": "B", "DRUSEN": "C", "NORMAL": "D"}), "test", heatmaps=False)
    assert "No class is named as urgent" in page.section("referral")
    assert "Balanced accuracy" in page.section("summary")
    named = page_of(own_run, "test", urgent=["A"], heatmaps=False)
    assert "Urgent: A." in named.section("referral") and "not for these classes" in named.section("referral")


def test_subgroups_by_a_column(own_run):
    for name in ("scans.csv", "predictions-test.csv", "predictions-valid.csv"):
        table = pd.read_csv(own_run.path / name, dtype=str)
        table["device"] = ["<b>old</b>" if i % 3 else "new" for i in range(len(table))]
        table.to_csv(own_run.path / name, index=False)
    page = page_of(own_run, "test", by=["device"], heatmaps=False)
    words = page.section("groups")
    assert "By device" in words and "<b>old</b>" in words and "Caution: device new: only" in words
    assert not page.all("b")
    assert "device" in (own_run.path / CARD).read_text(encoding="utf-8")
    with pytest.raises(UsageError, match="no such column"):
        write_report(own_run, "test", by=["devise"])


def test_heat_maps_are_beside_the_scans_or_it_is_said_why_not(written, own_run):
    _, _, page = written
    assert any(a["alt"].startswith("Heat map over the scan of") for a in page.all("img"))
    assert "not evidence of disease location" in page.section("errors")
    (own_run.bundle / "model.safetensors").write_bytes(b"damaged")
    words = page_of(own_run, "test").section("errors")
    assert "There are no heat maps: cannot read" in words
    assert "Heat maps were not asked for." in page_of(own_run, "test", heatmaps=False).section("errors")


def test_the_model_runs_only_where_there_are_no_predictions(own_run, monkeypatch):
    ran = []
    predict = predictions.predict_scans
    monkeypatch.setattr(predictions, "predict_scans", lambda *a, **k: ran.append(1) or predict(*a, **k))
    page_of(own_run, "test", heatmaps=False)
    assert not ran
    own_run.predictions_file("test").unlink()
    page_of(own_run, "test", heatmaps=False)
    assert len(ran) == 1


def test_an_older_report_is_replaced_and_a_failed_one_leaves_it(own_run):
    (own_run.path / REPORT).write_text("older")
    with pytest.raises(UsageError):
        write_report(own_run, "test", urgent=["nobody"])
    assert (own_run.path / REPORT).read_text() == "older"
    write_report(own_run, "test", heatmaps=False, resamples=100)
    assert (own_run.path / REPORT).read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_report_that_cannot_be_written(own_run):
    (own_run.path / REPORT).mkdir()
    with pytest.raises(OctfastError, match=r"cannot write .*report\.html"):
        write_report(own_run, "test", heatmaps=False, resamples=100)


def test_a_run_whose_training_has_not_ended(own_run):
    shutil.rmtree(own_run.path / "model")
    with pytest.raises(BundleError, match="training has not ended"):
        write_report(own_run)


def test_the_command_that_repeats_a_run_is_one_that_octfast_takes(own_run):
    from octfast.cli.train import train

    config = {**own_run.config, "drop_leaks": True, "valid": "0.25", "patient_column": "my column", "fold": None}
    own_run.write_json("config.json", config)
    words = shlex.split(train_command(run_provenance(own_run)))
    assert words[:3] == ["octfast", "train", Path(config["data"]["root"]).name]
    app = typer.Typer()
    app.command()(train)
    command = typer.main.get_command(app)
    context = command.make_context("train", words[2:])
    asked = context.params
    for name in ("seed", "epochs", "arch", "size", "weights", "valid", "views", "drop_leaks", "patient_column"):
        assert asked[name] == config[name], name
    # Into a new folder, which the second line reads.
    assert str(asked["out"]) == f"runs/{own_run.path.name}-again"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"views": 1, "augment": "default"}, "none: the scans as they are, read once"),
        ({"views": 4}, "default: mirroring, rotation to 8°, zoom to 1.15, brightness and contrast by 0.15; 4 readings"),
        ({"views": 4, "augment": "strong"}, "strong: mirroring, rotation to 15°, zoom to 1.4"),
        ({"views": 0, "augment": "light"}, "light: mirroring, rotation to 3°"),
        ({"views": 1, "augment": "light", "unfreeze": "all"}, "by 0.05; drawn anew each epoch"),
        ({"views": 0, "augment": "none"}, "none"),
    ],
    ids=str,
)
def test_the_augmentation_that_was_used_is_named(own_run, fields, said):
    known = run_provenance(own_run)
    known.config.pop("augment")
    known.config.update(fields)
    (row,) = [value for name, value in training_rows(known) if name == "augmentation"]
    assert row.startswith(said) or row.endswith(said), row
    if said != "none" and not said.startswith("none:"):
        strength = oct_transforms.__globals__["_STRENGTH"][fields.get("augment", "default")]
        assert f"rotation to {strength['max_rotate']:g}°, zoom to {strength['max_zoom']:g}" in row


def test_no_folder_of_this_machine_stands_in_what_is_passed_on(own_run):
    run = own_run
    root = run.config["data"]["root"]
    notes = [
        f"left out, unreadable: {root}/train/CNV/a.jpeg (cut short)",
        "weights of /home/alice/secret/w.pth, train/valid",
    ]
    config = {**run.config, "weights": "/home/alice/secret/w.pth", "splits": "C:\\Users\\alice\\s.csv", "notes": notes}
    run.write_json("config.json", config)
    shutil.move(run.predictions_file("valid"), run.path / "away.csv")
    (run.bundle / "model.safetensors").write_bytes(b"damaged")
    page = write_report(run, "test", resamples=100).read_text(encoding="utf-8")
    kept = [(run.path / name).read_text(encoding="utf-8") for name in (CARD, "metrics-test.json")]
    for text in (page, *kept):
        for place in (root, str(run.path), str(run.path.parent), "alice", "secret"):
            assert place not in text.replace("\\", ""), place
    words = Page(page)
    assert "left out, unreadable: train/CNV/a.jpeg" in words.section("data") and "train/valid" in words.section("data")
    assert "--weights w.pth" in words.section("repeat") and "--splits s.csv" in words.section("repeat")


def test_the_page_says_with_what_it_was_asked(own_run, tmp_path):
    costs = kermany_costs(["CNV", "DME", "DRUSEN", "NORMAL"], ["CNV", "DME"]) * 2
    page = page_of(
        own_run,
        "test",
        prevalence={"CNV": 0.02},
        costs=costs,
        sensitivity=0.9,
        urgent=["CNV", "DME"],
        method="hirescam",
    )
    said = page.section("repeat")
    for words in ("--prevalence CNV=0.02", "--costs", "--sensitivity 0.9", "--urgent CNV,DME", "--resamples 200"):
        assert words in said, words
    assert "HiResCAM" in page.section("errors") and "--method hirescam" in said
    # Twice their costs is no figure to stand above theirs.
    own = next(row for row in page.words("tr") if row.startswith("this run"))
    assert "–" in own.split() and "cannot be compared" in page.section("referral")


def test_the_prevalence_of_every_class_is_said_on_the_page_and_the_card(own_run):
    page = page_of(own_run, "test", prevalence={"CNV": 0.02, "DME": 0.04}, heatmaps=False)
    words = "PPV and NPV at that prevalence assume CNV 2%, DME 4%. Not named, so sharing the rest"
    assert words in page.section("results") and words in (own_run.path / CARD).read_text(encoding="utf-8")
    assert page.section("results").count(words) == 1


def test_the_two_lines_of_how_to_repeat_it_fit_together(written):
    _, _, page = written
    (made,) = re.findall(r"octfast train .*? --out (\S+)", page.section("repeat"))
    assert f"octfast report {made} --split" in page.section("repeat")


def test_the_counts_of_the_checklist_make_44(written):
    _, _, page = written
    words = re.search(
        r"Of 44, (\d+) are answered, (\d+) in part, (\d+) are not(?:, and (\d+) do(?:es)? not apply)?",
        page.section("claim"),
    )
    assert sum(int(n) for n in words.groups() if n) == 44


def test_what_shares_patients_is_said_first(own_run):
    scans = pd.read_csv(own_run.path / "scans.csv", dtype=str)
    scans.loc[scans["split"] == "train", "patient"] = scans.loc[scans["split"] == "test", "patient"].iloc[0]
    scans.to_csv(own_run.path / "scans.csv", index=False)
    known = run_provenance(own_run)
    assert cautions(known, "test", 1000)[0].startswith("1 patient stands in more than one split")
    page = page_of(own_run, "test", heatmaps=False)
    assert "the splits are not disjoint" in page.section("claim")


def test_a_release_of_oct2017_is_named_though_validation_was_drawn_anew(own_run):
    counts = {"CNV": 37213, "DME": 11356, "DRUSEN": 8624, "NORMAL": 26323}
    rows = [(c, "train" if i % 10 else "valid") for c, n in counts.items() for i in range(n)]
    rows += [(c, "test") for c in counts for _ in range(242)]
    scans = pd.DataFrame(rows, columns=["label", "split"])
    scans["path"] = scans["label"] + "-" + scans.index.astype(str) + "-1.jpeg"
    scans["patient"] = scans.index.astype(str)
    scans.to_csv(own_run.path / "scans.csv", index=False)
    known = run_provenance(own_run)
    assert known.release.startswith("nearly OCT2017, the copy on Kaggle") and known.named


def test_files_that_were_left_out_are_listed(own_run):
    root = own_run.root
    pd.DataFrame(
        {"path": ["train/CNV/broken.jpeg"], "label": "CNV", "patient": "1", "split": "train", "reason": "truncated"}
    ).to_csv(own_run.path / "left-out.csv", index=False)
    words = page_of(own_run, "test", heatmaps=False).section("data")
    assert "1 file left out of all splits" in words and "broken.jpeg" in words and "truncated" in words
    assert str(root) not in words


def test_octfast_report(octfast, own_run):
    ended = octfast("report", own_run.path, "--split", "valid", "--no-heatmaps", "--resamples", 100)
    assert ended.code == 0, ended.err
    assert ended.out.split() == [str(own_run.path / REPORT), str(own_run.path / CARD)]
    told = octfast("report", own_run.path, "--no-heatmaps", "--resamples", 100, "--json", "--prevalence", "CNV=.02")
    assert json.loads(told.out) == {"report": str(own_run.path / REPORT), "model_card": str(own_run.path / CARD)}
    text = Path(own_run.path / REPORT).read_text(encoding="utf-8")
    assert "prevalence that was given" in text and "PPV at that prevalence" in text
    assert octfast("report", own_run.path, "--no-heatmaps", "--resamples", 100, "--urgent", "none").code == 0
    assert "No class is named as urgent" in Path(own_run.path / REPORT).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "words, said",
    [
        (["--split", "tset"], "tset"),
        (["--by", "device"], "device"),
        (["--urgent", "CNW"], "CNW"),
        (["--prevalence", "CNV=2"], "CNV"),
        (["--method", "gradcan"], "gradcan"),
    ],
)
def test_what_octfast_report_refuses(octfast, own_run, words, said):
    ended = octfast("report", own_run.path, *words)
    assert ended.code == 2 and said in ended.err
    assert not (own_run.path / REPORT).exists()


def test_the_patients_that_a_model_of_scans_missed_stand_with_their_scans_and_a_strip(own_run):
    kept = {"rule": "mean_probability", "k": None, "temperature": 1.0, "urgent": []}
    update_info(own_run.bundle, calibration={"units": {"patient": kept}})
    table = own_run.predictions("test")
    classes = [c.removeprefix("p_") for c in table if c.startswith("p_")]
    mean = table.groupby("patient")[[f"p_{c}" for c in classes]].mean()
    given = mean.idxmax(axis=1).str.removeprefix("p_")
    labels = table.groupby("patient")["label"].first()
    # A class of which a patient with several scans is missed.
    several = table.groupby("patient").size() > 1
    urgent = [str(labels[(given != labels) & several].iloc[0])]
    missed = labels.index[labels.isin(urgent) & ~given.isin(urgent)]
    page = page_of(own_run, "test", heatmaps=True, urgent=urgent)
    errors = page.section("errors")
    assert f"Urgent patients that were missed {len(missed)} urgent patient" in errors
    assert f"of {labels.isin(urgent).sum()}" in errors and "the mean of its scans' probabilities" in errors
    heads = [words for words in page.words("h4")]
    assert len(heads) == min(6, len(missed)) and all(f"label {urgent[0]}, taken for" in words for words in heads)
    who = next(w.split(":")[0] for w in heads if several[w.split(":")[0]])
    own = table[table["patient"] == who].sort_values(f"p_{urgent[0]}", ascending=False).head(3)
    at = [errors.index(Path(path).name, errors.index(f"{who}: label")) for path in own["path"]]
    assert at == sorted(at) and f"counts{1 / (table['patient'] == who).sum():.0%}" in errors
    strips = [img for img in page.all("img") if str(img["alt"]).startswith("How much each of")]
    assert len(strips) == sum(several[w.split(":")[0]] for w in heads)
    assert any(f"of {who} counts" in str(img["alt"]) for img in strips)
    assert "what raised the score of the label of its patient" in errors and not page.misplaced


def test_what_was_fitted_stands_beside_the_mean_of_the_scans(own_run):
    kept = {"rule": "most_urgent", "k": None, "temperature": 1.5, "urgent": ["CNV", "DME"]}
    update_info(own_run.bundle, calibration={"units": {"patient": kept}})
    page = page_of(own_run, "test", heatmaps=False)
    paired = evaluate_run(own_run, "test", resamples=200).paired.set_index("metric")
    said = page.section("groups")
    assert "less the mean of their probabilities" in said and "patients, fitted" in said
    for row in paired.itertuples():
        # Where every resample is alike, as of an accuracy that is the same, there is no interval.
        interval = "" if row.low != row.low else f"{row.low:+.3f} to {row.high:+.3f}"
        assert f"{row.difference:+.3f}" in said and interval in said
    assert paired["low"].notna().any()
