"""Services get a run's settings and scalars, no secret, and can neither stop training nor delay it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from trackers_support import (
    mlflow_folder,
    offline,
    points_at_mlflow,
    points_at_wandb,
    run_ids,
    wandb_settings,
)

from awtpn.config.schema import Config
from awtpn.tracking import services, trackers
from awtpn.tracking.services import Service, check_installed, mlflow_name
from awtpn.tracking.trackers import RECORD, Tracker, Trackers, open_trackers
from shards.storage import credentials

PASSWORD, KEY, SIGNATURE = "battery-staple", "hush-hush-hush", "c2lnbmF0dXJl"


class Fake:
    """A service that notes its calls; `log` does what a test says."""

    def __init__(self, log: Callable[[], None] = lambda: None) -> None:
        self.calls: list[Any] = []
        self.given: list[Any] = []
        self.act = log

    def open(self, project: str, run_dir: Path, run_id: str | None, settings: Mapping[str, Any]) -> Service:
        self.given = [project, run_id, settings, threading.current_thread()]
        return Service(run_id or "new", "here", self.log, lambda: self.calls.append("end"))

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        assert threading.current_thread() is self.given[3], "MLflow keeps its run by thread"
        self.calls.append((step, dict(scalars)))
        self.act()


@pytest.fixture(autouse=True)
def forgetting() -> Iterator[None]:
    yield
    credentials.forget_secrets()


def config(*names: str) -> Config:
    made = Config()
    made.track.to = ["tensorboard", *names]
    return made


def use(monkeypatch: pytest.MonkeyPatch, **fakes: Fake) -> None:
    monkeypatch.setattr(trackers, "OPENERS", {name: fake.open for name, fake in fakes.items()})


def warnings(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]


# --- Calls ---------------------------------------------------------------------------------------


def test_scalars_come_in_order_and_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    use(monkeypatch, wandb=fake)
    opened = open_trackers(config("wandb"), tmp_path, resumes=False)
    for step in range(1, 100):
        opened.log(step, {"a": step, "none": None, "b": float("nan")})
    opened.log(100, {"none": None})
    opened.close()
    assert fake.calls == [*((step, {"a": float(step)}) for step in range(1, 100)), "end"]
    assert fake.given[:2] == ["awtpn", None]
    assert fake.given[2]["optim.lr"] == Config().optim.lr


def test_without_services_nothing_is_opened(tmp_path: Path) -> None:
    opened = open_trackers(config(), tmp_path, resumes=False)
    opened.log(1, {"a": 1.0})
    opened.close()
    Trackers().log(1, {"a": 1.0})
    assert not list(tmp_path.iterdir())


def test_a_resumed_run_continues_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for resumes, expected in ((False, None), (True, "new"), (False, None)):
        fake = Fake()
        use(monkeypatch, mlflow=fake)
        open_trackers(config("mlflow"), tmp_path, resumes).close()
        assert fake.given[1] == expected
        assert json.loads((tmp_path / RECORD).read_text()) == {"mlflow": "new"}


@pytest.mark.parametrize("text", ["", "[1]", '{"wandb": 3}', "{"])
def test_a_damaged_record_begins_new_runs(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / RECORD).write_text(text)
    fake = Fake()
    use(monkeypatch, wandb=fake)
    open_trackers(config("wandb"), tmp_path, resumes=True).close()
    assert fake.given[1] is None
    assert json.loads((tmp_path / RECORD).read_text()) == {"wandb": "new"}


# --- Failures ------------------------------------------------------------------------------------


def test_a_service_that_fails_is_left_alone_after_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    credentials.remember_secrets(f"s3://me:{PASSWORD}@bucket")

    def gone() -> None:
        raise ConnectionError(f"no route\nto host, {PASSWORD}")

    broken, whole = Fake(gone), Fake()
    use(monkeypatch, wandb=broken, mlflow=whole)
    opened = open_trackers(config("wandb", "mlflow"), tmp_path, resumes=False)
    for step in range(1, 6):
        opened.log(step, {"a": 1.0})
        opened.trackers[0].wait_until_sent()
    opened.close()
    assert len(broken.calls) == 1
    assert len(whole.calls) == 6
    [line] = warnings(capsys)
    assert "wandb gets no more of this run: no route to host, ***; training continues" in line


def test_a_service_that_hangs_does_not_make_training_wait(capsys: pytest.CaptureFixture[str]) -> None:
    released = threading.Event()
    fake = Fake(released.wait)  # type: ignore[arg-type]
    tracker = Tracker("mlflow", lambda: fake.open("p", Path(), None, {}))
    tracker.wait_until_open()
    try:
        for step in range(1, 4):
            tracker.log(step, {"a": 1.0})
        assert not warnings(capsys)
        tracker.close(timeout=0.05)
        [line] = warnings(capsys)
        assert "mlflow gets no more of this run: it did not take everything in 0 s" in line
    finally:
        released.set()


def test_calls_do_not_pile_up_without_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers, "MOST_WAITING", 3)
    released = threading.Event()
    fake = Fake(released.wait)  # type: ignore[arg-type]
    tracker = Tracker("mlflow", lambda: fake.open("p", Path(), None, {}))
    tracker.wait_until_open()
    try:
        for step in range(1, 20):
            tracker.log(step, {"a": 1.0})
        [line] = warnings(capsys)
        assert "4 calls wait for it" in line
        tracker.close()
        assert not warnings(capsys)
    finally:
        released.set()
    assert len(fake.calls) <= 1


def refuse(*_: Any) -> Service:
    raise RuntimeError("no key configured;\nlog in")


def test_a_service_that_does_not_open_ends_the_first_start_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = Fake()
    monkeypatch.setattr(trackers, "OPENERS", {"wandb": refuse, "mlflow": fake.open})
    told = r"track\.to: wandb could not be opened: no key configured; log in; check its variables, or leave"
    with pytest.raises(ValueError, match=told):
        open_trackers(config("mlflow", "wandb"), tmp_path, resumes=False)
    assert fake.calls == ["end"]
    opened = open_trackers(config("mlflow", "wandb"), tmp_path, resumes=True)
    [line] = warnings(capsys)
    assert "log in" in line
    assert line.endswith("training continues without it")
    opened.log(1, {"a": 1.0})
    opened.close()
    assert fake.calls == ["end", (1, {"a": 1.0}), "end"]


def test_a_service_that_never_answers_is_given_up() -> None:
    released = threading.Event()
    tracker = Tracker("wandb", released.wait)  # type: ignore[arg-type]
    try:
        with pytest.raises(ValueError, match="wandb could not be opened: no answer in 0 s"):
            tracker.wait_until_open(0.05)
    finally:
        released.set()


def test_a_missing_package_is_named_with_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "find_spec", lambda name: None if name == "wandb" else "there")
    check_installed(["mlflow"])
    with pytest.raises(ValueError, match=r"wandb, which is not installed: pip install .*\[trackers\]"):
        check_installed(["mlflow", "wandb"])


# --- The services themselves, without a network --------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("loss/total", "loss/total"),
        ("val/w-F1", "val/w-F1"),
        ("val_f1/so & so", "val_f1/so _ so"),
        ("val_f1/..", "val_f1/_"),
        ("val_f1/a//b", "val_f1/a/_/b"),
        ("x" * 300, "x" * 250),
    ],
)
def test_mlflow_takes_every_tag(tag: str, name: str) -> None:
    assert mlflow_name(tag) == name


@pytest.fixture
def of_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A run whose data is behind credentials, which its command line has, too."""
    for name, value in offline(tmp_path).items():
        monkeypatch.setenv(name, value)
    for name in ("WANDB_PROJECT", "WANDB_DIR", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    url = f"s3://me:{PASSWORD}@bucket/corpus?X-Amz-Signature={SIGNATURE}"
    monkeypatch.setattr("sys.argv", ["train.py", "--data.train", url, "--data.storage_options.secret", KEY])
    PartialState(cpu=True)  # Accelerate's trackers log by it
    made = config()
    made.data.train, made.data.storage_options = url, {"secret": KEY}
    made.remember_secrets()
    return made


def start(made: Config, run_dir: Path, steps: range, resumes: bool) -> dict[str, str]:
    opened = open_trackers(made, run_dir, resumes)
    for step in steps:
        opened.log(step, {"loss/total": 1 / step, "val_f1/so & so": 0.5})
    opened.log(2, {"results/test_w-F1": 0.25 * len(steps)})
    opened.close()
    return run_ids(run_dir)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_run_and_its_continuation_are_one(name: str, of_secrets: Config, tmp_path: Path) -> None:
    pytest.importorskip(name)
    made, run_dir = of_secrets, tmp_path / "mine"
    run_dir.mkdir()
    made.track.to = ["tensorboard", name]
    first = start(made, run_dir, range(1, 4), resumes=False)
    made.optim.lr = 0.5  # MLflow keeps the settings of the first start
    assert start(made, run_dir, range(4, 6), resumes=True) == first

    expected = [(step, 1 / step) for step in range(1, 6)]
    if name == "wandb":
        points, summary = points_at_wandb(run_dir, first[name])
        assert points["loss/total"] == expected
        assert [step for step, _ in points["val_f1/so & so"]] == [1, 2, 3, 4, 5]
        assert summary["results/test_w-F1"] == 0.5
        settings = wandb_settings(run_dir, first[name])
        assert settings["optim.lr"] == 0.5
    else:
        points = points_at_mlflow(tmp_path, first[name])
        assert points["loss/total"] == expected
        assert [step for step, _ in points["val_f1/so _ so"]] == [1, 2, 3, 4, 5]
        assert points["results/test_w-F1"] == [(2, 0.75), (2, 0.5)]
        files = [*(mlflow_folder(tmp_path, first[name]) / "params").iterdir()]
        settings = {file.name: file.read_text() for file in files}
        assert settings["optim.lr"] == str(Config().optim.lr)
    assert settings["data.train"] == "s3://bucket/corpus"
    assert not any("storage_options" in key for key in settings)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 5
    for path in written:
        text = path.read_bytes()
        assert not [secret for secret in (PASSWORD, KEY, SIGNATURE) if secret.encode() in text], path


class FakeMlflow(BaseHTTPRequestHandler):
    """As much of MLflow's server as a run needs, which forgets everything."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        experiment = {"experiment_id": "1", "name": "awtpn", "lifecycle_stage": "active"}
        info = {"run_id": "r1", "run_uuid": "r1", "experiment_id": "1", "status": "RUNNING"}
        info |= {"lifecycle_stage": "active", "artifact_uri": "file:///nowhere"}
        answers = {
            "experiments/search": {"experiments": [experiment]},
            "runs/create": {"run": {"info": info}},
        }
        answer = next((x for end, x in answers.items() if self.path.endswith(end)), {})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: Any) -> None:
        pass


def test_a_server_that_goes_away_is_told_of_once(
    of_secrets: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    of_secrets.track.to = ["tensorboard", "mlflow"]
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeMlflow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        opened = open_trackers(of_secrets, tmp_path, resumes=False)
        opened.log(1, {"loss/total": 1.0})
        opened.trackers[0].wait_until_sent()
        assert not warnings(capsys)
        assert run_ids(tmp_path) == {"mlflow": "r1"}
        server.shutdown()
    for step in range(2, 5):
        opened.log(step, {"loss/total": 1.0})
        opened.trackers[0].wait_until_sent()
    opened.close()
    [line] = warnings(capsys)
    assert "mlflow gets no more of this run: " in line
    assert "training continues" in line
