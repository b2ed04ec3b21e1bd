"""A Hub on this machine: a folder of data sets behind the endpoints that a download uses. Used by the tests only."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlparse

COMMIT = "c" * 40


@contextmanager
def hub_of_data_sets(root: Path, seen: list[str]) -> Iterator[str]:
    """Serves `<root>/<owner>/<name>/...`; yields what HF_ENDPOINT must be. `seen` collects the files handed out."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            parts = urlparse(self.path).path.strip("/").split("/")
            if parts[:2] == ["api", "datasets"] and (root / parts[2] / parts[3]).is_dir():
                return self.describe("/".join(parts[2:4]), listing="tree" in parts)
            path = root.joinpath(*parts[1:3], *parts[5:]) if parts[0] == "datasets" and len(parts) > 5 else None
            if path is None or not path.is_file():
                return self.reply(b"{}", 404, {"X-Error-Code": "RepoNotFound"})
            content = path.read_bytes()
            if self.command == "GET":
                seen.append(path.name)
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            return self.reply(content, 200, headers)

        def describe(self, name: str, listing: bool) -> None:
            base = root / name
            files = sorted(path for path in base.rglob("*") if path.is_file())
            names = [path.relative_to(base).as_posix() for path in files]
            if listing:
                rows = [
                    {"type": "file", "path": name, "size": path.stat().st_size, "oid": "0" * 40}
                    for name, path in zip(names, files, strict=True)
                ]
                return self.reply(json.dumps(rows).encode())
            facts = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            return self.reply(json.dumps(facts).encode())

        def reply(self, content: bytes, code: int = 200, headers: dict[str, str] | None = None) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(content)))
            for key, value in (headers or {"Content-Type": "application/json"}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *words: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
