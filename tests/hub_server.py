"""A Hub on this machine: folders behind the endpoints that downloads and uploads use. Used by the tests only.

Speaks what `huggingface_hub` 2.4 asks for without xet: whoami-v2, repos/create, auth-check, validate-yaml, preupload,
LFS batch and its PUT, commit, repository facts, tree and resolve. Commits appear whole, private repositories only to
those who may read them, and what is stored is what a download gives back.
"""

import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

LFS_SUFFIXES = (".safetensors", ".zip", ".parquet", ".pt", ".gif", ".png")
WRITER, READER = "hf_writer", "hf_reader"  # tokens of the user `owner`, who is also in the organisation `club`
KINDS = ("models", "datasets")


@dataclass
class LocalHub:
    """What a running server holds, for tests to look at and to disturb.

    `<root>/{models,datasets}/<owner>/<name>/...` are the repositories; those not made through it are public."""

    root: Path
    url: str = ""
    seen: list[str] = field(default_factory=list)  # names of the files handed out
    asked: list[str] = field(default_factory=list)  # "<METHOD> <path>" of every request
    visibility: dict[str, str] = field(default_factory=dict)  # "models/owner/name" -> "public" or "private"
    commits: list[str] = field(default_factory=list)  # summaries, oldest first
    down_for: str | None = None  # from a request on whose path holds this, no request is answered

    def environment(self, home: Path, token: str | None = WRITER) -> dict[str, str]:
        """What a script's environment must hold to use this Hub; `home` keeps its cache, no token but this is known."""
        told = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        return {**told, "HF_TOKEN": token or ""}

    def repository(self, repo_id: str, kind: str = "models") -> Path:
        return self.root / kind / repo_id

    def files(self, repo_id: str, kind: str = "models") -> list[str]:
        """The sorted paths of a repository's files."""
        base = self.repository(repo_id, kind)
        return sorted(path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_file())

    def sha(self, name: str) -> str:
        """The commit that a repository is at."""
        kind, repo_id = name.split("/", 1)
        files = {file: _sha256(self.root / name / file) for file in self.files(repo_id, kind)}
        return hashlib.sha1(json.dumps(files).encode()).hexdigest()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _blob_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Refused(Exception):
    """An answer other than success: (status, X-Error-Code, X-Error-Message[, url of what is there already])."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlparse(self.path).path).strip("/")
        self.hub.asked.append(f"{self.command} {path}")
        if self.hub.down_for is not None and self.hub.down_for in path:
            self.hub.down_for = ""  # held by every path
        if self.hub.down_for == "":
            self.close_connection = True
            return
        try:
            parts = path.split("/")
            if parts[:1] == ["api"]:
                self.reply_json(self.api(parts[1:], body))
            elif parts[0] == "lfs":
                self.store(parts[1], body)
            elif path.endswith(".git/info/lfs/objects/batch"):
                self.reply_json(self.lfs_batch(json.loads(body)))
            else:
                self.download(parts)
        except Refused as refused:
            status, code, message, *url = refused.args
            content = json.dumps({"error": message, **({"url": url[0]} if url else {})}).encode()
            self.reply(content, status, {"X-Error-Code": code, "X-Error-Message": message})

    # ------------------------------------------------------------------ who may do what

    def user(self) -> str | None:
        """The name behind the token; None without one. A token nobody has is refused, as the Hub does everywhere."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in (WRITER, READER):
            raise Refused(401, "", "Invalid credentials in Authorization header")
        return "owner" if token else None

    def check_may_write(self, owner: str) -> None:
        if self.user() is None:
            raise Refused(401, "", "Unauthorized")
        if READER in self.headers["Authorization"] or owner not in ("owner", "club"):
            raise Refused(403, "", f"You don't have the rights to write under the namespace {owner}")

    def existing(self, name: str) -> Path:
        """The folder of a repository that whoever asks may see."""
        folder = self.hub.root / name
        is_private = self.hub.visibility.get(name) == "private"
        if not folder.is_dir() or (is_private and self.user() is None):
            raise Refused(401, "RepoNotFound", "Repository not found")
        return folder

    # ------------------------------------------------------------------ the API

    def api(self, parts: list[str], body: bytes) -> object:
        match parts:
            case ["whoami-v2"]:
                if self.user() is None:
                    raise Refused(401, "", "Unauthorized")
                return {"type": "user", "name": "owner", "orgs": [{"name": "club"}], "auth": {"type": "access_token"}}
            case ["validate-yaml"]:
                return {"errors": [], "warnings": []}
            case ["repos", "create"]:
                return self.create(json.loads(body))
            case [kind, owner, name, "auth-check", "write"] if kind in KINDS:
                self.existing(f"{kind}/{owner}/{name}")
                self.check_may_write(owner)
                return {}
            case [kind, owner, name, "preupload", _] if kind in KINDS:
                self.check_may_write(owner)
                folder = self.existing(f"{kind}/{owner}/{name}")
                return {"files": [self.upload_mode(folder, file) for file in json.loads(body)["files"]]}
            case [kind, owner, name, "commit", _] if kind in KINDS:
                self.check_may_write(owner)
                return self.commit(f"{kind}/{owner}/{name}", [json.loads(line) for line in body.splitlines()])
            case [kind, owner, name, *rest] if kind in KINDS and rest[:1] in ([], ["revision"], ["tree"]):
                return self.describe(f"{kind}/{owner}/{name}", is_listing=rest[:1] == ["tree"])
        raise Refused(404, "", "no such endpoint")

    def create(self, wanted: dict) -> dict[str, str]:
        self.check_may_write(wanted["organization"])
        kind = f"{wanted.get('type', 'model')}s"
        name = f"{kind}/{wanted['organization']}/{wanted['name']}"
        url = f"{self.hub.url}/{name.removeprefix('models/')}"
        if (self.hub.root / name).is_dir():
            raise Refused(409, "", "You already created this repository", url)
        (self.hub.root / name).mkdir(parents=True)
        self.hub.visibility[name] = wanted.get("visibility", "public")
        return {"url": url}

    def describe(self, name: str, is_listing: bool) -> object:
        base = self.existing(name)
        files = sorted(path for path in base.rglob("*") if path.is_file())
        names = [path.relative_to(base).as_posix() for path in files]
        if is_listing:
            return [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": _blob_sha1(path.read_bytes())}
                for name, path in zip(names, files, strict=True)
            ]
        return {
            "id": name.split("/", 1)[1],
            "sha": self.hub.sha(name),
            "private": self.hub.visibility.get(name) == "private",
            "siblings": [{"rfilename": name} for name in names],
        }

    # ------------------------------------------------------------------ uploads

    def upload_mode(self, folder: Path, file: dict) -> dict:
        """How a file is to be sent, and the content that is there already."""
        path, is_lfs = folder / file["path"], file["path"].endswith(LFS_SUFFIXES)
        oid = None
        if path.is_file():
            oid = _sha256(path) if is_lfs else _blob_sha1(path.read_bytes())
        mode = "lfs" if is_lfs else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def lfs_batch(self, batch: dict) -> dict:
        assert batch["operation"] == "upload" and batch["hash_algo"] == "sha256"
        if self.user() is None:
            raise Refused(401, "", "Unauthorized")
        upload = f"{self.hub.url}/lfs"
        objects = [
            {"oid": wanted["oid"], "size": wanted["size"], "actions": {"upload": {"href": f"{upload}/{wanted['oid']}"}}}
            for wanted in batch["objects"]
        ]
        return {"transfer": "basic", "objects": objects}

    def store(self, oid: str, content: bytes) -> None:
        """What a PUT brings; its address is the right to bring it, and nothing but its content fits there."""
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refused(400, "", "the content is not what was announced")
        (self.hub.root / ".lfs").mkdir(exist_ok=True)
        (self.hub.root / ".lfs" / oid).write_bytes(content)
        self.reply(b"", 200, {})

    def commit(self, name: str, lines: list[dict]) -> dict[str, str]:
        """All files of a commit, or, where one was never uploaded, none."""
        folder = self.existing(name)
        added, removed = {}, []
        for line in lines[1:]:
            value = line["value"]
            match line["key"]:
                case "file":
                    added[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    stored = self.hub.root / ".lfs" / value["oid"]
                    if not stored.is_file():
                        raise Refused(400, "", f"{value['path']} was never uploaded")
                    added[value["path"]] = stored.read_bytes()
                case "deletedFile" | "deletedFolder":
                    removed.append(folder / value["path"])
                case other:
                    raise Refused(400, "", f"cannot {other}")
        for path in removed:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path, content in added.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        self.hub.commits.append(lines[0]["value"]["summary"])
        oid = self.hub.sha(name)
        return {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid, "hookOutput": ""}

    # ------------------------------------------------------------------ downloads

    def download(self, parts: list[str]) -> None:
        """`[datasets/]<owner>/<name>/resolve/<revision>/<path>`"""
        kind, parts = ("datasets", parts[1:]) if parts[0] == "datasets" else ("models", parts)
        if len(parts) < 5 or parts[2] != "resolve":
            raise Refused(404, "EntryNotFound", "Entry not found")
        name = f"{kind}/{parts[0]}/{parts[1]}"
        path = self.existing(name).joinpath(*parts[4:])
        if not path.is_file():
            raise Refused(404, "EntryNotFound", "Entry not found")
        if self.command == "GET":
            self.hub.seen.append(path.name)
        self.reply(path.read_bytes(), 200, {"ETag": f'"{_sha256(path)}"', "X-Repo-Commit": self.hub.sha(name)})

    # ------------------------------------------------------------------ answers

    def reply_json(self, value: object) -> None:
        self.reply(json.dumps(value).encode(), 200, {"Content-Type": "application/json"})

    def reply(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            if value:
                self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *words: object) -> None:
        """Says nothing."""


@contextmanager
def local_hub(root: Path) -> Iterator[LocalHub]:
    """Serves the repositories below `root` on a free port until it is left."""
    hub = LocalHub(root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
