"""The Swift package says what the Python side says: the same rudiments, constants and numbers; and it is put together
so that its plain logic builds without Apple's frameworks. Swift itself tests the rest (`swift test`).

    python -m tests.bridge.test_ios      writes vectors.json anew
"""

import inspect
import json
import pathlib
import re

import jax
import numpy as np
import pytest

from bridge import golden
from sousa_jax import checkpoint
from sousa_jax.data.clips import loop_fill, trim_tail, window_starts
from sousa_jax.data.frame_targets import FrameTargets
from sousa_jax.rudiments import RUDIMENTS, SLUGS
from sousa_jax.strokes import likeliest

PACKAGE = pathlib.Path(__file__).resolve().parents[2] / "bridge" / "ios"
SOURCES = PACKAGE / "Sources"
VECTORS = PACKAGE / "Tests" / "RudimentWindowsTests" / "vectors.json"
RATE = 1000  # frames of ten samples


def swift(path: str) -> str:
    return (SOURCES / path).read_text("utf-8")


def vectors() -> dict:
    """What `RudimentWindowsTests` expects, from the functions of training and evaluation."""
    rng = np.random.default_rng(0)
    loud = np.round(rng.uniform(-1, 1, 47), 2).astype(np.float32)
    clips = {
        "sound to the end": loud,
        "digital silence after it": np.concatenate([loud, np.zeros(38)]),
        "a soft tail": np.concatenate([loud, np.full(31, 0.001)]),
        "a tail above the floor": np.concatenate([loud, np.full(31, 0.05)]),
        "silence before and between": np.concatenate([np.zeros(25), loud, np.zeros(40), loud[:3], np.zeros(5)]),
        "silent": np.zeros(33),
        "one sample": np.array([0.5]),
    }
    tails = []
    for name, wave in clips.items():
        wave = np.asarray(wave, np.float32)
        samples = [float(f"{x:.3f}") for x in wave]
        tails.append({"name": name, "wave": samples, "rate": RATE, "length": len(trim_tail(wave, RATE))})
    fills = []
    for n, count, start in [(5, 12, 0), (5, 12, 3), (1, 4, 0), (7, 7, 0), (9, 4, 5), (9, 4, 2)]:
        wave = np.arange(1, n + 1)
        fills.append({"clip": n, "count": count, "start": start, "filled": loop_fill(wave, count, start).tolist()})
    cases = [(3, 10, 5), (10, 10, 5), (11, 10, 5), (25, 10, 5), (26, 10, 4), (35, 10, 10), (15, 10, 3)]
    starts = [
        {"clip": clip, "window": window, "hop": hop, "starts": window_starts(clip, window, hop)}
        for clip, window, hop in cases
    ]
    log_probs = np.asarray(jax.nn.log_softmax(rng.normal(0, 3, (4, len(SLUGS)))), np.float64)
    smoothed = dict(likeliest(log_probs.mean(0), len(SLUGS)))
    return {
        "tails": tails,
        "fills": fills,
        "starts": starts,
        "smoothing": {
            "windows": np.exp(log_probs).round(9).tolist(),
            "smoothed": {slug: round(p, 6) for slug, p in smoothed.items()},
        },
        "hops": [{"length": n, "hop": n // 2} for n in (10, 11, 80_000)],  # as eval_batches has them
        "golden": golden.document(
            model="none",
            clip="four samples",
            sample_rate=RATE,
            window=np.array([0.0, 1.5, -0.25, 3e-5], np.float32),
            probabilities=np.exp(log_probs[0]).round(9),
            strokes=FrameTargets(*np.arange(8, dtype=np.float32).reshape(4, 2) / 8),
            strokes_per_second=200,
        ),
    }


def close(found, expected) -> bool:
    """Equal, numbers up to the sixth digit: another processor may round the last ones differently."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(close(found[k], expected[k]) for k in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(close, found, expected))
    return found == (pytest.approx(expected, rel=1e-5, abs=2e-6) if isinstance(expected, float) else expected)


def test_swift_is_tested_with_numbers_of_the_python_functions():
    assert close(json.loads(VECTORS.read_text("utf-8")), vectors()), "python -m tests.bridge.test_ios writes them anew"


def test_the_numbers_tell_halves_rounded_up_from_halves_rounded_to_even():
    """Python's round() and Swift's differ in this one case, so it must be among the shared ones."""
    case = {"clip": 15, "window": 10, "hop": 3, "starts": [0, 2, 5]}
    assert case in vectors()["starts"]


def test_rudiments_are_those_of_the_model_in_its_order():
    rows = re.findall(r'Rudiment\("(\w+)", "([^"]+)", (\d+)\)', swift("RudimentWindows/Rudiment.swift"))
    assert rows == [(r.slug, r.name, str(r.pas_number)) for r in RUDIMENTS]


def test_constants_are_those_of_the_python_side():
    floor_db = inspect.signature(trim_tail).parameters["floor_db"].default
    assert f"tailFloorDecibels = {floor_db}" in swift("RudimentWindows/LengthPolicy.swift")
    assert f'format = "{golden.FORMAT}"' in swift("RudimentWindows/GoldenClip.swift")


def test_every_swift_file_belongs_to_a_target():
    """The package manager builds what lies in a target's folder, and says nothing about other files."""
    manifest = (PACKAGE / "Package.swift").read_text("utf-8")
    targets = {kind: re.findall(rf'\.{kind}\(\s*name: "(\w+)"', manifest) for kind in ("target", "testTarget")}
    folders = {"Sources": targets["target"], "Tests": targets["testTarget"]}
    for path in PACKAGE.rglob("*.swift"):
        inside = path.relative_to(PACKAGE).parts
        if inside[0] != ".build" and inside != ("Package.swift",):
            assert inside[1] in folders[inside[0]], path
    for folder, names in folders.items():
        assert names
        assert all(list((PACKAGE / folder / name).glob("*.swift")) for name in names)


def test_plain_logic_imports_nothing_of_apples():
    for path in (SOURCES / "RudimentWindows").glob("*.swift"):
        assert set(re.findall(r"^\s*(?:@\w+ )?import (\w+)", path.read_text("utf-8"), re.M)) <= {"Foundation"}, path


def test_apples_frameworks_stand_behind_guards():
    """Every other file is empty where there is no Core ML, so that the package builds on Linux."""
    for target in ("RudimentListener", "RudimentScreens"):
        for path in (SOURCES / target).glob("*.swift"):
            lines = path.read_text("utf-8").strip().splitlines()
            assert lines[0].startswith("#if canImport("), path
            assert lines[-1] == "#endif", path


if __name__ == "__main__":
    checkpoint.write_json(VECTORS, vectors())
