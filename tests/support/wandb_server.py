"""A small W&B server on 127.0.0.1 that the real wandb client talks to: GraphQL, file streams, files and artifacts.

It speaks what the client of wandb 0.31 asks for when it makes, resumes and finishes runs. `OPERATIONS` maps a GraphQL
operation to the method that answers it; a test with further needs (sweeps) subclasses `WandbServer` and extends it.
An operation that nobody answers gets an error reply, as from an older server, and is kept in `unanswered`.
"""

import base64
import json
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "tester"
API_KEY = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Run:
    """What the server knows of one run."""

    id: str
    project: str = ""
    entity: str = ENTITY
    fields: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    output: list[str] = field(default_factory=list)
    complete: bool = False
    exit_code: int | None = None

    def bucket(self) -> dict[str, Any]:
        project = {"id": f"project-{self.project}", "name": self.project}
        return {
            "id": f"internal-{self.id}",
            "name": self.id,
            "displayName": self.fields.get("displayName") or self.id,
            "description": self.fields.get("notes"),
            "config": json.dumps({key: {"value": value} for key, value in self.config.items()}),
            "wandbConfig": json.dumps({"t": 1}),
            "sweepName": self.fields.get("sweep"),
            "project": {**project, "entity": {"id": f"entity-{self.entity}", "name": self.entity}},
            "historyLineCount": len(self.history),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in self.history[-1:]]),
            "eventsTail": "[]",
            "summaryMetrics": json.dumps(self.summary),
            "tags": self.fields.get("tags") or [],
        }


class WandbServer:
    """`url` for WANDB_BASE_URL; `runs` by id; `die()` drops every connection and answers no more."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.uploads: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.unanswered: list[str] = []
        self.keys: set[str] = set()
        self.refuse_runs = False
        self.dead = threading.Event()
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"server_state": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        # A short poll, so that closing does not take half a second.
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def die(self) -> None:
        """From now on every connection is refused or cut."""
        self.close()

    def close(self) -> None:
        if self.dead.is_set():
            return
        self.dead.set()
        self._http.shutdown()
        self._http.server_close()

    def only_run(self) -> Run:
        (run,) = self.runs.values()
        return run

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The `data` of a reply; raises LookupError for an operation that this server does not know."""
        method: Callable[..., dict[str, Any]] = getattr(self, self.OPERATIONS[operation])
        with self.lock:
            return method(variables)

    def viewer(self, variables: dict[str, Any]) -> dict[str, Any]:
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        user = {"id": "user-1", "entity": ENTITY, "username": ENTITY, "email": "t@example.org", "flags": "{}"}
        return {"viewer": {**user, "teams": teams}}

    def server_features(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def upsert_run(self, variables: dict[str, Any]) -> dict[str, Any]:
        if self.refuse_runs:
            raise LookupError("permission denied")
        run_id = variables["name"]
        inserted = run_id not in self.runs
        run = self.runs.setdefault(run_id, Run(id=run_id))
        run.project = variables.get("project") or run.project
        run.entity = variables.get("entity") or run.entity
        run.fields.update({key: value for key, value in variables.items() if value is not None})
        if variables.get("config"):
            run.config.update({key: item.get("value") for key, item in json.loads(variables["config"]).items()})
        return {"upsertBucket": {"bucket": run.bucket(), "inserted": inserted}}

    def resume_status(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(variables["name"])
        model = {"id": "project-1", "name": variables["project"], "entity": {"id": "entity-1", "name": ENTITY}}
        return {"model": {**model, "bucket": run.bucket() if run else None}}

    def create_run_files(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = variables["run"]
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{run}/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": f"internal-{run}", "uploadHeaders": [], "files": files}}

    def artifact_type(self, variables: dict[str, Any]) -> dict[str, Any]:
        # No artifact of that name is there yet.
        return {"project": {"artifact": None}}

    def create_artifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        self.artifacts.append({**variables["input"], "committed": False})
        sequence = {"id": "sequence-1", "latestArtifact": None}
        return {
            "createArtifact": {
                "artifact": {"id": f"artifact-{len(self.artifacts)}", "state": "PENDING", "artifactSequence": sequence}
            }
        }

    def create_manifest(self, variables: dict[str, Any]) -> dict[str, Any]:
        url = f"{self.url}/upload/{variables['artifactID']}/{variables['name']}"
        file = {"id": "file-1", "uploadUrl": url, "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": "manifest-1", "file": file}}}

    def create_artifact_files(self, variables: dict[str, Any]) -> dict[str, Any]:
        edges = []
        for wanted in variables["input"]["artifactFiles"]:
            artifact, name = wanted["artifactID"], wanted["name"]
            place = {"storagePath": f"{artifact}/{name}", "uploadUrl": f"{self.url}/upload/{artifact}/{name}"}
            parts = {"uploadHeaders": [], "uploadMultipartUrls": None, "artifact": {"id": artifact}}
            edges.append({"node": {"id": "file-2", "name": name, "displayName": name, **place, **parts}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def commit_artifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        artifact = self.artifacts[int(variables["artifactID"].removeprefix("artifact-")) - 1]
        artifact["committed"] = True
        return {"commitArtifact": {"artifact": {"digest": artifact["digest"]}}}

    OPERATIONS = {
        "Viewer": "viewer",
        "ServerFeaturesQuery": "server_features",
        "UpsertBucket": "upsert_run",
        "RunResumeStatus": "resume_status",
        "CreateRunFiles": "create_run_files",
        "ArtifactType": "artifact_type",
        "CreateArtifact": "create_artifact",
        "CreateArtifactManifest": "create_manifest",
        "CreateArtifactFiles": "create_artifact_files",
        "CommitArtifact": "commit_artifact",
    }

    def stream(self, run_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """Take one file-stream message: history rows, the summary, and in the last one the exit code."""
        with self.lock:
            run = self.runs[run_id]
            for name, chunk in (body.get("files") or {}).items():
                lines = chunk["content"]
                if name == "wandb-history.jsonl":
                    # The client repeats a message whose reply it missed, so the offset counts.
                    run.history[chunk["offset"] :] = [json.loads(line) for line in lines]
                elif name == "output.log":
                    run.output[chunk["offset"] :] = lines
                elif name == "wandb-summary.json" and lines:
                    run.summary = json.loads(lines[-1])
            if body.get("complete"):
                run.complete, run.exit_code = True, body.get("exitcode")
        return {"exitcode": None, "limits": {}}

    def store(self, path: str, content: bytes) -> None:
        with self.lock:
            self.uploads[path] = content
            run_id, _, name = path.partition("/")
            if run_id in self.runs:
                self.runs[run_id].files[name] = content


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: WandbServer

    def do_POST(self) -> None:
        body = self._body()
        state = self.server_state
        if state.dead.is_set():
            self.close_connection = True
            return
        state.keys.add(base64.b64decode(self.headers.get("Authorization", "Basic ").split()[-1] + "==").decode()[4:])
        if self.path == "/graphql":
            self._graphql(json.loads(body))
        elif match := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
            self._reply(state.stream(match[1], json.loads(body)))
        else:
            self._reply({"error": "not found"}, status=404)

    def do_PUT(self) -> None:
        body = self._body()
        if self.server_state.dead.is_set():
            self.close_connection = True
            return
        self.server_state.store(self.path.removeprefix("/upload/"), body)
        self._reply({})

    def _graphql(self, request: dict[str, Any]) -> None:
        state = self.server_state
        match = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
        operation = request.get("operationName") or (match[1] if match else "")
        state.requests.append(operation)
        try:
            self._reply({"data": state.answer(operation, request.get("variables") or {})})
        except LookupError as error:
            state.unanswered.append(operation)
            self._reply({"errors": [{"message": f"{operation}: {error!r}"}], "data": None})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _reply(self, data: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle(self) -> None:
        # A client that ends cuts its idle connections.
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the tests look at the state."""
