"""`python -m sousa_jax.report`: files that stand alone, as a whole or not at all."""

import html.parser
import json
import re

import pandas as pd
import pytest

from benchmarks.report import made_up_clips, make
from sousa_jax import predictions, retention, significance
from sousa_jax.data.sousa import open_clips
from sousa_jax.report import __main__ as program
from sousa_jax.report.page import leaderboard  # noqa: F401 (what a user may import)
from sousa_jax.retention import Network, Size

CLIPS = made_up_clips(120)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [
        make(root / name, CLIPS, skill, i) for i, (name, skill) in enumerate({"a": 0.9, "b<script>$x_$": 0.4}.items())
    ]


@pytest.fixture(scope="module")
def written(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "report"
    program.main([*map(str, runs), f"--out={out}"])
    return out


def call(*args):
    """Exit code and nothing else."""
    with pytest.raises(SystemExit) as stopped:
        program.main([str(arg) for arg in args])
    return stopped.value.code


def test_the_folder_holds_what_is_promised(written):
    names = {path.relative_to(written).as_posix() for path in written.rglob("*.*")}
    figures = {"leaderboard", "rudiments", "confusion", "calibration", "groups", "curves"}
    assert names == {"report.html", "report.md", "leaderboard.csv"} | {
        f"figures/{figure}.{kind}" for figure in figures for kind in ("png", "svg")
    }
    assert not [path for path in written.parent.iterdir() if path.name.startswith(".")]


class Page(html.parser.HTMLParser):
    """What a page would load, which identifiers it has, and whether its elements are closed."""

    def __init__(self, text):
        super().__init__()
        self.loaded, self.ids, self.open, self.scripts = [], [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.scripts += tag == "script"
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.loaded += [attributes[name] for name in ("src", "srcset", "data") if attributes.get(name)]
        self.loaded += [attributes["href"] for name in ("href",) if tag == "link" and name in attributes]


def test_the_page_needs_nothing_else(written):
    text = (written / "report.html").read_text("utf-8")
    page = Page(text)
    assert all(address.startswith("data:") for address in page.loaded), page.loaded
    assert not re.search(r"@import|url\((?!#)", text)
    assert len(page.ids) == len(set(page.ids)), "an identifier of one picture must not be that of another"
    for name in re.findall(r"url\(#([^)]*)\)|href=\"#([^\"]+)\"", text):
        assert "".join(name) in page.ids, name


def test_names_of_runs_are_text_not_markup(written):
    page = Page((written / "report.html").read_text("utf-8"))
    assert page.scripts == 2


def test_the_leaderboard_as_a_table(written):
    table = pd.read_csv(written / "leaderboard.csv")
    assert table["run"].tolist() == ["a", "b<script>$x_$", "(duration alone)", "(soundfont alone)", "(loudness alone)"]
    assert table["balanced_accuracy"].between(table["balanced_accuracy_low"], table["balanced_accuracy_high"]).all()
    assert table["parameters"].iloc[0] == 1_000_000


def test_markdown_has_the_verdict_and_whole_tables(written):
    text = (written / "report.md").read_text("utf-8")
    assert "**a names " in text
    assert "a is better than b<script>" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({line.count("|") for line in block.splitlines()}) == 1, block
    assert re.findall(r"\n\|[^\n]*\n\n\|---", text) == [], "a table's head and rule must not be parted"
    for figure in re.findall(r"\]\((figures/[^)]*)\)", text):
        assert (written / figure).is_file()


def test_an_earlier_report_is_replaced_and_anything_else_is_not(runs, tmp_path, capsys):
    out = tmp_path / "report"
    program.main([str(runs[0]), f"--out={out}"])
    (out / "note.txt").write_text("old")
    program.main([str(runs[1]), f"--out={out}"])
    assert not (out / "note.txt").exists()
    assert "b&lt;script&gt;" in (out / "report.html").read_text()
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter1").write_text("dear")
    assert call(runs[0], f"--out={other}") == 2
    assert "is no report" in capsys.readouterr().err
    assert (other / "chapter1").read_text() == "dear"
    assert {path.name for path in tmp_path.iterdir()} == {"report", "thesis"}


def test_nothing_to_compare_leaves_nothing(tmp_path, capsys):
    (tmp_path / "unfinished").mkdir()
    assert call(tmp_path / "unfinished", f"--out={tmp_path / 'report'}") == 2
    errors = capsys.readouterr().err
    assert "has no predictions.parquet" in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "report").exists()


def test_a_failure_on_the_way_keeps_the_earlier_report(runs, tmp_path, monkeypatch):
    out = tmp_path / "report"
    program.main([str(runs[0]), f"--out={out}"])
    before = (out / "report.html").read_text()
    monkeypatch.setattr("sousa_jax.report.page.leaderboard", lambda findings: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        program.main([str(runs[1]), f"--out={out}"])
    assert (out / "report.html").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_runs_that_stand_apart_are_told_on_the_page(runs, tmp_path, capsys):
    program.main([*map(str, runs), str(tmp_path / "gone"), f"--out={tmp_path / 'report'}"])
    assert "not compared: gone: " in capsys.readouterr().out
    for name in ("report.html", "report.md"):
        assert "does not exist" in (tmp_path / "report" / name).read_text()


def test_a_student_stands_beside_its_teachers(runs, tmp_path):
    """What its run wrote of them, a table with a row each."""
    size = Size(1_500_000, 2e9, 12.5)
    networks = [
        Network(role, folder.name, predictions.read(folder), size)
        for role, folder in zip((retention.STUDENT, retention.TOGETHER), runs[::-1], strict=True)
    ]
    found = retention.summarize(networks, significance.pairs({n.role: n.answers for n in networks}))
    student = make(tmp_path / "student", CLIPS, 0.4, 1)
    (student / "results" / retention.JSON).write_text(json.dumps(found))
    program.main([str(student), str(runs[0]), f"--out={tmp_path / 'report'}"])
    kept = found["retention"]["all windows"]
    for name in ("report.html", "report.md"):
        text = (tmp_path / "report" / name).read_text()
        assert "It keeps {:.3f} ({:.3f} … {:.3f})".format(*kept) in text
        assert "teachers together is better than student" in text
        assert "1.0 times fewer parameters" in text
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("<td>1.500</td><td>2.000</td><td>12.5</td>") == 2
    assert "No run here had teachers" not in page


def test_real_clips_can_be_heard(sousa_mini, tmp_path):
    """A pair of players for each of the hardest pairs, from the clips that the run was tested on."""
    table = open_clips(str(sousa_mini), "test").table
    run = make(tmp_path / "run", table, 0.6, **{"data.path": "/no/longer/there"})
    (run / "results" / "test_metrics.json").unlink()
    program.main([str(run), f"--out={tmp_path / 'silent'}"])
    assert "Nothing to hear" in (tmp_path / "silent" / "report.html").read_text()
    program.main([str(run), f"--out={tmp_path / 'report'}", f"--data={sousa_mini}"])
    page = Page((tmp_path / "report" / "report.html").read_text())
    sounds = [address for address in page.loaded if address.startswith("data:audio/mpeg;base64,")]
    assert 8 <= len(sounds) <= 16


def test_other_data_than_the_run_s_are_not_played(sousa_mini, runs, tmp_path, capsys):
    program.main([str(runs[0]), f"--out={tmp_path / 'report'}", f"--data={sousa_mini}"])
    assert "is not what a was tested on" in capsys.readouterr().out
