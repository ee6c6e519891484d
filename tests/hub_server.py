"""A small Hub for the tests: what huggingface_hub needs of one to upload and download models, on the loopback.

It keeps repositories in memory, speaks the LFS protocol ("basic" transfers) and, as the Hub does, refuses cards and
files of evaluation results that cannot be read; for that it asks huggingface_hub's own parsers.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash


TOKEN, USER, OTHER = "hf_loopback", "someone", "nobody"
LARGE = ("*.safetensors", "*.onnx", "*.bin")


@dataclass
class Repository:
    """Branches point to commits, a commit is a dictionary of whole files."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        name = hashlib.sha1(repr((len(self.commits), branch)).encode()).hexdigest()
        self.commits[name] = files
        self.branches[branch] = name
        return name


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, **more: str):
        self.status, self.message, self.code, self.more = status, message, code, more


class Hub:
    """The state of the server.

    Attributes:
        requests: Method and path of all requests so far.
        failing: Pattern of a path -> how many requests to it still fail.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.failing: dict[str, int] = {}
        self.url = ""

    def files(self, repo_id: str, branch: str = "main") -> dict[str, bytes]:
        repository = self.repositories[repo_id]
        return repository.commits[repository.branches[branch]]

    def count(self, method: str, pattern: str) -> int:
        return sum(method == done and re.search(pattern, path) is not None for done, path in self.requests)

    # --- what is asked for, one method a route ---------------------------------------------------------------------

    def create(self, body) -> dict:
        owner = body.get("organization") or USER
        if owner != USER:
            raise Refused(403, "You don't have the rights to create a model under this namespace")
        name = f"{owner}/{body['name']}"
        if name in self.repositories:
            raise Refused(409, f"You already created this model repo: {name}", url=f"{self.url}/{name}")
        repository = self.repositories[name] = Repository(body.get("visibility") == "private" or body.get("private"))
        repository.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return {"url": f"{self.url}/{name}", "name": name, "id": name}

    def info(self, name: str, revision: str) -> dict:
        sha = self.resolve(name, revision)
        repository = self.repositories[name]
        siblings = [{"rfilename": path} for path in sorted(repository.commits[sha])]
        return {"id": name, "sha": sha, "private": repository.private, "siblings": siblings, "tags": []}

    def tree(self, name: str, revision: str, folder: str = "") -> list[dict]:
        files = self.repositories[name].commits[self.resolve(name, revision)]
        if folder and not any(path.startswith(f"{folder}/") for path in files):
            raise Refused(404, f"{folder} does not exist", "EntryNotFound")
        return [entry(path, content) for path, content in files.items() if path.startswith(folder)]

    def preupload(self, name: str, revision: str, body) -> dict:
        files = self.repositories[name].commits[self.resolve(name, revision)]
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if is_large(file["path"]) else "regular",
                    "shouldIgnore": False,
                    "oid": remote_oid(file["path"], files[file["path"]]) if file["path"] in files else None,
                }
                for file in body["files"]
            ]
        }

    def batch(self, body) -> dict:
        objects = []
        for wanted in body["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.objects:
                answer["actions"] = {"upload": {"href": f"{self.url}/objects/{wanted['oid']}"}}
            objects.append(answer)
        return {"transfer": "basic", "objects": objects}

    def put(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refused(422, "the content has another hash")
        self.objects[oid] = content

    def commit(self, name: str, revision: str, lines: list[dict]) -> dict:
        repository = self.repositories[name]
        if revision not in repository.branches:
            raise Refused(404, f"no branch {revision}", "RevisionNotFound")
        header, files = lines[0]["value"], dict(self.files(name, revision))
        if header.get("parentCommit") not in (None, repository.branches[revision]):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.objects:
                    raise Refused(400, f"{value['path']} was not uploaded")
                files[value["path"]] = self.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise Refused(400, f"unknown operation {line['key']}")
        for path, content in files.items():
            problem = problem_of(path, content)
            if problem:
                raise Refused(400, f"{path}: {problem}")
        sha = repository.commit(revision, files)
        return {"commitUrl": f"{self.url}/{name}/commit/{sha}", "commitOid": sha, "pullRequestUrl": None}

    def branch(self, name: str, branch: str, body) -> dict:
        repository = self.repositories[name]
        if branch in repository.branches:
            raise Refused(409, "Reference already exists")
        start = body.get("startingPoint", "main")
        repository.branches[branch] = self.resolve(name, start)
        return {}

    def resolve(self, name: str, revision: str) -> str:
        repository = self.repositories[name]
        sha = repository.branches.get(revision, revision)
        if sha not in repository.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    def validate(self, body) -> dict:
        problem = problem_of("README.md", body["content"].encode())
        if problem:
            raise Refused(400, problem)
        return {"errors": [], "warnings": []}


def is_large(path: str) -> bool:
    return any(fnmatch(path, pattern) for pattern in LARGE)


def remote_oid(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if is_large(path) else git_hash(content)


def entry(path: str, content: bytes) -> dict:
    found = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
    if is_large(path):
        sha = hashlib.sha256(content).hexdigest()
        found["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 130}
    return found


def problem_of(path: str, content: bytes) -> str | None:
    """What the Hub would say against a file, by huggingface_hub's parsers."""
    try:
        if path == "README.md":
            data = ModelCard(content.decode()).data
            if data.license is not None and not re.fullmatch(r"[a-z0-9.-]+", data.license):
                return '"license" must be a string of the list of licenses'
            if data.model_name and not data.eval_results:
                return '"model-index" has no results'
            for result in data.eval_results or ():
                if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", result.dataset_type):
                    return f'"model-index" has the data set {result.dataset_type!r}'
                float(result.metric_value)
        elif fnmatch(path, ".eval_results/*.yaml"):
            entries = parse_eval_result_entries(yaml.safe_load(content))
            for found in entries:
                validate_repo_id(found.dataset_id)
                float(found.value)
            if len({(found.dataset_id, found.task_id) for found in entries}) < len(entries):
                return "a task has two values"
    except Exception as error:  # of the parsers, each with classes of its own
        return f"{type(error).__name__}: {error}"
    return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.requests.append((self.command, path))
        try:
            for pattern, left in self.hub.failing.items():
                if left and re.search(pattern, path):
                    self.hub.failing[pattern] -= 1
                    raise Refused(500, "the server stumbled")
            self.route(path, body)
        except Refused as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message} if refusal.code else {}
            content = {"error": refusal.message, "errors": [{"message": refusal.message}], **refusal.more}
            self.send(content, refusal.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def route(self, path: str, body: bytes) -> None:
        hub = self.hub
        if match := re.fullmatch(r"/objects/(\w+)", path):
            return self.send(hub.put(match[1], body) or {})
        if path == "/api/validate-yaml":
            return self.send(hub.validate(json.loads(body)))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ("", TOKEN) or (not token and (self.command in ("POST", "PUT") or path == "/api/whoami-v2")):
            raise Refused(401, "Invalid username or password.")
        if path == "/api/whoami-v2":
            return self.send({"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": {"role": "write"}}})
        if path == "/api/repos/create":
            return self.send(hub.create(json.loads(body)))
        routes = {
            r"/api/models/([^/]+/[^/]+)": lambda name: hub.info(name, "main"),
            r"/api/models/([^/]+/[^/]+)/revision/([^/]+)": hub.info,
            r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?": lambda name, rev, folder: hub.tree(
                name, rev, folder or ""
            ),
            r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)": lambda *place: hub.preupload(*place, json.loads(body)),
            r"/api/models/([^/]+/[^/]+)/branch/([^/]+)": lambda *place: hub.branch(*place, json.loads(body or "{}")),
            r"/api/models/([^/]+/[^/]+)/commit/([^/]+)": lambda *place: hub.commit(
                *place, [json.loads(line) for line in body.splitlines()]
            ),
            r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch": lambda name: hub.batch(json.loads(body)),
        }
        for pattern, call in routes.items():
            if match := re.fullmatch(pattern, path):
                self.check_access(match[1], token)
                return self.send(call(*match.groups()))
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.check_access(match[1], token)
            return self.send_file(*match.groups())
        raise Refused(404, "no such page")

    def check_access(self, name: str, token: str) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not token):
            raise Refused(401 if not token else 404, "Repository not found", "RepoNotFound")

    def send_file(self, name: str, revision: str, path: str) -> None:
        sha = self.hub.resolve(name, revision)
        files = self.hub.repositories[name].commits[sha]
        if path not in files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        content = files[path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{remote_oid(path, content)}"'}
        self.send(content, headers=headers)

    def send(self, content, status: int = 200, headers=None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": len(data), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *arguments) -> None:
        pass


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    """A Hub that listens until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
