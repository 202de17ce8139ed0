"""One table of secrets, looked for at every way out of cvtrain: files, console, log, loggers, errors."""

import logging

import pytest

from cvtrain.config.errors import ConfigError
from cvtrain.config.redact import redact
from cvtrain.config.schema.logger import MLflowConfig, WandbConfig
from cvtrain.config.text import display_message
from cvtrain.loggers import build as loggers_build
from cvtrain.loggers.base import RunLogger
from cvtrain.report.json_file import write_json
from cvtrain.runtime.console import ConsoleHandler, DisplayFormatter

# What is secret, and a text in which it stands.
SECRETS = {
    "hugging face": ("hf_" + "AbCdEfGh" * 4, "{}"),
    "github": ("ghp_" + "a1" * 18, "see {}"),
    "google": ("AIza" + "Sy9_-" * 7, "{}"),
    "aws key id": ("AKIA" + "ABCD1234" * 2, "{}"),
    "stripe": ("sk_" + "live_" + "a1B2" * 6, "{}"),
    "jwt": ("eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJSMeK", "{}"),
    "password in a url": ("pa55-word", "https://me:{}@host/x"),
    "token in a url": ("q1w2e3r4", "https://host/x?token={}&n=1"),
    "azure signature": ("Zm9vYmFy%3D", "https://a.blob/x?sv=2024&sig={}&se=1"),
    "aws signature": ("9f86d081884c", "https://b.s3/x?X-Amz-Signature={}"),
    "aws security token": ("IQoJb3JpZ2lu", "https://b.s3/x?X-Amz-Security-Token={}&b=2"),
    "google signature": ("4e07408562be", "https://storage/x?X-Goog-Signature={}"),
    "cloudfront signature": ("abcDEF-ghi~", "https://d.cloudfront/x?Signature={}&Key-Pair-Id=K1"),
    "bearer": ("abcdefgh12345", "Authorization: Bearer {}"),
    "setting": ("hush-hush", "logger.wandb.api_key={}"),
    "database": ("s3/cr?et", "postgresql://u:{}@db/runs"),
}
TABLE = pytest.mark.parametrize(
    ("secret", "text"), [(secret, text.format(secret)) for secret, text in SECRETS.values()], ids=SECRETS
)


@TABLE
def test_texts_and_configs(secret, text):
    assert secret not in redact(text)
    assert secret not in str(redact({"a": [text, {"b": text}], "notes": text}))
    assert secret not in display_message(f"line\n{text}")


@TABLE
def test_console_and_log(secret, text, capsys):
    record = logging.LogRecord("cvtrain", logging.INFO, "", 0, "reading %s", (text,), None)
    handler = ConsoleHandler()
    handler.setFormatter(DisplayFormatter("%(message)s"))
    handler.emit(record)
    assert secret not in capsys.readouterr().out
    record.details = text
    assert secret not in DisplayFormatter("%(asctime)s %(message)s", with_details=True).format(record)
    try:
        raise OSError(text)
    except OSError as error:
        record.exc_info = (type(error), error, error.__traceback__)
    assert secret not in DisplayFormatter().format(record)


@TABLE
def test_errors(secret, text):
    assert secret not in str(ConfigError("data.root", text, f"{text} is not there", f"set data.root={text}"))
    assert secret not in str(ConfigError("logger.password", f"{secret} and more", "must be a number"))


@TABLE
def test_summary_file(secret, text, tmp_path):
    write_json(tmp_path / "summary.json", {"name": text, "nested": {"list": [text]}})
    assert secret not in (tmp_path / "summary.json").read_text()


class Recorder:
    name = "recorder"

    def __init__(self, **arguments):
        self.seen = [arguments]

    def log_summary(self, values):
        self.seen.append(values)


@TABLE
def test_loggers(secret, text, tmp_path, monkeypatch):
    made = []
    for name in ("WandbLogger", "MLflowLogger"):
        monkeypatch.setattr(loggers_build, name, lambda **arguments: made.append(arguments) or Recorder(**arguments))
    wandb = WandbConfig(name=text, group=text, job_type=text, notes=text, tags=[text])
    mlflow = MLflowConfig(run_name=text, experiment=text)
    loggers_build._wandb(wandb, tmp_path, redact({"a": text}), text, {})
    loggers_build._mlflow(mlflow, redact({"a": text}), text, {})
    recorder = Recorder()
    RunLogger([recorder]).log_summary({"name": text})
    assert len(made) == 2
    assert secret not in str(made)
    assert secret not in str(recorder.seen)
