"""What is known of official files, and `--download`: only the right bytes stay, everything else is one line."""

import functools
import hashlib
import http.server
import re
import threading

import pytest

from ports import convert, sources
from ports.port import PORTS
from sousa_jax.errors import InputError

CONTENT = b"weights" * 1000
SUM = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """`/good` is the file, `/bad` another one, everything else is missing."""

    def do_GET(self):
        self.server.asked.append(self.path)  # before the answer, after which the test looks
        content = {"/good": CONTENT, "/bad": b"<html>sign in</html>"}.get(self.path)
        self.send_response(200 if content else 404)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.asked = []
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def listed(server, monkeypatch):
    """`listed("good", sha256=SUM)`: makes `w.pt` the one official file of BEATs, at these paths of the server."""
    address = f"http://127.0.0.1:{server.server_address[1]}"

    def change(*paths, **about):
        entry = {"name": "w.pt", "urls": [f"{address}/{path}" for path in paths], **about}
        table = {"beats": {"page": "https://example.org/page", "files": [entry]}}
        monkeypatch.setattr(sources, "_listed", functools.cache(lambda: table))

    return change


def test_a_file_is_fetched_once(listed, server, tmp_path, capsys):
    listed("good", sha256=SUM)
    path = sources.download("beats", folder=tmp_path / "new")
    assert path == tmp_path / "new" / "beats" / "w.pt"
    assert path.read_bytes() == CONTENT
    assert sources.download("beats", "w.pt", folder=tmp_path / "new") == path
    assert server.asked == ["/good"]
    assert "warning" not in capsys.readouterr().out


def test_mirrors_are_tried_in_order(listed, server, tmp_path):
    listed("absent", "good", sha256=SUM)
    assert sources.download("beats", folder=tmp_path).read_bytes() == CONTENT
    assert server.asked == ["/absent", "/good"]


def test_other_bytes_are_refused_and_deleted(listed, tmp_path):
    listed("bad", "good", sha256=SUM)
    with pytest.raises(InputError, match=f"gave another file than w.pt, not of sha256 {SUM}: deleted"):
        sources.download("beats", folder=tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_file_that_was_spoilt_since_is_fetched_again(listed, tmp_path):
    listed("good", sha256=SUM)
    path = sources.download("beats", folder=tmp_path)
    path.write_bytes(b"spoilt")
    assert sources.download("beats", folder=tmp_path).read_bytes() == CONTENT


def test_without_a_known_sum_it_is_said(listed, tmp_path, capsys):
    listed("good")
    assert sources.download("beats", folder=tmp_path).read_bytes() == CONTENT
    assert "warning: no sha256 is known for w.pt" in capsys.readouterr().out


def test_no_network_is_one_line_that_says_what_to_do(listed, run, tmp_path, monkeypatch):
    listed("absent", sha256=SUM)
    monkeypatch.setattr(sources, "CACHE", tmp_path)
    code, out, err = run(convert.main, "--model=beats", "--download", f"--out={tmp_path / 'out'}")
    assert (code, out) == (2, "")
    assert re.fullmatch(
        r"error: could not download w\.pt \(http://[^ ]+/absent: HTTP 404\); "
        r"get it by hand from https://example\.org/page, then give --checkpoint=w\.pt\n",
        err,
    )
    listed(sha256=SUM)
    assert (
        "no program can fetch w.pt: get it by hand from"
        in run(convert.main, "--model=beats", "--download=w.pt", f"--out={tmp_path / 'out'}")[2]
    )
    assert (
        "'v.pt' is no official file of beats; nearest: 'w.pt'"
        in run(convert.main, "--model=beats", "--download=v.pt", f"--out={tmp_path / 'out'}")[2]
    )


def test_a_refused_connection_is_one_line(monkeypatch, tmp_path):
    entry = {"name": "w.pt", "urls": ["http://127.0.0.1:9/w.pt"]}
    monkeypatch.setattr(sources, "_listed", lambda: {"beats": {"page": "https://example.org", "files": [entry]}})
    with pytest.raises(InputError, match=r"^could not download w.pt \(http://127.0.0.1:9/w.pt: ConnectionError\); get"):
        sources.download("beats", folder=tmp_path)


@pytest.mark.parametrize("model", PORTS)
def test_every_model_has_sources_with_licence_and_citation(model):
    for name, source in sources.files(model).items():
        assert {"page", "licence", "citation", "repository", "urls"} <= source.keys()
        assert re.fullmatch(r"[\w.()-]+\.(pt|pth|ckpt|safetensors)", name)  # stays in its folder
        assert all(url.startswith("https://") for url in source["urls"])
        assert re.fullmatch(r"[0-9a-f]{64}", source.get("sha256", "0" * 64))


def test_a_file_is_known_by_its_sum_not_by_its_name():
    listed = sources.files("ast")["model.safetensors"]
    assert sources.source_of("ast", "renamed.safetensors", listed["sha256"]) == listed
    assert sources.source_of("ast", "model.safetensors", "0" * 64) is None
    by_name = sources.source_of("ast", "audioset_10_10_0.4593.pth", "0" * 64)
    assert by_name["name"] == "audioset_10_10_0.4593.pth"
    assert "sha256" not in by_name
