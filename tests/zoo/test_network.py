"""zoo.download: resumed where it broke off, checked, atomic, and never when offline. The server is on the loopback."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from cfx_lib import zoo
from cfx_lib.zoo import network

CONTENT = bytes(range(256)) * 4000
SUM = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Gives `content`; cuts the connection after `cut` bytes of an answer, `cuts` times; `status` instead of the file."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag, self.cut, self.cuts, self.status = CONTENT, '"one"', 0, 0, 0
        self.ranges, self.asked = True, []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/weights.pt"

    def handle_error(self, request, client_address):
        pass


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        if server.status:
            return self.send_error(server.status)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        if self.headers.get("If-Range", server.etag) != server.etag:
            start = 0
        if start >= len(server.content):
            return self.send_error(416)
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header(
                "Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}"
            )
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", server.etag)
        self.end_headers()
        if server.cuts:
            server.cuts -= 1
            body = body[: server.cut]
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch):
    for name in ("CFX_OFFLINE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


def get(server, folder, sha256=SUM, **options):
    return zoo.download(server.url, sha256, folder=folder, **{"progress": False, "pause": 0.01} | options)


def files(folder):
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock")


def test_a_file_is_downloaded_once(server, tmp_path):
    path = get(server, tmp_path)
    assert path == tmp_path / "weights.pt" and path.read_bytes() == CONTENT
    assert get(server, tmp_path) == path and server.asked == [None] and files(tmp_path) == ["weights.pt"]
    assert get(server, tmp_path, sha256=SUM[:8], name="other.pt").name == "other.pt"
    assert get(server, tmp_path, sha256=None, name="third.pt").read_bytes() == CONTENT


def test_a_cut_connection_is_resumed(server, tmp_path):
    server.cut, server.cuts = 300_000, 2
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=600000-"] and files(tmp_path) == ["weights.pt"]


def test_a_later_call_goes_on_where_the_first_gave_up(server, tmp_path):
    server.cut, server.cuts = 300_000, 1
    with pytest.raises(
        ConnectionError, match="could not be downloaded.*300000 bytes are kept.*goes on from there"
    ):
        get(server, tmp_path, attempts=1)
    assert files(tmp_path) == [
        ".weights.pt.partial",
        ".weights.pt.partial.tag",
    ]  # no file with the name itself
    assert get(server, tmp_path).read_bytes() == CONTENT and server.asked == [None, "bytes=300000-"]


def test_a_connection_that_gives_nothing_is_given_up(server, tmp_path):
    server.cut, server.cuts = 0, 99
    with pytest.raises(ConnectionError, match="the connection was cut"):
        get(server, tmp_path, attempts=3)
    assert len(server.asked) == 3


def test_a_file_that_changed_in_between_is_taken_from_its_beginning(server, tmp_path):
    server.cut, server.cuts = 300_000, 1
    with pytest.raises(ConnectionError):
        get(server, tmp_path, attempts=1)
    server.content, server.etag = CONTENT[::-1], '"two"'
    assert get(server, tmp_path, sha256=None).read_bytes() == CONTENT[::-1]


def test_a_server_without_ranges_starts_again(server, tmp_path):
    server.cut, server.cuts, server.ranges = 300_000, 1, False
    assert get(server, tmp_path).read_bytes() == CONTENT and len(server.asked) == 2


def test_a_partial_file_that_is_too_long_is_thrown_away(server, tmp_path):
    (tmp_path / ".weights.pt.partial").write_bytes(CONTENT + b"more")
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(CONTENT) + 4}-", None]


def test_other_content_is_refused_and_not_kept(server, tmp_path):
    with pytest.raises(
        ValueError, match="is damaged or another file.*sha256 .*expected 0000.*Nothing was kept"
    ):
        get(server, tmp_path, sha256="0" * 64)
    assert files(tmp_path) == []
    (tmp_path / "weights.pt").write_bytes(b"altered")
    with pytest.raises(
        ValueError, match=r"weights.pt is damaged or another file \(7 bytes\).*Delete it and download it"
    ):
        get(server, tmp_path)


@pytest.mark.parametrize(
    "status, message", [(403, "is gated: the server answered 403"), (404, "is not there: .* 404")]
)
def test_an_answer_that_will_not_change(server, tmp_path, status, message):
    server.status = status
    with pytest.raises(FileNotFoundError, match=message):
        get(server, tmp_path)
    assert len(server.asked) == 1


def test_a_server_in_trouble_is_asked_again(server, tmp_path):
    server.status = 503
    with pytest.raises(ConnectionError, match="the server answered 503"):
        get(server, tmp_path, attempts=2)
    assert len(server.asked) == 2


def test_two_at_once_download_once(server, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: get(server, tmp_path), range(2)))
    assert paths[0] == paths[1] and server.asked == [None]


def test_a_disk_that_is_too_small(server, tmp_path, monkeypatch):
    monkeypatch.setattr(network.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(OSError, match="GB left; 0.0 GB are needed. Make room, or set CFX_CACHE"):
        get(server, tmp_path)
    assert not (tmp_path / "weights.pt").exists()


@pytest.mark.parametrize("variable", network.VARIABLES)
def test_offline_touches_no_network(server, tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    assert zoo.offline()
    with pytest.raises(
        FileNotFoundError, match=f"weights.pt is not in the cache.*{variable} is set.*download http"
    ):
        get(server, tmp_path)
    assert server.asked == [] and files(tmp_path) == []
    (tmp_path / "weights.pt").write_bytes(CONTENT)
    assert get(server, tmp_path).read_bytes() == CONTENT  # what is there is used
    monkeypatch.setenv(variable, "0")
    assert not zoo.offline()


def test_files_are_kept_in_the_cache(server, tmp_path, monkeypatch):
    monkeypatch.setenv("CFX_CACHE", str(tmp_path))
    assert zoo.download(server.url, SUM, progress=False) == tmp_path / "checkpoints" / "weights.pt"
