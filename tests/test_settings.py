"""An unsafe production does not start, and says what to do about it."""

from __future__ import annotations

import base64
import secrets
from pathlib import Path

import pytest

from settings import Settings, SettingsError

NAMES = ("SECRET_KEY", "JWT_SECRET_KEY", "ENCRYPTION_KEYS")
GOOD = {name: base64.urlsafe_b64encode(secrets.token_bytes(32)).decode() for name in NAMES}


def refusal(**changes: str | None) -> str:
    with pytest.raises(SettingsError) as refused:
        Settings.from_environment({name: value for name, value in {**GOOD, **changes}.items() if value is not None})
    return str(refused.value)


def test_good_secrets_start_production_which_is_the_default() -> None:
    settings = Settings.from_environment(GOOD)
    assert settings.is_production and not settings.embedded_worker and not settings.allow_loopback_printers
    assert not any(secret in repr(settings) for secret in GOOD.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (None, "is missing"),
        ("", "is missing"),
        ("tiny", "is shorter than 32 characters"),
        ("change-me-change-me-change-me-change-me", "looks like a placeholder"),
        ("dev-secret-key-dev-secret-key-dev-secret", "looks like a placeholder"),
        ("a" * 44, "is not random"),
    ],
)
def test_a_default_short_or_placeholder_secret_is_refused_by_name(name: str, value: str | None, fault: str) -> None:
    said = refusal(**{name: value})
    assert f"{name} {fault}" in said
    assert "python settings.py --write-secrets DIR" in said
    assert not value or value not in said


def test_every_fault_is_named_at_once() -> None:
    said = refusal(SECRET_KEY=None, JWT_SECRET_KEY="short", CORS_ORIGINS="*", SMTP_HOST="mail")
    for fault in (
        "SECRET_KEY is missing",
        "JWT_SECRET_KEY is shorter",
        "CORS_ORIGINS must list",
        "SMTP_FROM is needed",
    ):
        assert fault in said


def test_one_secret_for_two_purposes_debug_and_any_origin_are_refused() -> None:
    assert "must differ" in refusal(JWT_SECRET_KEY=GOOD["SECRET_KEY"])
    assert "FLASK_DEBUG must be off" in refusal(FLASK_DEBUG="1")
    assert "exact origins, not *" in refusal(CORS_ORIGINS="https://a.example,*")
    assert "flask_env" in refusal(FLASK_ENV="staging").casefold()


def test_an_encryption_key_that_is_none_is_refused_at_the_start(tmp_path: Path) -> None:
    said = refusal(ENCRYPTION_KEYS="hD3v9Qk2mX7pLr5tZw8yBn4cFj6sGa1e-not-a-fernet-key")
    assert "ENCRYPTION_KEYS" in said


def test_development_makes_its_own_secrets_for_its_owner_alone(tmp_path: Path) -> None:
    environment = {"FLASK_ENV": "development", "DATA_DIR": str(tmp_path)}
    first, second = (Settings.from_environment(environment) for _ in range(2))
    assert first == second
    made = list((tmp_path / "secrets").iterdir())
    assert {path.stat().st_mode & 0o777 for path in made} == {0o600}
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    assert len({path.read_text() for path in made}) == len(made) >= 3


def test_the_weathers_key_is_shown_to_nobody_and_goes_over_https_alone() -> None:
    assert "OPENWEATHER_BASE_URL must begin with https://" in refusal(OPENWEATHER_BASE_URL="http://weather.example")
    settings = Settings.from_environment(
        {**GOOD, "OPENWEATHER_API_KEY": "QZKEYQZ", "OPENWEATHER_BASE_URL": "http://[::1]"}
    )
    assert "QZKEYQZ" not in repr(settings)
