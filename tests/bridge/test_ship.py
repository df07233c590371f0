"""The whole way to a package: the smallest variant that is good enough is taken, and nothing is half made."""

import json

import pytest
from test_train import finished_run

from bridge import ship
from bridge.ship import Row
from sousa_jax.errors import InputError

ROWS = [
    Row("fp32", 20.0, 0.80, 0.0, 1.0, []),
    Row("fp16", 10.0, 0.80, 0.0, 1.0, []),
    Row("int8", 5.0, 0.795, 0.5, 0.99, []),
    Row("w8a8", 5.1, 0.80, 0.0, 0.99, []),
    Row("palette6", 4.0, 0.78, 2.0, 0.96, ["96.00% of the clips get the same name, at least 98.0%"]),
    Row("palette4", 3.0, 0.80, 0.0, 0.90, ["90.00% of the clips get the same name, at least 98.0%"]),
]


@pytest.mark.parametrize(("lose", "taken"), [(1.0, "int8"), (0.4, "w8a8"), (50.0, "int8")])
def test_the_smallest_that_is_good_enough_is_taken(lose, taken):
    assert ship.choose(ROWS, lose) == taken


def test_nothing_is_taken_rather_than_something_bad():
    with pytest.raises(InputError, match=r"no variant loses at most 0\.1 points within the limits: int8 loses 0\.5"):
        ship.choose(ROWS[2:3], 0.1)


def test_the_table_names_what_is_taken_and_why_others_are_not():
    text = ship.markdown(ROWS, 0.8, 400, "int8", 1.0)
    assert "| **int8** | 5.00 | 0.795 | +0.5 | 99.00% | yes |" in text
    assert "no: 90.00% of the clips get the same name" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def call(*given):
    with pytest.raises(SystemExit) as stopped:
        ship.main(list(map(str, given)))
    return stopped.value.code


def test_refusals(tmp_path, capsys):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1").write_text("dear")
    for given, says in (
        (["--workdir=x", f"--out={tmp_path / 'new'}", "--variants=int7"], "'int7' is unknown; nearest: 'int8'"),
        (["--workdir=x", f"--out={tmp_path / 'thesis'}"], "already exists"),
        (["--workdir=x", f"--out={tmp_path / 'thesis'}", "--overwrite"], "something else than a shipped run"),
        ([f"--workdir={tmp_path}", f"--out={tmp_path / 'new'}"], "config.json"),
    ):
        assert call(*given) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]
    assert (tmp_path / "thesis" / "chapter1").read_text() == "dear"


@pytest.mark.slow
def test_from_a_run_to_a_proven_package(tmp_path_factory, tmp_path, capsys):
    run, out = finished_run(tmp_path_factory.getbasetemp()), tmp_path / "shipped"
    given = [f"--workdir={run}", f"--out={out}", "--variants=fp32,int8", "--lose=100"]
    assert call(*given) == 0
    names = {path.name for path in out.iterdir()}
    assert names == {
        ship.PACKAGE, "verification.json", "golden.json", "variants.md", "variants.json", "variants",
    }  # fmt: skip
    told = json.loads((out / "variants.json").read_text())
    fp32, int8 = told["variants"]
    assert (fp32["agreement"], fp32["points_lost"], fp32["problems"]) == (1.0, 0.0, [])
    assert int8["size_mb"] < fp32["size_mb"]
    assert told["n_clips"] == 40
    assert told["chosen"] in ("fp32", "int8")
    proof = json.loads((out / "verification.json").read_text())
    assert proof["passed"]
    chosen = out / "variants" / f"{told['chosen']}.mlpackage"
    weights = "Data/com.apple.CoreML/weights/weight.bin"
    assert (chosen / weights).read_bytes() == (out / ship.PACKAGE / weights).read_bytes()
    assert "Taken: " in capsys.readouterr().out
    assert call(*given) == 2, "it is not done again over what is there"
    assert {path.name for path in tmp_path.iterdir()} == {"shipped"}
