"""Models in folders and on the hub: saved, fetched by name from a stand-in, pushed."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import numpy as np
import pytest
import torch
from finetuned_support import answers, base_models, finetuned, saved
from huggingface_hub import constants
from support import CLASSES, DIMS, small_model

from awtpn import AWTPN, Predictor
from awtpn.cli import main
from awtpn.inference.export import export
from awtpn.metrics.classification import summarize
from awtpn.model.files import CARD_FILE, CHECKSUMS_FILE, README_FILE, WEIGHTS_FILE, find_model
from awtpn.model.models import load_model
from awtpn.model.sharing.hub import upload

FILES = {CARD_FILE, WEIGHTS_FILE, README_FILE, CHECKSUMS_FILE}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_saved_model_loads_with_all_that_its_card_told(tmp_path: Path) -> None:
    model = small_model(dtype=torch.float32)
    model.set_statistics("audio", torch.full((DIMS["audio"],), 3.0), torch.full((DIMS["audio"],), 2.0))
    model.record = {"dataset": "meld", "results": {"test": summarize(np.eye(3, dtype=int), CLASSES)}}
    model.save_pretrained(tmp_path / "m")
    assert {p.name for p in (tmp_path / "m").iterdir()} == {
        CARD_FILE,
        WEIGHTS_FILE,
        README_FILE,
        CHECKSUMS_FILE,
    }
    again = AWTPN.from_pretrained(tmp_path / "m")
    assert again.card() == model.card()
    assert not again.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert "of meld" in (tmp_path / "m" / README_FILE).read_text()


def test_a_run_is_its_best_checkpoint(tmp_path: Path) -> None:
    for name in ("best", "latest"):
        model = small_model(dtype=torch.float32)
        model.record = {"dataset": name}
        model.save_pretrained(tmp_path / "run" / "checkpoints" / name)
    assert AWTPN.from_pretrained(tmp_path / "run").record == {"dataset": "best"}
    assert Predictor.from_pretrained(tmp_path / "run").model.record == {"dataset": "best"}
    latest = AWTPN.from_pretrained(str(tmp_path / "run" / "checkpoints" / "latest"))
    assert latest.record == {"dataset": "latest"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, list[str]]]:
    """A stand-in for the hub's file API: serves a folder as USER/MODEL, and notes what is asked."""
    folder, asked = tmp_path / "served", []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(False)

        def do_GET(self) -> None:
            self.answer(True)

        def answer(self, with_body: bool) -> None:
            asked.append(self.path)
            user, name, resolve, revision, file = (self.path.strip("/").split("/", 4) + [""] * 5)[:5]
            path = folder / file
            known = (user, name, resolve) == ("someone", "emotions", "resolve") and path.is_file()
            if not known or revision not in ("main", COMMIT):
                self.send_response(404)
                missing = (user, name) == ("someone", "emotions")
                self.send_header("X-Error-Code", "EntryNotFound" if missing else "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = path.read_bytes()
            self.send_response(200)
            self.send_header("ETag", f'"{file.replace("/", "-")}-{len(content)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if with_body:
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    small_model(dtype=torch.float32).save_pretrained(folder)
    yield folder, asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_model_of_the_hub_is_loaded_by_its_name(hub: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, asked = hub
    cache = tmp_path / "cache"
    model = AWTPN.from_pretrained("someone/emotions", cache_dir=cache)
    local = AWTPN.from_pretrained(folder)
    for name, tensor in local.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert any(path.endswith(f"resolve/{COMMIT}/{WEIGHTS_FILE}") for path in asked), "files of one commit"
    assert Predictor.from_pretrained("someone/emotions").model.classes == CLASSES
    assert find_model(Path("someone/emotions")).name == COMMIT
    asked.clear()
    AWTPN.from_pretrained("someone/emotions", cache_dir=cache, local_files_only=True)
    assert asked == [], "what was fetched needs no network"


def test_a_whole_export_of_the_hub_comes_with_its_encoders(
    hub: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, asked = hub
    shutil.rmtree(folder)
    bases = base_models(tmp_path / "bases")
    model = finetuned(bases)
    saved(model, tmp_path / "run")
    export(tmp_path / "run", folder, merge=True)
    shutil.rmtree(tmp_path / "bases")
    cache = tmp_path / "cache"
    loaded = load_model("someone/emotions", cache_dir=cache)
    np.testing.assert_allclose(answers(loaded), answers(model), atol=1e-5)
    wanted = f"resolve/{COMMIT}/encoders/audio/model.safetensors"
    assert any(path.endswith(wanted) for path in asked), "files of one commit"
    asked.clear()
    load_model("someone/emotions", cache_dir=cache, local_files_only=True)
    assert asked == [], "what was fetched needs no network"
    assert list(Predictor.from_pretrained("someone/emotions").model.encoders) == ["audio", "video"]
    (folder / "encoders" / "audio" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="could not be downloaded from the hub"):
        load_model("someone/emotions", cache_dir=tmp_path / "other")


def test_checksums_of_the_hub_are_looked_at_where_there_are_any(
    hub: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, _ = hub
    (folder / CARD_FILE).write_text((folder / CARD_FILE).read_text() + " ")
    with pytest.raises(ValueError, match=r"config\.json is not the file that was exported"):
        AWTPN.from_pretrained("someone/emotions", cache_dir=tmp_path / "one")
    (folder / CHECKSUMS_FILE).unlink()
    assert AWTPN.from_pretrained("someone/emotions", cache_dir=tmp_path / "two").classes == CLASSES
    AWTPN.from_pretrained("someone/emotions", cache_dir=tmp_path / "two", local_files_only=True)


def test_a_folder_wins_over_the_hub(hub: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, asked = hub
    (tmp_path / "someone").mkdir()
    folder.rename(tmp_path / "someone" / "emotions")
    AWTPN.from_pretrained("someone/emotions")
    assert asked == []


def test_neither_folder_nor_hub_is_told_with_the_fix(hub: tuple[Path, list[str]], tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"someone/else is not a folder on this machine, .* from the hub: .*hf auth login"
    ):
        AWTPN.from_pretrained("someone/else")
    with pytest.raises(ValueError, match=r"nowhere is not a run, checkpoint or export: .* USER/MODEL"):
        AWTPN.from_pretrained("nowhere")


@pytest.mark.parametrize(
    "place",
    [
        "runs/demo",
        "./runs/demo",
        "data/model",
        "here/demo",
        "some/model.safetensors",
        "a/b/c",
        "demo",
        "../x/y",
    ],
)
def test_the_hub_is_not_asked_about_a_path(
    place: str, hub: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "clip.wav").touch()
    told = r"is not a run, checkpoint or export: it does not exist \(a model on .* USER/MODEL\)"
    for look_up in (find_model, AWTPN.from_pretrained, Predictor.from_pretrained):
        with pytest.raises(ValueError, match=told):
            look_up(Path(place))
    with pytest.raises(ValueError, match=told):
        AWTPN.from_pretrained("./someone/emotions")
    for words in (["predict", place, "clip.wav"], ["export", place, "out"]):
        with pytest.raises(SystemExit, match=told):
            main(words)
    assert hub[1] == []


@pytest.mark.parametrize(("place", "meant"), [("runs/demo", "runs/demo-2"), ("runs/mled", "runs/meld")])
def test_a_run_that_was_probably_meant_is_named(
    place: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("demo-1", "demo-2", "meld"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"it does not exist; did you mean {meant}\? \(a model on"):
        find_model(Path(place))


def test_inputs_that_do_not_exist_are_named_before_the_model_is_looked_up(
    hub: tuple[Path, list[str]],
) -> None:
    for words in (["clip"], ["clip.wav"], ["clip#test"], ["1.wav", "2.wav"]):
        with pytest.raises(SystemExit, match=f"error: {', '.join(words)} does not exist: INPUT is"):
            main(["predict", "someone/emotions", *words])
    assert hub[1] == []


def test_a_hub_that_cannot_be_reached_is_told_at_once(
    hub: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = AWTPN.from_pretrained("someone/emotions", cache_dir=tmp_path / "cache").card()
    with socket.socket() as closed:  # bound, and nothing listens
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits and tries again"))
        told = r"someone/other is not a folder .* from the hub: \[Errno 111\] Connection refused \(check"
        with pytest.raises(ValueError, match=told):
            find_model(Path("someone/other"))
        again = AWTPN.from_pretrained("someone/emotions", cache_dir=tmp_path / "cache")
    assert again.card() == cached, "what was downloaded before is used"


class Recorded(huggingface_hub.HfApi):
    """HfApi whose two writing calls are noted instead of sent."""

    calls: ClassVar[list[dict[str, Any]]] = []

    def create_repo(self, repo_id: str, **kwargs: Any) -> Any:  # type: ignore[override]
        self.calls.append({"repo_id": repo_id, **kwargs})
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, *, folder_path: Path, **kwargs: Any) -> Any:  # type: ignore[override]
        files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        self.calls.append({"files": files, **kwargs})


def test_models_are_pushed_with_their_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recorded, "calls", [])
    monkeypatch.setattr(huggingface_hub, "HfApi", Recorded)
    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Recorded)
    model = small_model(dtype=torch.float32)
    model.push_to_hub("someone/emotions", private=True)
    made, uploaded = Recorded.calls
    assert made["repo_id"] == "someone/emotions"
    assert made["private"]
    assert uploaded["files"].keys() == FILES
    assert json.loads(uploaded["files"][CARD_FILE]) == model.card()

    Recorded.calls.clear()
    model.save_pretrained(tmp_path / "m")
    main(["push", str(tmp_path / "m"), "someone/emotions"])
    made, uploaded = Recorded.calls
    assert not made["private"]
    assert uploaded["files"].keys() == FILES
    with pytest.raises(SystemExit, match="write USER/MODEL"):
        main(["push", str(tmp_path / "m"), "emotions"])
    (tmp_path / "m" / README_FILE).unlink()
    with pytest.raises(SystemExit, match=r"has no README\.md: write it with awtpn export"):
        main(["push", str(tmp_path / "m"), "someone/emotions"])


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (401, r" \(log in with `hf auth login` and a token with write access\)$"),
        (403, r" \(log in with `hf auth login` and a token with write access\)$"),
        (400, r"[^()]+$"),
        (None, r" \(can this machine reach http://127\.0\.0\.1:\d+\?\)$"),
    ],
)
def test_a_push_that_fails_says_why(
    status: int | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status or 500)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        if status is None:
            server.server_close()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(ValueError, match="^someone/m: the upload to the hub failed: .*" + told):
            upload(tmp_path, "someone/m", token="hf_a")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
