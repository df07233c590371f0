"""A local web page: play, and it tells you.

    python -m sousa_jax.demo [--workdir=RUN] [--host=0.0.0.0] [--port=7860] [--ssl_certfile=CERT --ssl_keyfile=KEY]

Record or upload a snare drum, or let the synthesizer play a rudiment: the page names it, as
`python -m sousa_jax.listen` does, and shows its sticking, its strokes, what the network saw, and how evenly it was
played. Nothing leaves this machine, and the page loads nothing from elsewhere.

From a phone on the same network: --host=0.0.0.0, then http://ADDRESS-OF-THIS-MACHINE:7860 in its browser. A browser
gives a page the microphone only on https or on localhost. Over plain http a phone can upload recordings; to record on
it, serve https:

    openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=sousa -keyout key.pem -out cert.pem
    python -m sousa_jax.demo --host=0.0.0.0 --ssl_certfile=cert.pem --ssl_keyfile=key.pem

and open https://ADDRESS-OF-THIS-MACHINE:7860. The browser warns once, as nobody vouches for this certificate.
"""

import argparse
import pathlib
import sys

from sousa_jax import checkpoint, listen, rejection
from sousa_jax.demo import page
from sousa_jax.errors import InputError, one_line_errors
from sousa_jax.rejection import Limits
from sousa_jax.stream import Stream


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m sousa_jax.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workdir",
        type=pathlib.Path,
        default=checkpoint.SHIPPED,
        help="folder of a run or model; default: the shipped one",
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 is for the whole network (%(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="(%(default)s)")
    parser.add_argument("--ssl_certfile", type=pathlib.Path, metavar="CERT", help="for https: a certificate")
    parser.add_argument("--ssl_keyfile", type=pathlib.Path, metavar="KEY", help="for https: its key")
    args = parser.parse_args(argv)
    with one_line_errors():
        run(args)


def run(args: argparse.Namespace) -> None:
    if (args.ssl_certfile is None) != (args.ssl_keyfile is None):
        raise InputError("--ssl_certfile and --ssl_keyfile belong together")
    for path in filter(None, (args.ssl_certfile, args.ssl_keyfile)):
        if not path.is_file():
            raise InputError(f"{path}: no such file; --help says how to make one")
    page.gradio()  # before anything that takes time
    model, limits = checkpoint.load_model(args.workdir), rejection.load(args.workdir)
    if limits is None:
        print(f"{args.workdir} has no {rejection.FILE}: every sound gets a name", file=sys.stderr)
    blocks = page.build(Stream(model, batch=listen.BATCH), limits or Limits())
    page.serve(blocks, args.host, args.port, args.ssl_certfile, args.ssl_keyfile)
    host = "localhost" if args.host in ("127.0.0.1", "0.0.0.0") else args.host
    print(f"{'https' if args.ssl_certfile else 'http'}://{host}:{args.port}  Ctrl-C ends", flush=True)
    blocks.block_thread()


if __name__ == "__main__":
    main()
