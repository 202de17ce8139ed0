"""Secrets go, everything else stays to the letter."""

import copy

import pytest

from cvtrain.config.redact import REDACTED, names_secret, redact

HEX = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    "key",
    ["api_key", "API_KEY", "WANDB_API_KEY", "logger.wandb.api_key", "+data.kwargs.token", "--hf-token", "accessToken",
     "password", "db_password", "client_secret", "AWS_SECRET_ACCESS_KEY", "Authorization", "http_auth", "credentials"],
)  # fmt: skip
def test_keys_that_name_a_secret(key: str) -> None:
    assert names_secret(key)
    assert redact({key: "x7-y8"}) == {key: REDACTED}
    assert redact(f"{key}=x7-y8 next=1") == f"{key}={REDACTED} next=1"


@pytest.mark.parametrize(
    "key", ["tokenizer", "token_dropout", "key", "keys", "monkey", "author", "passes", "path", "secretary", "num_steps"]
)
def test_keys_that_name_none(key: str) -> None:
    assert not names_secret(key)
    assert redact({key: HEX}) == {key: HEX}
    assert redact(f"{key}={HEX}") == f"{key}={HEX}"


@pytest.mark.parametrize("value", [True, False, None, 197, "null", "???", ""])
def test_switches_and_counts_are_no_secrets(value: object) -> None:
    assert redact({"class_token": value}) == {"class_token": value}


def test_a_numeric_password_is_a_secret() -> None:
    assert redact({"password": 90210734}) == {"password": REDACTED}


def test_nested_values_are_copied_not_changed() -> None:
    config = {"data": {"kwargs": {"token": "abc-def", "root": "photos"}, "names": ["a", ("b", {"pwd": "s3cret"})]}}
    before = copy.deepcopy(config)
    assert redact(config) == {
        "data": {"kwargs": {"token": REDACTED, "root": "photos"}, "names": ["a", ("b", {"pwd": REDACTED})]}
    }
    assert config == before


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://me:pw@host/x", f"https://{REDACTED}@host/x"),
        ("https://me:p@ss@host:80/x", f"https://{REDACTED}@host:80/x"),
        ("https://tok3n@github.com/a/b.git", f"https://{REDACTED}@github.com/a/b.git"),
        ("postgresql://u:p@db/runs", f"postgresql://{REDACTED}@db/runs"),
        ("ssh://git@github.com/a/b", "ssh://git@github.com/a/b"),
        ("git@github.com:a/b", "git@github.com:a/b"),
        ("https://host/x?mail=a@b", "https://host/x?mail=a@b"),
        ("https://host/x?token=abc9&n=1", f"https://host/x?token={REDACTED}&n=1"),
        ("env='A=1 token=abc9' x", f"env='A=1 token={REDACTED}' x"),
        ("Authorization: Bearer abcdefgh12345", f"Authorization: Bearer {REDACTED}"),
        ("--api-key k3y --epochs 3", f"--api-key {REDACTED} --epochs 3"),
        ("{'password': 'a b', 'lr': 1}", f"{{'password': '{REDACTED}', 'lr': 1}}"),
        ('{"hf_token":"a b"}', f'{{"hf_token":"{REDACTED}"}}'),
        (f"WANDB_API_KEY={HEX} python", f"WANDB_API_KEY={REDACTED} python"),
        (f"revision {HEX}", f"revision {HEX}"),
        ("see hf_AbCdEfGhIjKlMnOpQrStUv.", f"see {REDACTED}."),
        ("x=ghp_" + "a1" * 18, f"x={REDACTED}"),
        ("model.kwargs.class_token=true", "model.kwargs.class_token=true"),
        ("a task-force-of-more-than-twenty", "a task-force-of-more-than-twenty"),
    ],
)
def test_text(text: str, clean: str) -> None:
    assert redact(text) == clean
    assert redact(clean) == clean


def test_command_line() -> None:
    argv = ["cvtrain", "model=resnet18", "+data.kwargs.token=abcd-1", "--password", "hush", "--verbose"]
    assert redact(argv) == ["cvtrain", "model=resnet18", f"+data.kwargs.token={REDACTED}", "--password", REDACTED,
                            "--verbose"]  # fmt: skip
