"""No credential in anything that a command prints, logs, raises, records or starts, in any spelling."""

from __future__ import annotations

import base64
import contextlib
import functools
import http.server
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import fsspec
import pytest
import yaml
from corpora_support import write_tree
from fsspec.implementations.memory import MemoryFileSystem
from support import pack_corpus

from awtpn.cli import main as awtpn
from awtpn.config.entry_point import data_output, redact_output, run_command
from awtpn.config.private_words import hand_over, hands_on_environment, restore_private_words
from awtpn.distributed import accelerate_launch
from awtpn.experiments import runner
from awtpn.experiments.ablation import read_variants
from awtpn.experiments.sweep import grid
from shards.storage.credentials import redact, redact_command, remember_command, remember_secrets, secrets_in

SECRET = "hunter2+mark/ed=9"
TOKEN = "tokenMarked2hunter"
HEADERS = {"X-Api-Key": TOKEN}
USER = "me"
SMALL = ["--model.shared_dim", "8", "--train.epochs", "1", "--train.global_batch_size", "16"]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.storage.retry.FIRST_PAUSE_S", 0.001)


def forms(secret: str) -> list[bytes]:
    """A secret as it is, encoded for URLs, and in base64 wherever it may begin in what was encoded."""
    found = [secret, quote(secret, safe=""), quote(secret)]
    for shift in range(3):
        coded = base64.b64encode(b"x" * shift + secret.encode()).decode()
        found.append(coded[4 if shift else 0 : len(coded) // 4 * 4 - 4])  # without what neighbors change
    return [form.encode() for form in found]


def assert_nowhere(content: bytes, place: object) -> None:
    for secret in (SECRET, TOKEN):
        for form in forms(secret):
            at = content.find(form)
            assert at < 0, f"{place}: {content[max(0, at - 200) : at + 80]!r}"


def assert_in_no_file(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            assert_nowhere(path.read_bytes(), path)
        assert_nowhere(path.name.encode(), path)


def said(command: Callable[[list[str]], object], *words: object) -> tuple[Any, str]:
    """Exit status (or the line that goes there) and all that a command wrote; neither shows a secret."""
    out, status = io.StringIO(), None
    handler = logging.StreamHandler(out)  # of a library, made before the command begins
    logging.getLogger().addHandler(handler)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                run_command(command, [str(word) for word in words])
            except SystemExit as error:
                status = error.code
            except Exception:
                # What Python does at the end of a process.
                sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
                status = 1
    finally:
        logging.getLogger().removeHandler(handler)
    assert_nowhere(f"{status}\n{out.getvalue()}".encode(), words)
    return status, out.getvalue()


def commands(words: list[str]) -> None:
    awtpn(words)


# --- Commands that work --------------------------------------------------------------------------


class Guarded(http.server.SimpleHTTPRequestHandler):
    """Files for those who know the password and the token."""

    def do_GET(self) -> None:
        given = self.headers.get("Authorization", ""), self.headers.get("X-Api-Key")
        wanted = "Basic " + base64.b64encode(f"{USER}:{SECRET}".encode()).decode(), TOKEN
        if given != wanted:
            self.send_error(401)
        elif "Range" in self.headers:
            first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            content = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            self.end_headers()
            self.wfile.write(content[first : last + 1])
        else:
            super().do_GET()

    do_HEAD = do_GET  # type: ignore[assignment]

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a folder behind a password, with a dataset `ds` and the tars `raw` of others."""
    folder = tmp_path_factory.mktemp("www")
    pack_corpus(folder / "ds")
    (folder / "raw").mkdir()
    shutil.copy(folder / "ds" / "train-000000.tar", folder / "raw")
    handler = functools.partial(Guarded, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://{USER}:{quote(SECRET, safe='')}@127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


@pytest.mark.usefixtures("no_accelerator")
def test_commands_that_work_show_nothing(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, cache, run_dir = f"{server}/ds", tmp_path / "cache", tmp_path / "runs" / "one"
    options = json.dumps({"headers": HEADERS})
    stored = ["--storage_options", options]
    trained = ["--data.train", url, "--data.cache_dir", cache, "--data.storage_options", options, *SMALL]

    def works(command: Callable[[list[str]], object], *words: object) -> str:
        status, text = said(command, *words)
        assert status is None, f"{words}: {status}\n{text}"
        return text

    works(commands, "train", *trained, "--run.dir", run_dir)
    works(commands, "train", *trained, "--run.dir", run_dir, "--train.epochs", "2")  # goes on
    evaluated = ["--checkpoint", run_dir, "--cache_dir", cache, *stored]
    works(commands, "evaluate", *evaluated, "--data", url, "--out", tmp_path / "figures.json")
    works(commands, "evaluate", *evaluated, f"--data={url}", "--predictions", tmp_path / "answers.jsonl")
    for action in ("info", "preview", "verify"):
        works(commands, "shards", action, url, "--cache_dir", cache, *stored)
    sizes = ["--nodes", "1", "--gpus-per-node", "1", "--global-batch", "4"]
    works(commands, "shards", "simulate", url, *sizes, "--cache_dir", cache, f"--stor={options}")
    works(commands, "shards", "index", f"{server}/raw", "--cache_dir", cache, "--s", options)
    decoded = "memory://me:hunter2%2Bmark%2Fed%3D9@secrets/decoded"
    works(commands, "shards", "index", f"{server}/raw", "--cache_dir", cache, *stored, "--out", decoded)
    works(commands, "predict", run_dir, url, *stored, "--out", tmp_path / "answers.jsonl")
    works(commands, "doctor", "--data", url, *stored)
    config = tmp_path / "memory.yaml"
    config.write_text("model: {shared_dim: 8}\n")
    memory = ["--memory", config, "--data.train", url, "--data.storage_options.headers", json.dumps(HEADERS)]
    works(commands, "doctor", *memory)
    out = f"memory://me:{SECRET}@secrets/packed"
    works(commands, "pack", "-", out, "--format", "demo", "--storage_options", f'{{"secret": "{SECRET}"}}')
    out = f"memory://me:{SECRET}@secrets/extracted"
    extracted = [write_tree(tmp_path / "tree"), out, "--video", "none"]
    works(commands, "extract", *extracted, "--storage_options", f'{{"secret": "{SECRET}"}}')

    started: list[list[str]] = []
    popen = subprocess.Popen

    class Watched(popen):  # type: ignore[misc, valid-type]
        def __init__(self, command: list[str], **settings: Any) -> None:
            started.append(command)
            super().__init__(command, **settings)

    monkeypatch.setattr(runner.subprocess, "Popen", Watched)
    folder = tmp_path / "ablations"
    works(commands, "cross-validate", *trained, "--dir", folder / "base", "--no-baseline")
    page = (folder / "base" / "report.md").read_text()
    assert "--data.storage_options '***'" in page
    assert f"--data.train {redact(url)}" in page
    variants = folder / "variants.yaml"
    variants.write_text("no dropout: {model.dropout: 0.0}\n")

    def trained_before(_: Any, command: list[str], log: Path, *__: Any) -> int:
        started.append(command)
        shutil.copytree(folder / "base" / "seed-0", log.parent, dirs_exist_ok=True)
        settings = yaml.safe_load((log.parent / "config.yaml").read_text())
        settings["model"]["dropout"] = 0.0
        (log.parent / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
        return 0

    monkeypatch.setattr(runner._Queue, "run", trained_before)
    works(commands, "ablate", *trained, "--dir", folder, "--variants", variants)
    assert len(started) == 2
    assert_nowhere(repr(started).encode(), "the command lines of child processes")

    works(commands, "report", run_dir, "--markdown", tmp_path / "report.md")
    works(commands, "export", run_dir, tmp_path / "export")
    works(commands, "compare", run_dir, run_dir)
    assert_in_no_file(tmp_path)
    memory_files = fsspec.filesystem("memory")
    for path in memory_files.find(""):
        # Where it lies was asked for; a server would not call it so.
        assert_nowhere(memory_files.cat_file(path), path)
    manifest = json.loads(memory_files.cat_file("/me:hunter2%2Bmark%2Fed%3D9@secrets/decoded/manifest.json"))
    assert "memory://secrets/decoded" in json.dumps(manifest["provenance"])


# --- Commands that fail --------------------------------------------------------------------------

URLS = [
    f"memory://me:{quote(SECRET, safe='')}@nowhere/ds",
    f"memory://me:{SECRET}@nowhere/ds",
    f"http://{TOKEN}@127.0.0.1:9/ds",
    f"http://{TOKEN}:@127.0.0.1:9/ds#dev",
    f"http://{TOKEN}:x-oauth-basic@127.0.0.1:9/ds",
    f"http://127.0.0.1:9/ds?token={TOKEN}",
    f"http://127.0.0.1:9/ds#access_token={TOKEN}",
    f"gopher://me:{SECRET}@nowhere/ds",
    f"zip://x::http://me:{TOKEN}@127.0.0.1:9/ds",
]
SPELLINGS = [
    ["OPTIONS", json.dumps({"secret": SECRET})],
    ["OPTIONS=" + json.dumps({"client_kwargs": {"headers": {"Authorization": f"Bearer {TOKEN}"}}})],
    ["OPTIONS", json.dumps({"client_kwargs": {"auth": ["me", SECRET]}})],
    ["OPTIONS", json.dumps({"endpoint_url": f"http://me:{TOKEN}@127.0.0.1:9"})],
    ["OPTIONS", f"{{secret: {TOKEN}"],
    ["OPTIONS", f"[{TOKEN}]"],
    ["OPTIONS", TOKEN],
    ["OPTIONS", "{key:", "abc,", "secret:", f"{TOKEN}}}"],
]
OF_TRAINING = [
    ["OPTIONS.secret", TOKEN],
    [f"OPTIONS.secret={SECRET}"],
    ["OPTIONS.client_kwargs.password", TOKEN],
    ["OPTIONS.client_kwargs", f"{{password: {TOKEN}}}"],
    ["OPTIONZ", f"{{password: {TOKEN}}}"],
    ["--data", json.dumps({"storage_options": {"secret": SECRET}})],
]


@pytest.fixture
def talkative(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system whose errors tell all they know, as those of libraries do."""
    encoded = base64.b64encode(f"me:{SECRET}".encode()).decode()
    text = f"refused {TOKEN}, {SECRET}, {quote(SECRET, safe='')}, Authorization: Basic {encoded} of it"

    def refuse(*_: Any, **__: Any) -> None:
        logging.getLogger("library").warning("%s", text)
        raise ConnectionError(text)

    for name in ("cat_file", "ls"):
        monkeypatch.setattr(MemoryFileSystem, name, refuse)


@pytest.mark.parametrize("url", URLS)
@pytest.mark.usefixtures("no_accelerator")
def test_urls_that_cannot_be_read(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if SECRET in url or quote(SECRET, safe="") in url:
        remember_secrets(storage_options={"secret": TOKEN})
        request.getfixturevalue("talkative")
    monkeypatch.setattr("shards.storage.retry.ATTEMPTS", 2)
    cache = ["--cache_dir", tmp_path / "cache"]
    for command, words in (
        (commands, ["train", "--data.train", url, "--run.dir", tmp_path / "run"]),
        (commands, ["train", f"--data.train={url}", "--run.resume", url]),
        (commands, ["cross-validate", "--data.train", url, "--by", "fold", "--dir", tmp_path / "cv"]),
        (commands, ["cross-validate", f"--data.test={url}", "--by", "fold", "--dir", tmp_path / "cv"]),
        (
            commands,
            ["ablate", "--data.train", url, "--by", "fold", "--dir", tmp_path / "ab", "--only", "AWM off"],
        ),
        (commands, ["evaluate", "--checkpoint", url, "--data", url]),
        (commands, ["doctor", "--data", url]),
        *((commands, ["shards", action, url, *cache]) for action in ("info", "verify", "preview", "index")),
        (commands, ["pack", "-", f"{url}#dev", "--format", "demo"]),
        (commands, ["pack", url, tmp_path / "d", "--format", "npz"]),
        (commands, ["predict", url, url]),
        (commands, ["export", url, url]),
        (commands, ["report", url]),
    ):
        status, _ = said(command, *words)
        assert status, words
    assert_in_no_file(tmp_path)


@pytest.mark.parametrize("spelling", [*SPELLINGS, *OF_TRAINING], ids=lambda words: words[0][:24])
@pytest.mark.usefixtures("no_accelerator", "talkative")
def test_options_in_every_spelling(spelling: list[str], tmp_path: Path) -> None:
    def spelled(name: str) -> list[str]:
        return [word.replace("OPTION", name, 1) if "OPTION" in word else word for word in spelling]

    # The file system tells both, so both have to be known.
    remember_secrets(storage_options={"both": [SECRET, TOKEN]})
    here = ["--data.train", "memory://nowhere/ds", *spelled("--data.storage_option")]
    here = [word.replace("--data.storage_optionS", "--data.storage_options") for word in here]
    assert said(commands, "train", *here, "--run.dir", tmp_path / "run")[0]
    assert said(commands, "cross-validate", *here, "--by", "fold", "--dir", tmp_path / "cv")[0]
    if spelling in SPELLINGS:
        for option in ("--storage_option", "--stor"):
            there = [word.replace(f"{option}S", "--storage_options") for word in spelled(option)]
            for words in (["shards", "info"], ["doctor", "--data"], ["pack", "-", "--format", "demo"]):
                assert said(commands, *words, "memory://nowhere/ds", *there)[0]
    assert_in_no_file(tmp_path)


@pytest.mark.usefixtures("no_accelerator")
def test_options_in_a_file(tmp_path: Path) -> None:
    config = tmp_path.with_name(f"{tmp_path.name}.yaml")
    for written in (
        f"data: {{train: 'http://me:{TOKEN}@127.0.0.1:x/ds', storage_options: {{secret: {TOKEN}}}}}",
        f"data: {{storage_options: [{TOKEN}]}}",
        f"data: {{storage_options: {TOKEN}}}",
        f"data: {{storage_options: {{secret: {TOKEN}}}, train: [{TOKEN}]}}",
    ):
        config.write_text(written)
        words = ["--config", config, "--run.dir", tmp_path / "run"]
        assert said(commands, "train", *words)[0]
        said(commands, "train", *words, "--print_config")
    assert_in_no_file(tmp_path)


def test_what_a_process_prints_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    remember_secrets(f"http://me:{SECRET}@host/x", {"token": TOKEN})
    text = f"{TOKEN} of http://me:{SECRET}@host/x"
    handler = logging.StreamHandler(sys.stderr)
    logging.getLogger("library").addHandler(handler)
    redact_output()
    redact_output()
    try:
        print(text, flush=True)
        print(text, file=sys.stderr)
        sys.stdout.writelines([text])
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn(text, stacklevel=1)
        try:
            try:
                raise OSError(text)
            except OSError as error:
                raise RuntimeError(text) from error
        except RuntimeError:
            logging.getLogger("library").exception("%s", text)
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]

        def fail() -> None:
            raise RuntimeError(text)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(threading, "excepthook", threading.__excepthook__)
            thread = threading.Thread(target=fail)
            thread.start()
            thread.join()
    finally:
        logging.getLogger("library").removeHandler(handler)
    captured = capsys.readouterr()
    for shown in captured:
        assert_nowhere(shown.encode(), "output")
        assert "http://host/x" in shown
    assert captured.err.count("RuntimeError: *** of http://host/x") == 3
    assert "test_credentials.py" in captured.err, "it is a traceback still"


def test_data_is_written_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    remember_secrets(storage_options={"password": "happy"})
    redact_output()
    print("happy", file=data_output())
    print("happy, unhappy")
    assert capsys.readouterr().out == "happy\n***, unhappy\n"


# --- Child processes -----------------------------------------------------------------------------


def test_words_with_secrets_travel_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--a", "1", f"--data.train=http://me:{SECRET}@h/x#dev", "--data.storage_options", "{a: b}"]
    words += ["--data.storage_options.key", "k", "--data", '{"storage_options": {"key": "k"}}', "--b=2"]
    public, private = hand_over(words)
    assert_nowhere(repr(public).encode(), "words")
    assert {word for word in public if word in words} == {
        "--a",
        "1",
        "--data.storage_options",
        "--data.storage_options.key",
        "--data",
        "--b=2",
    }
    for name, value in private.items():
        monkeypatch.setenv(name, value)
    assert restore_private_words(public) == words
    assert hand_over(["--a", "s3://bucket/x"]) == (["--a", "s3://bucket/x"], {})
    for name in private:
        monkeypatch.delenv(name)
    with pytest.raises(SystemExit, match="the launcher did not pass it on"):
        restore_private_words(public)


def test_a_launcher_by_ssh_hands_on_no_environment() -> None:
    assert hands_on_environment(["torchrun", "--nproc-per-node", "2"])
    assert hands_on_environment(["deepspeed", "--num_gpus", "2"])
    assert not hands_on_environment(["/usr/bin/deepspeed", "--hostfile=hosts"])


def test_ranks_that_are_missing_are_started_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(accelerate_launch, "asked_of_accelerate", lambda: accelerate_launch.Asked(2, 1, None))
    found: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *given: found.extend(given))
    accelerate_launch.start_missing_ranks(["train.py", "--data.train", f"http://me:{SECRET}@h/x"])
    _, argv, environment = found
    assert_nowhere(repr(argv).encode(), "words")
    assert environment[argv[-1]] == f"http://me:{SECRET}@h/x"


def test_what_is_recorded_by_name_may_hold_none(tmp_path: Path) -> None:
    for key in (f"data.train=http://me:{SECRET}@h/x,other", f"data.storage_options.key={TOKEN},b"):
        with pytest.raises(ValueError, match="hold credentials") as caught:
            grid([key])
        assert_nowhere(str(caught.value).encode(), "error")
    file = tmp_path / "variants.yaml"
    file.write_text(f"other: {{data.storage_options: {{key: {TOKEN}}}}}")
    with pytest.raises(ValueError, match=r"other: data\.storage_options holds credentials"):
        read_variants(file)


# --- One function --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET http://me:pass1234@h:80/x failed", "GET http://h:80/x failed"),
        ("GET http://tok@h/x, and s3://b/y", "GET http://h/x, and s3://b/y"),
        ("u 'https://h/x?X-Amz-Signature=abc&y=1#dev'", "u 'https://h/x?***#dev'"),
        ("https://h/x#access_token=abc", "https://h/x#***"),
        ("https://h/x?...: no query", "https://h/x?...: no query"),
        ("http:/me:pass1234@h/x", "http:/h/x"),
        ("https://u:pa?ss#w@h/d", "https://h/d"),
        ("'authorization': 'Bearer abc.def'", "'authorization': '***'"),
        ("x-api-key: abc", "x-api-key: ***"),
        ('{"password": "pass1234", "a": 1}', '{"password": "***", "a": 1}'),
        ("hf_abcdefghijklmnopqrstuvwxyz and hf_hub_download", "*** and hf_hub_download"),
        ("AKIAIOSFODNN7EXAMPLE", "***"),
        ('x --data.storage_options \'{"a": "b"}\' --c d', "x --data.storage_options *** --c d"),
        ("x --data.storage_options.key abc --c", "x --data.storage_options.key *** --c"),
        ("['--storage_options', '{\"a\": 1}', '--b']", "['--storage_options', ***, '--b']"),
        ("[--storage_options JSON] [--split NAME]", "[--storage_options JSON] [--split NAME]"),
        ("the token in data.storage_options (--storage_options), as", None),
        ("give data.test; the key 'a'; see https://example.org/a/b", None),
        ("hf://datasets/me/mine@main, http://h:8080/a@b, me@example.org", None),
    ],
)
def test_what_looks_like_a_secret(text: str, shown: str | None) -> None:
    assert redact(text) == (text if shown is None else shown)


def test_short_secrets_leave_texts_readable() -> None:
    remember_secrets("http://u:abc@h/x", {"key": "a", "secret": "pass", "password": 12345678, "anon": True})
    assert redact("a pass passes all; abc; True; 12345678") == "a *** passes all; abc; True; ***"


def test_what_is_no_secret_stays() -> None:
    options = {"endpoint_url": "http://store.example", "client_kwargs": {"region_name": "eu-west-1"}}
    options |= {"profile": "research", "username": "alice", "config_kwargs": {"signature_version": "s3v4"}}
    remember_secrets("sftp://alice@host/corpus", options)
    remember_secrets("abfs://container@account.dfs.core.windows.net/x")
    text = "alice of research at http://store.example in eu-west-1 s3v4 container corpus"
    assert redact(text) == text


def test_names_of_options_are_recognized() -> None:
    words = ["x", "--stor", '{"a": 1}', "--data.storage_options.a=1", "--storage-options", "v", "--select"]
    words += ['{"fold": 3}', "--data.streams", "4"]
    assert redact_command(words) == (
        "x --stor '***' '--data.storage_options.a=***' --storage-options '***' --select '{\"fold\": 3}' "
        "--data.streams 4"
    )


def test_a_command_that_is_cut_into_words() -> None:
    remember_command(["--storage_options", "{key:", "abcdefgh,", "secret:", "ijklmnop}", "s3://bucket/x"])
    assert redact("abcdefgh ijklmnop s3://bucket/x") == "*** *** s3://bucket/x"


def test_credentials_of_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {
        "AWS_SECRET_ACCESS_KEY": "hunter2hunter2",
        "TOKENIZERS_PARALLELISM": "anything-at-all",
        "MONKEY_MODE": "anything-at-all",
        "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    found = secrets_in()
    assert "hunter2hunter2" in found
    assert not {"anything-at-all", str(tmp_path)} & set(found)
