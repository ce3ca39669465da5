"""A stand-in for the Hugging Face Hub: its HTTP answers for repositories in memory, on a port of this machine."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubStandIn:
    """Repositories by name, each a dictionary of files, and what was asked for.

    Attributes:
        repositories: owner/name -> name of a file -> content.
        private: names of the repositories that were made private.
        sizes: (repository, file) -> size in the list of files, where it is not that of the content.
        requests: method and path of each request.
        refused: whether nobody may write.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.sizes: dict[tuple[str, str], int] = {}
        self.requests: list[str] = []
        self.refused = False

    def listed(self, name: str) -> list[dict]:
        """Return the files of a repository with their sizes."""
        files = self.repositories[name].items()
        sizes = {file: self.sizes.get((name, file), len(content)) for file, content in files}
        return [{"path": file, "size": size, "oid": _oid(self.repositories[name][file])} for file, size in sizes.items()]


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def standing_in() -> Iterator[tuple[HubStandIn, str]]:
    """Give a stand-in and its address."""
    state = HubStandIn()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": state}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield state, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: HubStandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self._parts()
        if parts[:2] == ["api", "models"]:
            name, rest = "/".join(parts[2:4]), parts[4:]
            if name not in self.state.repositories:
                return self._missing("RepoNotFound")
            if rest[:1] == ["tree"]:
                return self._json([{"type": "file", **file} for file in self.state.listed(name)])
            siblings = [
                {"rfilename": file["path"], "size": file["size"], "blobId": file["oid"]} for file in self.state.listed(name)
            ]
            return self._json({"id": name, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings})
        name, file = "/".join(parts[:2]), "/".join(parts[4:])
        if file not in self.state.repositories.get(name, {}):
            return self._missing("EntryNotFound")
        content = self.state.repositories[name][file]
        return self._answer(content, {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": COMMIT})

    def do_POST(self) -> None:
        parts, body = self._parts(), self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.state.refused or not self.headers.get("Authorization"):
            return self._answer(b"{}", {}, status=401)
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.state.repositories.setdefault(name, {})
            private = asked.get("private") or asked.get("visibility") == "private"
            self.state.private |= {name} if private else set()
            return self._json({"url": f"http://{self.headers['Host']}/{name}"})
        if parts == ["api", "validate-yaml"]:
            return self._json({"errors": [], "warnings": []})
        name = "/".join(parts[2:4])
        if parts[4] == "preupload":
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            return self._json({"files": files})
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                value = entry["value"]
                self.state.repositories[name][value["path"]] = base64.b64decode(value["content"])
        url = f"http://{self.headers['Host']}/{name}/commit/{COMMIT}"
        return self._json({"success": True, "commitUrl": url, "commitOid": COMMIT, "hookOutput": ""})

    def _parts(self) -> list[str]:
        path = unquote(urlsplit(self.path).path)
        self.state.requests.append(f"{self.command} {path}")
        return path.strip("/").split("/")

    def _missing(self, code: str) -> None:
        self._answer(b"{}", {"X-Error-Code": code, "X-Error-Message": "not found"}, status=404)

    def _json(self, value: object) -> None:
        self._answer(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, content: bytes, headers: dict[str, str], *, status: int = 200) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
