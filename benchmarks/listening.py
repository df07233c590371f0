"""How fast a long recording is heard, and in how much memory, beside the loop that one would write without the engine.

    python -m benchmarks.listening [--minutes=60] [--loop_minutes=5]

The recording is made here and removed afterwards: rudiments of the synthesizer one after another, 44.1 kHz, two
channels, 16 bit. `listen` is `python -m sousa_jax.listen --json`: read in pieces, windows in batches, timeline,
strokes, tempo, deviations. The loop reads the whole file by librosa at the network's rate and asks the network window
by window, with the same hop; it gives nothing but names. Each runs in a process of its own, which tells its peak of
memory; what loading and compiling take is in both. Processor time is told, too: other work on the machine disturbs it
less.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import numpy as np

RATE = 44_100
CLIP_S = 10.0
N_CLIPS = 12


def make_recording(path: pathlib.Path, minutes: float) -> None:
    """Synthetic clips, tiled; written a clip at a time."""
    import soundfile

    from sousa_jax.data.synth.clips import SynthClips
    from sousa_jax.data.synth.stream import Source

    clips = SynthClips("test", N_CLIPS, 0, Source("sousa", 0, CLIP_S))
    waves = [np.repeat(clips.waveform(i, RATE)[:, None], 2, 1) for i in range(N_CLIPS)]
    with soundfile.SoundFile(path, "w", RATE, 2, subtype="PCM_16") as file:
        for i in range(round(60 * minutes / CLIP_S)):
            file.write(waves[i % N_CLIPS])


def loop(path: str) -> int:
    """Window by window, everything in memory. The number of windows."""
    import jax
    import librosa

    from sousa_jax import checkpoint
    from sousa_jax.data.clips import loop_fill, trim_tail
    from sousa_jax.step import make_eval_step
    from sousa_jax.stream import Settings

    model = checkpoint.load_model(checkpoint.SHIPPED)
    spec, eval_step = model.config.frontend, make_eval_step(model.name, model.config)
    wave, _ = librosa.load(path, sr=spec.sample_rate, mono=True)
    names = []
    for start in range(0, len(wave) - spec.window_samples + 1, round(Settings.hop_s * spec.sample_rate)):
        window = trim_tail(wave[start : start + spec.window_samples], spec.sample_rate)
        batch = {"waveform": loop_fill(window, spec.window_samples, 0)[None]}
        names.append(int(jax.device_get(eval_step(model.params, model.stats, batch).logits).argmax()))
    return len(names)


def one(what: str, path: str) -> None:
    """Runs one of both and prints its processor time and its peak of memory as JSON on the last line."""
    if what == "listen":
        from sousa_jax import listen

        listen.main([path, "--json"])
    else:
        loop(path)
    status = pathlib.Path("/proc/self/status").read_text()  # Linux; getrusage would count the parent in
    (peak_kb,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    print(json.dumps({"processor_s": time.process_time(), "peak_mb": int(peak_kb) / 1024}))


def measure(what: str, minutes: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "recording.wav"
        make_recording(path, minutes)
        begin_s = time.perf_counter()
        command = [sys.executable, "-m", "benchmarks.listening", f"--one={what}", f"--path={path}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        wall_s = time.perf_counter() - begin_s
    told = json.loads(done.stdout.splitlines()[-1])
    factors = {"real_time": 60 * minutes / wall_s, "real_time_of_processor": 60 * minutes / told["processor_s"]}
    print(
        f"{what:<7} {minutes:5g} min: {factors['real_time']:5.1f} times real time "
        f"({factors['real_time_of_processor']:.1f} by processor time), {told['peak_mb']:6.0f} MB at most",
        flush=True,
    )
    return {**told, **factors}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--loop_minutes", type=float, default=5, help="both are compared on so much")
    parser.add_argument("--one", choices=("listen", "loop"), help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        one(args.one, args.path)
        return
    plain, ours = measure("loop", args.loop_minutes), measure("listen", args.loop_minutes)
    ratio = ours["real_time_of_processor"] / plain["real_time_of_processor"]
    share = ours["peak_mb"] / plain["peak_mb"]
    print(f"listen by loop: {ratio:.2f} times as fast by processor time, {share:.2f} of its memory")
    if args.minutes > args.loop_minutes:
        measure("listen", args.minutes)


if __name__ == "__main__":
    main()
