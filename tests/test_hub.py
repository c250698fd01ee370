"""Where a model's files come from: folders, huggingface_hub's cache, and a hub on this machine.

The hub is a small HTTP server that answers what snapshot_download asks and writes down which
files were fetched. huggingface_hub reads its settings when it is imported, so whatever needs
other settings runs in a process of its own.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import fake_hub
import forge
import pytest

import mamba_np
from mamba_np.checkpoint import locate_model
from mamba_np.errors import FileMissingError, UnsafeFileError
from mamba_np.hub import CONFIG_FILES, HubOptions, locate, pinned, split_hub_options

OFFLINE = "local_files_only"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """In this process nothing may be asked of the real hub."""

    def refuse(*_, **__):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("socket.socket.connect", refuse)


# --- folders ------------------------------------------------------------------------------------


def test_a_folder_wins_over_a_hub_name(tmp_path, monkeypatch):
    forge.write_config(tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    assert locate("owner/name", CONFIG_FILES) == Path("owner/name")
    assert locate(tmp_path / "owner", CONFIG_FILES) == tmp_path / "owner"


def test_a_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "m").mkdir()
    assert locate("~/m", CONFIG_FILES) == tmp_path / "m"


def test_a_subfolder_of_a_folder(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    options = HubOptions(subfolder="a/b")
    assert locate(tmp_path, CONFIG_FILES, options) == tmp_path / "a" / "b"
    with pytest.raises(FileMissingError, match="subfolder"):
        locate(tmp_path, CONFIG_FILES, HubOptions(subfolder="c"))


@pytest.mark.parametrize("subfolder", ["..", "a/../..", "/etc", "a\\..\\b", "a\0b"])
def test_a_subfolder_stays_inside(tmp_path, subfolder):
    with pytest.raises(UnsafeFileError, match="subfolder"):
        locate(tmp_path, CONFIG_FILES, HubOptions(subfolder=subfolder))


@pytest.mark.parametrize(
    "name",
    [
        *("./absent", "../absent", "/absent/model", "~/absent", "a/b/c", "absent/", "", "a\\b"),
        *("C:model", "https://huggingface.co/owner/model", "a\0b"),
    ],
)
def test_a_path_that_leads_nowhere_is_not_asked_of_the_hub(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileMissingError, match="found no such folder"):
        locate(name, CONFIG_FILES)
    with pytest.raises(FileMissingError, match="found no such folder"):
        locate(Path(name or "absent"), CONFIG_FILES)


def test_a_file_in_place_of_its_folder(tmp_path):
    folder = forge.write_model(tmp_path / "m")
    with pytest.raises(FileMissingError, match=r"model\.safetensors: expected the folder.*m'"):
        locate(folder / "model.safetensors", CONFIG_FILES)


def test_splitting_options():
    hub, rest = split_hub_options({"revision": "v1", "dtype": "float32", "token": False})
    assert hub == HubOptions(revision="v1", token=False)
    assert rest == {"dtype": "float32"}


# --- huggingface_hub's cache --------------------------------------------------------------------


@pytest.fixture
def cached(tmp_path):
    """A cache that holds a model under the name owner/model, and the options to use it."""
    fake_hub.publish(tmp_path / "hub", "owner/model", forge.write_shards(tmp_path / "m"))
    return partial(HubOptions, cache_dir=tmp_path / "hub", local_files_only=True)


@pytest.mark.parametrize("revision", [None, "main", fake_hub.COMMIT])
def test_a_cached_model_needs_no_network(cached, revision):
    folder = locate_model("owner/model", cached(revision=revision))
    assert folder.name == fake_hub.COMMIT
    options = {"cache_dir": cached().cache_dir, "local_files_only": True, "revision": revision}
    model = mamba_np.MambaForCausalLM.from_pretrained("owner/model", **options)
    assert model.num_parameters() == sum(a.size for a in forge.tensors().values())


def test_further_files_come_from_the_same_revision(cached):
    folder = locate("owner/model", CONFIG_FILES, cached())
    assert pinned(folder, cached()).revision == fake_hub.COMMIT
    inner = pinned(folder / "a" / "b", cached(subfolder="a/b"))
    assert inner.revision == fake_hub.COMMIT
    local = cached(revision="v1")
    assert pinned(folder.parent.parent / "blobs", local) == local


@pytest.mark.parametrize(("name", "revision"), [("owner/other", None), ("owner/model", "v9")])
def test_what_is_not_cached_says_how_to_get_it(cached, name, revision):
    with pytest.raises(FileMissingError) as caught:
        locate(name, CONFIG_FILES, cached(revision=revision))
    message = str(caught.value)
    assert message.startswith(f"{name}: ")
    assert OFFLINE in message
    assert f"hf download {name}{' --revision v9' if revision else ''}" in message


@pytest.mark.parametrize("name", ["-bad", "a--b", "owner/na me", "owner/" + "x" * 100, "a..b"])
def test_names_that_no_hub_model_can_have(cached, name):
    with pytest.raises(FileMissingError, match="no hub model can have that name"):
        locate(name, CONFIG_FILES, cached())


# --- a hub --------------------------------------------------------------------------------------

COMMIT = "ab" * 20


class Hub(ThreadingHTTPServer):
    """Serves folders as repositories; ``fetched`` lists the files whose content was read."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.fetched, self.tokens = {}, [], set()
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer(body=True)

    def do_HEAD(self):
        self.answer(body=False)

    def answer(self, body):
        self.server.tokens.add(self.headers.get("Authorization"))
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self.api("/".join(parts[2:4]), parts[4:])
        elif parts[2:3] == ["resolve"]:
            self.file("/".join(parts[:2]), parts[3], "/".join(parts[4:]), body)
        else:
            self.send(404, b"", {})

    def api(self, name, rest):
        repository = self.server.repositories.get(name)
        if name == "owner/gated":
            self.send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif name == "owner/broken":
            self.send(418, b"{}", {})
        elif repository is None:
            self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif rest[:1] == ["revision"] and rest[1] not in ("main", COMMIT):
            self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif rest[:1] == ["tree"]:
            files = [path for path in sorted(repository.rglob("*")) if path.is_file()]
            tree = [
                {
                    "type": "file",
                    "path": path.relative_to(repository).as_posix(),
                    "size": path.stat().st_size,
                    "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
                }
                for path in files
            ]
            self.json(tree)
        else:
            self.json({"id": name, "sha": COMMIT, "siblings": []})

    def file(self, name, revision, path, body):
        data = (self.server.repositories[name] / path).read_bytes()
        if body:
            self.server.fetched.append(path)
        etag = hashlib.sha1(data).hexdigest()
        self.send(200, data if body else b"", {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, data)

    def json(self, value):
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, status, body, headers, content=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body if content is None else content)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    server = Hub()
    home = tmp_path_factory.mktemp("hub")
    whole = forge.write_model(home / "single")
    forge.write_torch_model(whole)
    (whole / "generation_config.json").write_text("{}")
    (whole / "original").mkdir()
    (whole / "original" / "model.safetensors").write_bytes(b"not needed")
    (whole / "README.md").write_text("not needed")
    (whole / "code.py").write_text("not needed")
    shards = forge.write_shards(home / "sharded")
    (shards / "adapter_model.safetensors").write_bytes(b"not needed")
    pickled = forge.write_torch_model(home / "pickled")
    inner = home / "nested"
    forge.write_model(inner / "small")
    forge.write_model(inner)
    unsafe = forge.write_config(home / "unsafe")
    forge.write_index(unsafe, {"backbone.norm_f.weight": "../../secret.safetensors"})
    server.repositories = {
        "owner/single": whole,
        "owner/sharded": shards,
        "owner/pickled": pickled,
        "owner/nested": inner,
        "owner/unsafe": unsafe,
        "owner/config": forge.write_config(home / "config"),
    }
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


PROGRAM = """
import json, sys
import mamba_np
name, options = sys.argv[1], json.loads(sys.argv[2])
try:
    model = mamba_np.MambaForCausalLM.from_pretrained(name, **options)
    print(json.dumps(["loaded", float(model.params.embeddings.sum())]))
except mamba_np.errors.MambaError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


def load(home, endpoint, name, environment=None, **options):
    """Load a model in another process; return (what was printed, what was reported)."""
    settings = os.environ | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **(environment or {}),
    }
    for variable in {"HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"} - (environment or {}).keys():
        settings.pop(variable, None)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, name, json.dumps(options)],
        env=settings,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


SUM = float(forge.tensors()["backbone.embeddings.weight"].sum())


@pytest.mark.parametrize(
    ("name", "options", "files"),
    [
        (
            "owner/single",
            {},
            {"config.json", "generation_config.json", "model.safetensors"},
        ),
        (
            "owner/sharded",
            {},
            {"config.json", "model.safetensors.index.json"}
            | {f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)},
        ),
        ("owner/pickled", {}, {"config.json", "pytorch_model.bin"}),
        (
            "owner/nested",
            {"subfolder": "small", "revision": COMMIT},
            {"small/config.json", "small/model.safetensors"},
        ),
    ],
)
def test_only_the_needed_files_are_fetched_and_only_once(hub, tmp_path, name, options, files):
    hub.fetched.clear()
    (status, total), progress = load(tmp_path, hub.url, name, **options)
    assert status == "loaded"
    assert total == pytest.approx(SUM)
    assert sorted(hub.fetched) == sorted(files)
    assert "%|" in progress  # huggingface_hub's bars
    hub.fetched.clear()
    offline, _ = load(tmp_path, hub.url, name, {"HF_HUB_OFFLINE": "1"}, **options)
    assert offline == ["loaded", total]
    assert hub.fetched == []


def test_the_token_is_passed_on(hub, tmp_path):
    hub.tokens.clear()
    load(tmp_path, hub.url, "owner/single", token="hf_secret")
    assert hub.tokens == {"Bearer hf_secret"}


@pytest.mark.parametrize(
    ("name", "options", "kind", "parts"),
    [
        ("owner/absent", {}, "FileMissingError", ("found neither", "token")),
        ("owner/gated", {}, "FileMissingError", ("restricted access", "hf auth login")),
        ("owner/single", {"revision": "v9"}, "FileMissingError", ("revision 'v9'",)),
        ("owner/broken", {}, "FileMissingError", ("cannot be reached", "418")),
        ("owner/config", {}, "FileMissingError", ("model.safetensors",)),
        ("owner/unsafe", {}, "UnsafeFileError", ("secret.safetensors",)),
    ],
)
def test_what_the_hub_refuses_is_explained(hub, tmp_path, name, options, kind, parts):
    (found, message), _ = load(tmp_path, hub.url, name, **options)
    assert found == kind
    assert name in message.replace("--", "/")  # a cache's folder is models--owner--name
    for part in parts:
        assert part in message


def test_no_network_is_explained(tmp_path):
    (found, message), _ = load(tmp_path, "http://127.0.0.1:9", "owner/model")
    assert found == "FileMissingError"
    assert message.startswith("owner/model: ")
    assert "cannot be reached" in message


def test_offline_by_environment_is_explained(tmp_path):
    environment = {"HF_HUB_OFFLINE": "1"}
    (found, message), _ = load(tmp_path, "http://127.0.0.1:9", "owner/model", environment)
    assert found == "FileMissingError"
    assert "HF_HUB_OFFLINE" in message
    assert "hf download owner/model" in message
