"""Typed settings. This is the only module that reads the environment."""

from __future__ import annotations

import base64
import ipaddress
import os
import secrets
import sys
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, model_validator

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

SECRET_NAMES = ("secret_key", "jwt_secret_key", "encryption_keys", "database_password")
PLACEHOLDERS = ("change", "secret", "example", "default", "password", "dev-", "test", "your")
MIN_SECRET_LENGTH = 32


class SettingsError(Exception):
    """The environment does not make a safe configuration. The message names every fault and its fix."""


def _words(value: object) -> object:
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
Networks = Annotated[tuple[Network, ...], BeforeValidator(_words)]


class Settings(BaseModel):
    """One value per environment variable of the same name in capitals; a secret may also come from `<NAME>_FILE`."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    flask_env: Literal["development", "testing", "production"] = "production"
    host: str = "127.0.0.1"
    port: int = Field(5000, ge=0, le=65535)
    data_dir: Path = Path("instance")
    database_url: str = ""
    database_password: SecretStr = SecretStr("")
    auto_db_create: bool = False
    embedded_worker: bool = False
    worker_health_port: int = Field(5001, ge=0, le=65535)

    secret_key: SecretStr = SecretStr("")
    jwt_secret_key: SecretStr = SecretStr("")
    encryption_keys: SecretStr = SecretStr("")
    cors_origins: Words = ()
    proxy_hops: int = Field(0, ge=0, le=5)
    login_limit: int = Field(5, ge=1)
    redis_url: str = ""
    live_clients: int = Field(500, ge=0, le=10_000)
    celery_broker_url: str = "memory://"

    access_token_minutes: int = Field(15, ge=1)
    refresh_token_days: int = Field(30, ge=1)
    password_hash_time_cost: int = Field(2, ge=1)
    password_hash_memory_kib: int = Field(19 * 1024, ge=8)

    max_body_bytes: int = 1024 * 1024
    max_upload_bytes: int = 200 * 1024 * 1024
    allow_loopback_printers: bool = False
    command_timeout_seconds: float = 20.0
    status_interval_seconds: float = 1.0
    bambu_ca_file: str = ""
    bambu_cloud_api_url: str = ""
    bambu_cloud_web_url: str = ""
    bambu_cloud_mqtt: str = ""
    bambu_cloud_ca_file: str = ""
    discovery_port: int = Field(2021, ge=0, le=65535)

    chain_buffer_minutes: int = Field(15, ge=0)
    missed_window_minutes: int = Field(60, ge=1)
    printer_rest_seconds: float = Field(10.0, ge=0)
    low_percent: Decimal = Decimal(70)
    critical_percent: Decimal = Decimal(20)
    critical_grams: Decimal = Decimal(30)
    replace_percent: Decimal = Decimal(2)

    etsy_client_id: str = ""
    etsy_shared_secret: SecretStr = SecretStr("")
    etsy_redirect_uri: str = ""
    etsy_base_url: str = "https://api.etsy.com"
    etsy_authorize_url: str = "https://www.etsy.com/oauth/connect"
    etsy_sync_minutes: int = Field(5, ge=1)
    auto_schedule_days: int = Field(30, ge=1, le=36_500)
    etsy_webhook_secret: SecretStr = SecretStr("")

    smtp_host: str = ""
    smtp_port: int = Field(587, ge=1, le=65535)
    smtp_user: str = ""
    smtp_password: SecretStr = SecretStr("")
    smtp_from: str = ""
    smtp_tls: Literal["starttls", "tls", "none"] = "starttls"
    public_url: str = ""
    webhook_allowed_networks: Networks = ()
    openweather_api_key: SecretStr = SecretStr("")
    openweather_base_url: str = "https://api.openweathermap.org"

    @property
    def is_production(self) -> bool:
        return self.flask_env == "production"

    @property
    def files_dir(self) -> Path:
        """Where uploaded print files lie, named by their sha256."""
        return self.data_dir / "print-files"

    @model_validator(mode="after")
    def _is_safe(self) -> Settings:
        faults = [
            f"{name.upper()} {fault}. Make one with: python settings.py --write-secrets DIR"
            for name in ("secret_key", "jwt_secret_key", "encryption_keys")
            if (fault := _weakness(getattr(self, name).get_secret_value(), strict=self.is_production))
        ] or [
            f"ENCRYPTION_KEYS: number {number} is not 32 bytes in base64. "
            "Make one with: python settings.py --write-secrets DIR"
            for number, key in enumerate(self.encryption_keys.get_secret_value().split(","), 1)
            if not _is_encryption_key(key.strip())
        ]
        if len({self.secret_key.get_secret_value(), self.jwt_secret_key.get_secret_value()}) == 1:
            faults.append("SECRET_KEY and JWT_SECRET_KEY must differ")
        if self.is_production and "*" in self.cors_origins:
            faults.append("CORS_ORIGINS must list exact origins, not *")
        if self.bambu_cloud_mqtt and not _is_host_and_port(self.bambu_cloud_mqtt):
            faults.append("BAMBU_CLOUD_MQTT must be host:port")
        for name in ("bambu_cloud_api_url", "bambu_cloud_web_url", "openweather_base_url"):
            # Passwords and a key go there.
            url = urlsplit(getattr(self, name))
            if url.scheme and url.scheme != "https" and not is_loopback(url.hostname or ""):
                faults.append(f"{name.upper()} must begin with https://")
        if self.smtp_host and not self.smtp_from:
            faults.append("SMTP_FROM is needed with SMTP_HOST")
        if self.smtp_host and self.smtp_tls == "none" and not is_loopback(self.smtp_host):
            faults.append("SMTP_TLS=none is only for a mail server on this machine: use starttls or tls")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Settings from the process environment.

        Raises:
            SettingsError: naming every fault at once; secrets are never shown.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for name in cls.model_fields:
            if environ.get(name.upper()):
                values[name] = environ[name.upper()]
            elif path := environ.get(f"{name.upper()}_FILE"):
                try:
                    values[name] = Path(path).read_text().strip()
                except OSError as error:
                    raise SettingsError(f"{name.upper()}_FILE cannot be read: {error.strerror}") from None
        values.setdefault("data_dir", Path(__file__).parent / "instance")
        if values.get("flask_env") in ("development", "testing"):
            values.setdefault("embedded_worker", values["flask_env"] == "development")
            values.setdefault("allow_loopback_printers", True)
            _fill_in_secrets(values)
        elif environ.get("FLASK_DEBUG", "0") not in ("", "0"):
            raise SettingsError("FLASK_DEBUG must be off in production")
        try:
            values["database_url"] = _database_url(values)
            return cls(**values)
        except ValidationError as error:
            raise SettingsError(
                "; ".join(f"{'.'.join(map(str, e['loc'])).upper()} {e['msg']}".strip() for e in error.errors())
            ) from None


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_host_and_port(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536


def _weakness(secret: str, *, strict: bool) -> str | None:
    if not secret:
        return "is missing"
    if strict and len(secret) < MIN_SECRET_LENGTH:
        return f"is shorter than {MIN_SECRET_LENGTH} characters"
    if strict and any(word in secret.casefold() for word in PLACEHOLDERS) and len(set(secret)) < 20:
        return "looks like a placeholder"
    if strict and len(set(secret)) < 8:
        return "is not random"
    return None


def _is_encryption_key(text: str) -> bool:
    try:
        return len(base64.b64decode(text.encode(), altchars=b"-_", validate=True)) == 32
    except (ValueError, UnicodeEncodeError):
        return False


def _fill_in_secrets(values: dict[str, Any]) -> None:
    missing = [name for name in SECRET_NAMES if name not in values]
    if missing:
        made = write_secrets(Path(values["data_dir"]) / "secrets")
        values.update({name: made[name] for name in missing if name != "database_password"})


def _database_url(values: Mapping[str, Any]) -> str:
    url = str(values.get("database_url") or f"sqlite:///{Path(values['data_dir']).absolute() / 'farm.sqlite3'}")
    scheme, separator, rest = url.partition("://")
    if scheme in ("postgres", "postgresql"):
        # SQLAlchemy 2.1 reads the bare name as psycopg 3, which we do not ship.
        scheme = "postgresql+psycopg2"
    password = values.get("database_password")
    user, at, server = rest.partition("@")
    if password and at and ":" not in user:
        rest = f"{user}:{quote(str(password), safe='')}@{server}"
    return scheme + separator + rest


def write_secrets(folder: Path) -> dict[str, str]:
    """Make the secrets that do not exist yet, a file of mode 0600 each, and return all of them by name.

    Never overwrites: of two processes starting at once the first to create a file wins and both read the same.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    made = {}
    for name in SECRET_NAMES:
        path = folder / name
        draft = folder / f".{name}.{os.getpid()}.{secrets.token_hex(4)}"
        if not path.exists():
            value = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(value)
            try:
                # A link appears whole or not at all, and fails when the other process was first.
                os.link(draft, path)
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        made[name] = path.read_text().strip()
    return made


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "--write-secrets":
        sys.exit("usage: python settings.py --write-secrets DIR")
    write_secrets(Path(sys.argv[2]))
