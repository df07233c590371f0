"""The twelve experiments run here, one after another, each once; and the report of them, opened in a browser."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from configs import sweep
from sousa_jax import predictions, publish

ROOT = pathlib.Path(__file__).resolve().parents[1]
SECTIONS = (
    "answers", "leaderboard", "pairs", "confusion", "rudiments", "hardest", "groups", "shortcuts", "calibration",
    "curves", "cost", "distillation", "ablations", "settings", "published", "apart",
)  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    """The folder of the twelve runs, `:smoke`, and the command that made them."""
    out = tmp_path_factory.mktemp("twelve")
    sweep_all = ["--sweep=configs/sweep.py", "--local", "--preset=smoke", f"--out={out}"]
    command = [sys.executable, "-m", "sousa_jax.launch", *sweep_all]
    assert subprocess.run(command, cwd=ROOT).returncode == 0
    return out, command


@pytest.fixture(scope="module")
def report(twelve):
    """The report of them."""
    out, _ = twelve
    runs = sorted(str(path.parents[1]) for path in out.glob(f"*/results/{predictions.FILE}"))
    command = [sys.executable, "-m", "sousa_jax.report", *runs, f"--out={out / 'report'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "comparing 12 runs" in done.stdout
    assert "without examples" not in done.stdout, "they were tested on synthetic clips, which are always at hand"
    return out / "report"


@pytest.fixture(scope="module")
def browser(chromium):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])  # CI is root
        yield opened
        opened.close()


@pytest.fixture
def page(browser, report, request):
    """The report, opened from disk in a window of some width and scheme; anything it asks for or complains of fails."""
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    opened, wrong = context.new_page(), []
    opened.on("console", lambda message: wrong.append(message.text))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    address = (report / "report.html").as_uri()
    opened.on("request", lambda asked: asked.url.startswith((address, "data:")) or wrong.append(asked.url))
    opened.goto(address)
    yield opened
    assert wrong == []
    context.close()


def test_all_twelve_run_here_one_after_another_and_only_once(twelve):
    out, command = twelve
    names = sorted(row.name for row in sweep.get_sweep())
    assert sorted(path.parent.parent.name for path in out.glob(f"*/{publish.TEST_METRICS}")) == names
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0
    assert again.stdout.count("finished already") == 12
    assert sorted(json.loads((out / "sweep.json").read_text())) == names


WINDOWS = pytest.mark.parametrize("page", [(1280, "light"), (390, "dark")], indirect=True)


@WINDOWS
def test_every_section_is_there_and_nothing_sticks_out(page):
    assert page.locator("main > section").evaluate_all("all => all.map(one => one.id)") == list(SECTIONS)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for section in SECTIONS:
        assert page.locator(f"#{section}").inner_text().strip()
    assert page.locator("#leaderboard tbody tr").count() == 1 + 12 + 4, "head, runs, three shortcuts, chance"


@WINDOWS
def test_a_screenshot_shows_a_page(page):
    """Paper and ink of the scheme, and pictures: many colours, not the one of an empty page."""
    import io

    from matplotlib import image

    shot = image.imread(io.BytesIO(page.screenshot()))[..., :3]
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert (np.median(shot) < 0.3) == dark
    assert len(np.unique((shot.reshape(-1, 3) * 16).astype(int), axis=0)) > 20
    page.locator("#leaderboard svg").scroll_into_view_if_needed()
    ink = page.locator("#leaderboard svg text").first.evaluate("one => getComputedStyle(one).fill")
    assert (ink == "rgb(236, 236, 242)") == dark, ink


@WINDOWS
def test_a_confusion_is_told_where_one_points(page):
    """The diagonal of the first row: how many of the first rudiment's clips are known."""
    heat = page.locator("#heat")
    heat.scroll_into_view_if_needed()
    for run in (0, 5):
        page.locator("#run").select_option(index=run)
        told = json.loads(page.locator("#confusions").text_content())
        row = list(told["runs"].values())[run][0]
        scale = heat.bounding_box()["width"] / 720
        heat.hover(position={"x": (150 + 7) * scale, "y": (150 + 7) * scale})
        assert page.locator("#tip").inner_text() == f"{told['names'][0]}: {row[0]} of {sum(row)} clips known"
    heat.hover(position={"x": 5, "y": 5})
    assert page.locator("#tip").is_hidden()


@pytest.mark.parametrize("page", [(1280, "light")], indirect=True)
def test_examples_can_be_heard(page):
    players = page.locator("#hardest audio")
    assert players.count() >= 2
    seconds = players.first.evaluate(
        "one => new Promise((done, failed) => { one.onloadedmetadata = () => done(one.duration);"
        " one.onerror = () => failed(one.error.message); one.load(); one.preload = 'metadata'; })"
    )
    assert seconds == pytest.approx(2.5, abs=0.2)


@pytest.mark.parametrize("page", [(1280, "light")], indirect=True)
def test_light_and_dark_can_be_chosen(page):
    paper = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(paper)
    page.locator("#theme").click()
    assert page.evaluate(paper) != before
    page.locator("#theme").click()
    assert page.evaluate(paper) == before
