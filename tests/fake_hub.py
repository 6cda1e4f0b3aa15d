"""A hub on this machine: answers the requests of huggingface_hub from folders, and records them."""

import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class FakeHub:
    """Attributes: ``root`` has one folder ``owner/name`` per repository; ``requests`` are (method, path)."""

    def __init__(self, root, server):
        self.root, self.requests = root, []
        self.address = f"http://127.0.0.1:{server.server_address[1]}"

    def add(self, repository, files):
        """``files``: {name: bytes}."""
        for name, content in {".gitattributes": b"*.pth filter=lfs\n", **files}.items():
            path = self.root / repository / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def downloads(self):
        """Names of the files that were sent whole."""
        return [path.rpartition("/resolve/")[2].partition("/")[2] for method, path in self.requests
                if method == "GET" and "/resolve/" in path]  # fmt: skip

    def files(self, repository):
        folder = self.root / repository
        return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}

    def commit(self, repository):
        text = repr([(name, path.read_bytes()) for name, path in self.files(repository).items()])
        return hashlib.sha1(text.encode()).hexdigest()


def sha1(file):
    return hashlib.sha1(file.read_bytes()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer(with_body=True)

    def do_HEAD(self):
        self.answer(with_body=False)

    def answer(self, with_body):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        parts = path.strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        repository = "/".join(parts[2:4] if is_api else parts[:2])
        if not (self.hub.root / repository).is_dir():
            # As the real hub answers who is not logged in.
            self.send(
                401, b"Invalid username or password.", {"X-Error-Message": "Invalid username or password."}, with_body
            )
        elif is_api and parts[4:5] == ["revision"]:
            self.send_json({"id": repository, "modelId": repository, "sha": self.hub.commit(repository)}, with_body)
        elif is_api and parts[4:5] == ["tree"]:
            files = self.hub.files(repository).items()
            entries = [
                {"type": "file", "path": name, "size": len(file.read_bytes()), "oid": sha1(file)}
                for name, file in files
            ]
            self.send_json(entries, with_body)
        elif parts[2:3] == ["resolve"] and "/".join(parts[4:]) in self.hub.files(repository):
            file = self.hub.files(repository)["/".join(parts[4:])]
            self.send(
                200,
                file.read_bytes(),
                {"ETag": f'"{sha1(file)}"', "X-Repo-Commit": self.hub.commit(repository)},
                with_body,
            )
        else:
            self.send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body)

    def send_json(self, value, with_body):
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"}, with_body)

    def send(self, status, content, headers, with_body):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)


@contextlib.contextmanager
def running_hub(root):
    """Yields a ``FakeHub`` that answers until the end of the block."""
    handler = type("Handler", (_Handler,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        handler.hub = FakeHub(root, server)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield handler.hub
        finally:
            server.shutdown()
            thread.join()
