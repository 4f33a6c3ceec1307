"""Installing published archives, from a server on this machine."""

import dataclasses
import hashlib
import io
import os
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from velodrome.data import download
from velodrome.data.download import Archive, install, is_present
from velodrome.errors import DataError

MEMBERS = {"one": b"first file", "two": b"second file" * 1000}
UNREACHABLE = "http://127.0.0.1:9/pets.tar.gz"  # port 9, discard: nothing listens


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def packed(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def archive_of(content: bytes, *urls: str) -> Archive:
    return Archive(
        title="Pets",
        filename="pets.tar.gz",
        md5=md5(content),
        size_bytes=len(content),
        folder="pets",
        members={name: md5(data) for name, data in MEMBERS.items()},
        urls=urls or (UNREACHABLE,),
    )


GOOD = packed({f"pets/{name}": content for name, content in MEMBERS.items()})


class Server(ThreadingHTTPServer):
    """Gives GOOD at every address, but for those that name a fault; remembers what was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []

    def url(self, fault: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{fault}/pets.tar.gz"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that hangs up on a slow answer is what the tests want


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        fault = self.path.split("/")[1]
        self.server.asked.append(fault)
        body = b"<html>not the file</html>" if fault == "wrong" else GOOD
        if fault == "silent":
            time.sleep(1.0)
        self.send_response(404 if fault == "absent" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "broken":
            self.wfile.write(body[: len(body) // 2])
        elif fault == "slow":
            for byte in body:
                self.wfile.write(bytes([byte]))
                time.sleep(0.001)
        elif fault != "silent":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "READ_TIMEOUT_S", 0.5)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def slow_is_under_2_kb_per_s(monkeypatch):
    monkeypatch.setattr(download, "MIN_BYTES_PER_S", 2000)  # the server's slow answer: at most 1000
    monkeypatch.setattr(download, "WINDOW_S", 0.05)
    monkeypatch.setattr(download, "CHUNK_BYTES", 8)


def assert_installed(root: Path) -> None:
    assert {path.name: path.read_bytes() for path in (root / "pets").iterdir()} == MEMBERS


def test_downloads_into_a_new_folder_and_leaves_nothing_else(server, tmp_path):
    root = tmp_path / "made" / "on demand"
    install(archive_of(GOOD, server.url("good")), root, download=True, progress=False)
    assert_installed(root)
    assert [path.name for path in root.iterdir()] == ["pets"]


@pytest.mark.parametrize("fault", ["absent", "wrong", "broken", "silent"])
def test_the_next_source_is_used_when_one_fails(server, tmp_path, fault):
    install(archive_of(GOOD, server.url(fault), server.url("good")), tmp_path, download=True, progress=False)
    assert_installed(tmp_path)
    assert server.asked == [fault, "good"]


def test_a_source_that_is_down_is_passed_over(server, tmp_path):
    install(archive_of(GOOD, UNREACHABLE, server.url("good")), tmp_path, download=True, progress=False)
    assert_installed(tmp_path)


def test_a_slow_source_is_left_for_a_fast_one(server, tmp_path, slow_is_under_2_kb_per_s):
    install(archive_of(GOOD, server.url("slow"), server.url("good")), tmp_path, download=True, progress=False)
    assert_installed(tmp_path)
    assert server.asked == ["slow", "good"]


def test_a_slow_source_will_do_when_there_is_no_other(server, tmp_path, slow_is_under_2_kb_per_s):
    install(
        archive_of(GOOD, server.url("slow"), server.url("absent")), tmp_path, download=True, progress=False
    )
    assert_installed(tmp_path)
    assert server.asked == ["slow", "absent", "slow"]


def test_when_all_fail_one_line_says_why_and_what_to_do(server, tmp_path):
    urls = (server.url("wrong"), server.url("silent"), server.url("absent"), UNREACHABLE)
    with pytest.raises(DataError) as caught:
        install(archive_of(GOOD, *urls), tmp_path, download=True, progress=False)
    message = str(caught.value)
    assert "\n" not in message
    for expected in ("Pets could not", "wrong bytes", "timed out", "HTTP 404", "no connection"):
        assert expected in message
    for expected in (UNREACHABLE, str(tmp_path), "--data shapes"):
        assert expected in caught.value.remedy
    assert server.asked == ["wrong", "silent", "absent", "silent", "absent"]  # wrong bytes stay wrong
    assert list(tmp_path.iterdir()) == []


def test_the_bar_goes_to_stderr_and_only_when_wanted(server, tmp_path, capsys):
    archive = archive_of(GOOD, server.url("good"))
    install(archive, tmp_path / "quiet", download=True, progress=False)
    assert capsys.readouterr() == ("", "")
    install(archive, tmp_path / "shown", download=True, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Pets from 127.0.0.1" in shown.err
    assert "100%" in shown.err


def test_an_archive_in_the_root_is_used_without_the_network_and_kept(tmp_path):
    (tmp_path / "pets.tar.gz").write_bytes(GOOD)
    install(archive_of(GOOD), tmp_path, download=False, progress=False)
    assert_installed(tmp_path)
    assert (tmp_path / "pets.tar.gz").read_bytes() == GOOD


def test_a_damaged_archive_in_the_root_is_an_error_and_kept(tmp_path):
    (tmp_path / "pets.tar.gz").write_bytes(GOOD[:-1])
    with pytest.raises(DataError, match=rf"damaged.*{md5(GOOD[:-1])}.*{md5(GOOD)}.*delete"):
        install(archive_of(GOOD), tmp_path, download=True, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["pets.tar.gz"]


def test_without_download_nothing_is_written(tmp_path):
    root = tmp_path / "root"
    with pytest.raises(DataError, match=r"downloading is off.*Fetch .*pets\.tar\.gz"):
        install(archive_of(GOOD), root, download=False, progress=False)
    assert not root.exists()


def test_only_the_named_files_are_taken_out(tmp_path):
    entries = {f"pets/{name}": content for name, content in MEMBERS.items()}
    content = packed(
        {"../escaped": b"x", "/pets/one": b"x", "pets/extra": b"x", "pets/../pets/two": b"x"} | entries
    )
    root = tmp_path / "root"
    root.mkdir()
    (root / "pets.tar.gz").write_bytes(content)
    install(archive_of(content), root, download=False, progress=False)
    assert_installed(root)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"pets/one": MEMBERS["one"]}, "lacks pets/two"),
        ({"pets/one": MEMBERS["one"], "pets/two": b"other"}, "holds another two than was published"),
    ],
)
def test_an_archive_with_other_files_is_refused_and_leaves_nothing(tmp_path, entries, message):
    content = packed(entries)
    (tmp_path / "pets.tar.gz").write_bytes(content)
    with pytest.raises(DataError, match=message):
        install(archive_of(content), tmp_path, download=False, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["pets.tar.gz"]


def test_an_interrupted_extraction_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    (tmp_path / "pets.tar.gz").write_bytes(GOOD)
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        install(archive_of(GOOD), tmp_path, download=False, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["pets.tar.gz"]


def test_the_loser_of_a_race_uses_the_folder_of_the_winner(tmp_path, monkeypatch):
    extract = download._extract

    def extract_late(archive: Archive, path: Path, made: Path) -> None:
        extract(archive, path, made)
        extract(archive, path, tmp_path / archive.folder)  # another process was faster
        (tmp_path / archive.folder / "winner").touch()

    (tmp_path / "pets.tar.gz").write_bytes(GOOD)
    monkeypatch.setattr(download, "_extract", extract_late)
    install(archive_of(GOOD), tmp_path, download=False, progress=False)
    assert (tmp_path / "pets" / "winner").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"pets", "pets.tar.gz"}


def test_a_root_that_cannot_be_written_names_the_remedy(tmp_path):
    root = tmp_path / "file"
    root.touch()
    with pytest.raises(DataError, match=r"file cannot be used: .*--data-root DIR .*VELODROME_DATA"):
        install(archive_of(GOOD), root, download=True, progress=False)


def test_a_full_disk_is_not_blamed_on_the_source(server, tmp_path, monkeypatch):
    def full(path: Path) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download, "_md5_of_file", full)
    with pytest.raises(DataError, match="cannot be used: No space left on device"):
        install(archive_of(GOOD, server.url("good")), tmp_path, download=True, progress=False)
    assert server.asked == ["good"]


def test_presence(tmp_path):
    archive = archive_of(GOOD)
    assert not is_present(archive, tmp_path / "missing")
    assert not is_present(archive, tmp_path)
    (tmp_path / "pets.tar.gz").touch()
    assert is_present(archive, tmp_path)
    (tmp_path / "animals").mkdir()
    assert is_present(dataclasses.replace(archive, folder="animals", filename="none"), tmp_path)
