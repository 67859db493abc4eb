"""The tables, the status words, the legal moves.

Every owned table carries `user_id`, and what points from one owned row to another is a composite foreign key
`(user_id, other_id)`, so the database itself refuses a row that reaches across users.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, cast

import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, registry, relationship

from columns import Cost, Grams, Money, Scaled, UtcDateTime, words

MAX_ID = 2**31 - 1
SLOTS_PER_UNIT = 4
SLOT_COUNT = 8


METADATA = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class Base(DeclarativeBase):
    # A registry, not a `type_annotation_map` on the class: SQLAlchemy 2.1 refuses the latter below Flask-SQLAlchemy.
    registry = registry(
        metadata=METADATA,
        type_annotation_map={datetime: UtcDateTime(), dict[str, Any]: sa.JSON(), list[Any]: sa.JSON()},
    )


db = SQLAlchemy(model_class=Base)

# A partial index serves only a condition that names its values.
UNSENT = sa.text("status IN ('pending', 'sending')")


def count_changed(statement: sa.Update) -> int:
    """Run an UPDATE and say how many rows it changed: how a conditional UPDATE tells who was first."""
    result = db.session.execute(statement.execution_options(synchronize_session=False))
    return cast("sa.CursorResult[Any]", result).rowcount


class IllegalMove(Exception):
    """A move that the table of legal moves does not hold."""

    def __init__(self, from_status: PrintStatus, to_status: PrintStatus) -> None:
        self.from_status, self.to_status = from_status, to_status
        self.allowed = sorted(LEGAL_MOVES[from_status])
        super().__init__(f"A {from_status} print cannot become {to_status}")


class PrintStatus(StrEnum):
    queued = "queued"
    scheduled = "scheduled"
    started = "started"
    completed = "completed"
    failed = "failed"


OPEN_STATUSES = (PrintStatus.queued, PrintStatus.scheduled, PrintStatus.started)
WAITING_STATUSES = (PrintStatus.queued, PrintStatus.scheduled)
ENDED_STATUSES = (PrintStatus.completed, PrintStatus.failed)

LEGAL_MOVES: dict[PrintStatus, frozenset[PrintStatus]] = {
    PrintStatus.queued: frozenset({PrintStatus.scheduled, PrintStatus.started}),
    PrintStatus.scheduled: frozenset({PrintStatus.queued, PrintStatus.started, PrintStatus.failed}),
    PrintStatus.started: frozenset({PrintStatus.completed, PrintStatus.failed}),
    PrintStatus.completed: frozenset({PrintStatus.queued}),
    PrintStatus.failed: frozenset({PrintStatus.queued}),
}


class OrderStatus(StrEnum):
    open = "open"
    paid = "paid"
    completed = "completed"
    canceled = "canceled"
    refunded = "refunded"


class ProductionStatus(StrEnum):
    new = "new"
    queued = "queued"
    printing = "printing"
    printed = "printed"
    attention = "attention"
    shipped = "shipped"


class ConnectionType(StrEnum):
    bambu_lan = "bambu_lan"
    bambu_cloud = "bambu_cloud"


class ConnectionStatus(StrEnum):
    connected = "connected"
    connecting = "connecting"
    offline = "offline"
    unauthorized = "unauthorized"
    error = "error"


class PlateState(StrEnum):
    unknown = "unknown"
    occupied = "occupied"
    clear = "clear"


class IntentState(StrEnum):
    claimed = "claimed"
    uploading = "uploading"
    armed = "armed"
    published = "published"
    confirmed = "confirmed"
    refused = "refused"
    unknown = "unknown"
    not_started = "not_started"
    withdrawn = "withdrawn"


SENDING_STATES = (IntentState.claimed, IntentState.uploading, IntentState.armed, IntentState.published)
# An unconfirmed start blocks its printer until a person says what became of it.
OPEN_INTENT_STATES = (*SENDING_STATES, IntentState.unknown)


class CommandKind(StrEnum):
    pause = "pause"
    resume = "resume"
    stop = "stop"
    test = "test"
    speed = "speed"
    light = "light"
    clear_error = "clear_error"
    change_filament = "change_filament"
    set_filament = "set_filament"


class CloudRegion(StrEnum):
    world = "global"
    china = "china"


class CloudLoginState(StrEnum):
    """What a login to Bambu Lab's cloud needs next; `connected` needs nothing."""

    connected = "connected"
    code_needed = "code_needed"
    totp_needed = "totp_needed"
    login_needed = "login_needed"


class CommandState(StrEnum):
    requested = "requested"
    sent = "sent"
    done = "done"
    refused = "refused"
    expired = "expired"


class LedgerKind(StrEnum):
    loaded = "loaded"
    used = "used"
    corrected = "corrected"


class Channel(StrEnum):
    email = "email"
    webhook = "webhook"
    # Any service that an apprise URL names: Discord, ntfy, Home Assistant ...
    apprise = "apprise"


class Digest(StrEnum):
    """How often mails and messages are gathered into one."""

    off = "off"
    hourly = "hourly"
    daily = "daily"


class DeliveryStatus(StrEnum):
    pending = "pending"
    sending = "sending"
    sent = "sent"
    failed = "failed"


def _owner() -> Any:
    """The owner of a row."""
    return sa.ForeignKey("users.id", ondelete="CASCADE")


def _belongs(column: str, table: str) -> sa.ForeignKeyConstraint:
    """A reference to another row of the same user. NO ACTION: SET NULL would null `user_id` too."""
    return sa.ForeignKeyConstraint(["user_id", column], [f"{table}.user_id", f"{table}.id"])


def _in(column: str, low: int | str, high: int | str) -> sa.CheckConstraint:
    return sa.CheckConstraint(f"{column} >= {low} AND {column} <= {high}", name=f"{column}_range")


class User(db.Model):
    __tablename__ = "users"
    # In ten-thousandths of a degree, as they are stored.
    __table_args__ = (_in("latitude", -900_000, 900_000), _in("longitude", -1_800_000, 1_800_000))
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str | None] = mapped_column(sa.String(255), unique=True)
    username: Mapped[str] = mapped_column(sa.String(255))
    password_hash: Mapped[str | None] = mapped_column(sa.String(255))
    currency: Mapped[str] = mapped_column(sa.String(3), default="USD")
    timezone: Mapped[str] = mapped_column(sa.String(64), default="UTC")
    # When somebody is there to clear plates, in the user's zone: {"mon": [["08:00", "17:30"]]}; None is always.
    staffed_hours: Mapped[dict[str, Any] | None]
    # Orders that are paid and wholly mapped become prints by themselves after a sync.
    auto_schedule: Mapped[bool] = mapped_column(default=False)
    # Where the printers stand, for the weather outside: degrees north and east.
    place_name: Mapped[str | None] = mapped_column(sa.String(255))
    latitude: Mapped[Decimal | None] = mapped_column(Scaled(4))
    longitude: Mapped[Decimal | None] = mapped_column(Scaled(4))
    # In the room of the printers.
    indoor_temperature_c: Mapped[Decimal | None] = mapped_column(Scaled(1))
    created_at: Mapped[datetime]


class TokenFamily(db.Model):
    """One login: the chain of refresh tokens that descend from it. Only the newest refresh token is good."""

    __tablename__ = "token_families"
    id: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    user_id: Mapped[int] = mapped_column(_owner(), index=True)
    refresh_jti: Mapped[str] = mapped_column(sa.String(32))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]


class EtsyLogin(db.Model):
    """A login at Etsy that was begun and has not come back yet. The PKCE verifier never leaves the server."""

    __tablename__ = "etsy_logins"
    state_hash: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    user_id: Mapped[int | None] = mapped_column(_owner())
    verifier_sealed: Mapped[str] = mapped_column(sa.Text)
    expires_at: Mapped[datetime]


class Shop(db.Model):
    """An Etsy shop that an account has connected. A shop belongs to one account."""

    __tablename__ = "shops"
    __table_args__ = (sa.UniqueConstraint("user_id", "id"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(_owner())
    etsy_shop_id: Mapped[str] = mapped_column(sa.String(32), unique=True)
    etsy_user_id: Mapped[str] = mapped_column(sa.String(32), index=True)
    name: Mapped[str] = mapped_column(sa.String(255))
    currency: Mapped[str] = mapped_column(sa.String(3))
    access_token_sealed: Mapped[str] = mapped_column(sa.Text)
    refresh_token_sealed: Mapped[str] = mapped_column(sa.Text)
    token_expires_at: Mapped[datetime]
    # The app's own key at Etsy, where it is not the installation's.
    keystring: Mapped[str | None] = mapped_column(sa.String(255))
    shared_secret_sealed: Mapped[str | None] = mapped_column(sa.Text)
    # Who asks Etsy for new tokens just now: a refresh token is good once.
    refreshing_by: Mapped[str | None] = mapped_column(sa.String(64))
    refreshing_since: Mapped[datetime | None]
    # Etsy takes the tokens no more: a person has to sign in again. Told once.
    reconnect_needed_at: Mapped[datetime | None]
    synced_until: Mapped[datetime | None]
    canceled_until: Mapped[datetime | None]
    open_orders_read_at: Mapped[datetime | None]
    # One sync of a shop at a time, and how far it has come.
    syncing_by: Mapped[str | None] = mapped_column(sa.String(64))
    syncing_since: Mapped[datetime | None]
    sync_progress: Mapped[dict[str, Any] | None]
    sync_ended_at: Mapped[datetime | None]
    sync_error: Mapped[str | None] = mapped_column(sa.Text)
    # The day's calls are used up: nothing is asked until then.
    parked_until: Mapped[datetime | None]
    created_at: Mapped[datetime]

    def secret_owner(self, column: str) -> str:
        return f"shops.{column}:{self.user_id}:{self.etsy_shop_id}"


class EtsyNotice(db.Model):
    """A webhook of Etsy's that was taken in: a second one with its id is a replay."""

    __tablename__ = "etsy_notices"
    __table_args__ = (_belongs("shop_id", "shops"), sa.Index("ix_etsy_notices_received_at", "received_at"))
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(_owner())
    shop_id: Mapped[int]
    webhook_id: Mapped[str] = mapped_column(sa.String(255), unique=True)
    kind: Mapped[str] = mapped_column(sa.String(64))
    etsy_order_id: Mapped[str | None] = mapped_column(sa.String(32))
    received_at: Mapped[datetime]
    done_at: Mapped[datetime | None]


class Customer(db.Model):
    """A buyer. Etsy hides e-mail addresses, so the buyer's id is the identity; by hand there is only a name."""

    __tablename__ = "customers"
    __table_args__ = (sa.UniqueConstraint("user_id", "id"), sa.UniqueConstraint("user_id", "etsy_buyer_id"))
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(_owner())
    etsy_buyer_id: Mapped[str | None] = mapped_column(sa.String(32))
    name: Mapped[str] = mapped_column(sa.String(255))
    email: Mapped[str | None] = mapped_column(sa.String(255))
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class Order(db.Model):
    __tablename__ = "orders"
    __table_args__ = (
        sa.UniqueConstraint("user_id", "id"),
        sa.UniqueConstraint("user_id", "shop_id", "etsy_order_id"),
        _belongs("shop_id", "shops"),
        _belongs("customer_id", "customers"),
        sa.Index("ix_orders_user_id_ordered_at_id", "user_id", "ordered_at", "id"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(_owner())
    shop_id: Mapped[int | None]
    customer_id: Mapped[int | None]
    etsy_order_id: Mapped[str | None] = mapped_column(sa.String(32))
    buyer_name: Mapped[str] = mapped_column(sa.String(255))
    status: Mapped[OrderStatus] = mapped_column(words(OrderStatus, "status"))
    etsy_status: Mapped[str | None] = mapped_column(sa.String(64))
    partially_refunded: Mapped[bool] = mapped_column(default=False)
    production_status: Mapped[ProductionStatus] = mapped_column(
        words(ProductionStatus, "production_status"), default=ProductionStatus.new
    )
    total_amount: Mapped[Decimal | None] = mapped_column(Money())
    currency: Mapped[str] = mapped_column(sa.String(3))
    ship_by: Mapped[datetime | None]
    ordered_at: Mapped[datetime]
    shipped_at: Mapped[datetime | None]
    tracking_number: Mapped[str | None] = mapped_column(sa.String(255))
    carrier_name: Mapped[str | None] = mapped_column(sa.String(255))
    # The one submission to Etsy, which mails the buyer: begun, then known to have arrived, or why not.
    ship_sent_at: Mapped[datetime | None]
    ship_confirmed_at: Mapped[datetime | None]
    ship_error: Mapped[str | None] = mapped_column(sa.Text)
    # Something a person has to look at, such as a cancellation while its print runs.
    attention: Mapped[str | None] = mapped_column(sa.Text)
    refunded_amount: Mapped[Decimal | None] = mapped_column(Money())
    # When Etsy was last asked about this very order.
    read_at: Mapped[datetime | None]
    is_gift: Mapped[bool] = mapped_column(default=False)
    gift_message: Mapped[str | None] = mapped_column(sa.Text)
    gift_sender: Mapped[str | None] = mapped_column(sa.String(255))
    message_from_buyer: Mapped[str | None] = mapped_column(sa.Text)
    message_from_seller: Mapped[str | None] = mapped_column(sa.Text)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    items: Mapped[list[OrderItem]] = relationship(
        back_populates="order", cascade="all, delete-orphan", order_by="OrderItem.id"
    )

    @property
    def label(self) -> str:
        """How a seller calls the order: by Etsy's receipt number, else by ours."""
        return f"Order #{self.etsy_order_id or self.id}"


class OrderItem(db.Model):
    """An order line."""

    __tablename__ = "order_items"
    __table_args__ = (
        sa.UniqueConstraint("user_id", "id"),
        sa.UniqueConstraint("order_id", "etsy_transaction_id"),
        _belongs("order_id", "orders"),
        _belongs("profile_id", "product_profiles"),
        sa.CheckConstraint("quantity >= 1 AND quantity <= 10000", name="quantity_range"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(_owner())
    order_id: Mapped[int] = mapped_column(index=True)
    etsy_transaction_id: Mapped[str | None] = mapped_column(sa.String(32))
    etsy_listing_id: Mapped[str | None] = mapped_column(sa.String(32))
    sku: Mapped[str | None] = mapped_column(sa.String(255))
    title: Mapped[str] = mapped_column(sa.String(255))
    quantity: Mapped[int]
    price: Mapped[Decimal | None] = mapped_column(Money())
    currency: Mapped[str] = mapped_column(sa.String(3))
    options: Mapped[dict[str, Any]] = mapped_column(default=dict)
    personalization: Mapped[str | None] = mapped_column(sa.Text)
    is_digital: Mapped[bool] = mapped_column(default=False)
    # A person has seen what the buyer wants on it, and lets it be printed.
    personalization_seen_at: Mapped[datetime | None]
    profile_id: Mapped[int | None] = mapped_column(index=True)
    order: Mapped[Order] = relationship(
        back_populates="items", primaryjoin="OrderItem.order_id == Order.id", foreign_keys="OrderItem.order_id"
    )
    profile: Mapped[ProductProfile | None] = relationship(
        primaryjoin="OrderItem.profile_id == ProductProfile.id", foreign_keys="OrderItem.profile_id"
    )


class PrintFile(db.Model):
    """A sliced `.gcode.3mf`. The bytes lie in the files folder under their sha256."""

    __tablename__ = "print_files"
    __table_args__ = (sa.UniqueConstraint("user_id", "id"), sa.UniqueConstraint("user_id", "sha256"))
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(_owner())
    file_name: Mapped[str] = mapped_column(sa.String(255))
    sha256: Mapped[str] = mapped_column(sa.String(64), index=True)
    size_bytes: Mapped[int] = mapped_column(sa.BigInteger)
    # What the slicer wrote about each plate; see farm.print_files.PlateFacts.
    plates: Mapped[list[Any]]
    created_at: Mapped[datetime]


class ProductProfile(db.Model):
    """How a product of the shop is printed."""

    __tablename__ = "product_profiles"
    __table_args__ = (
        sa.UniqueConstraint("user_id", "id"),
        _belongs("print_file_id", "print_files"),
        _belongs("shop_id", "shops"),
        _in("plate", 1, 1000),
        _in("units_per_plate", 1, 10000),
        _in("print_time_minutes", 1, 100000),
        _in("nozzle_temp_c", 0, 500),
        _in("bed_temp_c", 0, 200),
        _in("print_speed_mms", 1, 2000),
        sa.Index("ix_product_profiles_user_id_sku", "user_id", "sku"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(_owner())
    product_name: Mapped[str] = mapped_column(sa.String(255))
    sku: Mapped[str | None] = mapped_column(sa.String(255))
    etsy_listing_id: Mapped[str | None] = mapped_column(sa.String(32))
    options: Mapped[dict[str, Any]] = mapped_column(default=dict)
    # Of one shop alone, or of all.
    shop_id: Mapped[int | None]
    # What an option of the order line means: [{"option": "Color", "value": "Navy", "material_type": "PLA",
    # "color": "#1F3A93"}, ...].
    rules: Mapped[list[Any]] = mapped_column(default=list)
    print_file_id: Mapped[int | None] = mapped_column(index=True)
    plate: Mapped[int] = mapped_column(default=1)
    units_per_plate: Mapped[int | None]
    # Further plates of the same product, each with its own file: see farm.line_plates.
    more_plates: Mapped[list[Any]] = mapped_column(default=list)
    print_time_minutes: Mapped[int | None]
    preferred_material: Mapped[str | None] = mapped_column(sa.String(255))
    preferred_color: Mapped[str | None] = mapped_column(sa.String(255))
    nozzle_temp_c: Mapped[int | None]
    bed_temp_c: Mapped[int | None]
    print_speed_mms: Mapped[int | None]
    filament_grams: Mapped[Decimal | None] = mapped_column(Grams())
    notes: Mapped[str | None] = mapped_column(sa.Text)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    print_file: Mapped[PrintFile | None] = relationship(
        primaryjoin="ProductProfile.print_file_id == PrintFile.id", foreign_keys="ProductProfile.print_file_id"
    )


class Printer(db.Model):
    __tablename__ = "printers"
    __table_args__ = (sa.UniqueConstraint("user_id", "id"), _in("maintenance_every_hours", 1, 100_000))
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(_owner())
    name: Mapped[str] = mapped_column(sa.String(255))
    model: Mapped[str | None] = mapped_column(sa.String(255))
    location: Mapped[str | None] = mapped_column(sa.String(255))
    notes: Mapped[str | None] = mapped_column(sa.Text)
    auto_start: Mapped[bool] = mapped_column(default=False)
    nozzle_diameter_mm: Mapped[Decimal | None] = mapped_column(Scaled(2))
    # A paused queue starts nothing new; what runs goes on.
    queue_paused_at: Mapped[datetime | None]
    # What the printer calls a running print that is none of ours: told once, and never touched.
    foreign_print: Mapped[str | None] = mapped_column(sa.String(255))
    # After so many hours of printing somebody should grease and clean it; None asks for nothing.
    maintenance_every_hours: Mapped[int | None] = mapped_column(default=250)
    hours_since_maintenance: Mapped[Decimal] = mapped_column(Scaled(2), default=Decimal(0))
    maintenance_done_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    connection: Mapped[PrinterConnection | None] = relationship(
        back_populates="printer",
        primaryjoin="PrinterConnection.printer_id == Printer.id",
        foreign_keys="PrinterConnection.printer_id",
        uselist=False,
    )

    @property
    def plate_state(self) -> PlateState:
        gate = self.connection.gate if self.connection else None
        return gate.plate_state if gate else PlateState.unknown


class PrinterConnection(db.Model):
    """How a printer is reached, and the last that the worker heard of it."""

    __tablename__ = "printer_connections"
    __table_args__ = (
        sa.UniqueConstraint("user_id", "id"),
        sa.UniqueConstraint("printer_id"),
        _belongs("printer_id", "printers"),
        _belongs("cloud_account_id", "cloud_accounts"),
        _in("port", 1, 65535),
        _in("ftps_port", 1, 65535),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(_owner())
    printer_id: Mapped[int]
    connection_type: Mapped[ConnectionType] = mapped_column(words(ConnectionType, "connection_type"))
    host: Mapped[str | None] = mapped_column(sa.String(255))
    port: Mapped[int] = mapped_column(default=8883)
    ftps_port: Mapped[int] = mapped_column(default=990)
    serial_number: Mapped[str | None] = mapped_column(sa.String(64))
    access_code_sealed: Mapped[str | None] = mapped_column(sa.Text)
    cloud_token_sealed: Mapped[str | None] = mapped_column(sa.Text)
    cloud_account_id: Mapped[int | None] = mapped_column(index=True)
    fingerprint: Mapped[str | None] = mapped_column(sa.String(64))
    # Some A1 firmware hangs when the FTPS data channel is encrypted; found out once, remembered.
    clear_data: Mapped[bool] = mapped_column(default=False)
    # Raised by every edit: the worker closes a link that was opened for an older version of the row.
    version: Mapped[int] = mapped_column(default=1)
    connection_status: Mapped[ConnectionStatus] = mapped_column(
        words(ConnectionStatus, "connection_status"), default=ConnectionStatus.offline
    )
    status_reason: Mapped[str | None] = mapped_column(sa.Text)
    snapshot: Mapped[dict[str, Any] | None]
    heard_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    printer: Mapped[Printer] = relationship(
        back_populates="connection",
        primaryjoin="PrinterConnection.printer_id == Printer.id",
        foreign_keys="PrinterConnection.printer_id",
    )
    gate: Mapped[PrinterGate | None] = relationship(
        primaryjoin="PrinterConnection.serial_number == PrinterGate.serial_number",
        foreign_keys="PrinterConnection.serial_number",
        viewonly=True,
    )

    def secret_owner(self, column: str) -> str:
        return f"printer_connections.{column}:{self.user_id}:{self.printer_id}"


class CloudAccount(db.Model):
    """A login to Bambu Lab's cloud: begun, good, or over. It only reads; see `bambu_cloud`."""

    __tablename__ = "cloud_accounts"
    __table_args__ = (sa.UniqueConstraint("user_id", "id"), sa.UniqueConstraint("user_id", "region", "account"))
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(_owner())
    region: Mapped[CloudRegion] = mapped_column(words(CloudRegion, "region"), default=CloudRegion.world)
    # As the person logs in: an e-mail address, in China also a phone number; the uid for a pasted token.
    account: Mapped[str] = mapped_column(sa.String(255))
    uid: Mapped[str | None] = mapped_column(sa.String(32))
    state: Mapped[CloudLoginState] = mapped_column(words(CloudLoginState, "state"))
    state_reason: Mapped[str | None] = mapped_column(sa.Text)
    token_sealed: Mapped[str | None] = mapped_column(sa.Text)
    refresh_token_sealed: Mapped[str | None] = mapped_column(sa.Text)
    # What ties the authenticator's code to the password that was right; good for minutes.
    tfa_key_sealed: Mapped[str | None] = mapped_column(sa.Text)
    token_expires_at: Mapped[datetime | None]
    # Raised with every new token: the worker closes a link that was opened with an older one.
    version: Mapped[int] = mapped_column(default=1)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]

    def secret_owner(self, column: str) -> str:
        return f"cloud_accounts.{column}:{self.user_id}:{self.region}:{self.account}"


class DiscoveredPrinter(db.Model):
    """A printer that announced itself in the worker's network. Nothing here is proven: anybody can send such words."""

    __tablename__ = "discovered_printers"
    serial_number: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    host: Mapped[str] = mapped_column(sa.String(255))
    model: Mapped[str | None] = mapped_column(sa.String(64))
    name: Mapped[str] = mapped_column(sa.String(255))
    connect_mode: Mapped[str | None] = mapped_column(sa.String(16))
    is_bound: Mapped[bool | None]
    firmware: Mapped[str | None] = mapped_column(sa.String(64))
    signal_dbm: Mapped[int | None]
    heard_at: Mapped[datetime]
    forget_at: Mapped[datetime] = mapped_column(index=True)


class PrinterGate(db.Model):
    """A physical printer, by its serial number: two accounts may have entered the same machine. Who holds it, and since
    which epoch; a holder's lease runs out by itself. What lies on its plate, whoever printed it."""

    __tablename__ = "printer_gates"
    serial_number: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    owner: Mapped[str | None] = mapped_column(sa.String(64), index=True)
    lease_until: Mapped[datetime | None]
    epoch: Mapped[int] = mapped_column(default=0)
    plate_state: Mapped[PlateState] = mapped_column(words(PlateState, "plate_state"), default=PlateState.unknown)
    # The print of ours whose parts lie on the plate, so that a late "cleared" cannot clear the next one.
    plate_print_id: Mapped[int | None]
    # The last that was given out: start commands to one machine never share an id, whichever account sends them.
    last_submission_id: Mapped[int] = mapped_column(default=0)


class WorkerPresence(db.Model):
    """A worker that is alive, so that each takes its share of the printers."""

    __tablename__ = "worker_presences"
    owner: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    seen_at: Mapped[datetime]


class BambuMaterial(db.Model):
    """A spool on a printer. Grams are what is stored; the percent is their view."""

    __tablename__ = "bambu_materials"
    __table_args__ = (
        sa.UniqueConstraint("user_id", "id"),
        _belongs("printer_id", "printers"),
        sa.Index(
            "uq_bambu_materials_live_place",
            "printer_id",
            "ams_id",
            "tray_id",
            unique=True,
            sqlite_where=sa.text("removed_at IS NULL"),
            postgresql_where=sa.text("removed_at IS NULL"),
        ),
        sa.Index("ix_bambu_materials_printer_id_removed_at", "printer_id", "removed_at"),
        _in("ams_id", 0, 255),
        _in("tray_id", 0, 255),
        sa.CheckConstraint("weight_grams > 0 AND weight_grams <= 100000000", name="weight_grams_range"),
        sa.CheckConstraint("remaining_grams >= 0 AND remaining_grams <= weight_grams", name="remaining_grams_range"),
        sa.CheckConstraint("cost_per_kg >= 0 AND cost_per_kg <= 1000000000", name="cost_per_kg_range"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(_owner())
    printer_id: Mapped[int]
    ams_id: Mapped[int]
    tray_id: Mapped[int]
    material_type: Mapped[str] = mapped_column(sa.String(255))
    color: Mapped[str | None] = mapped_column(sa.String(255))
    weight_grams: Mapped[Decimal] = mapped_column(Grams())
    remaining_grams: Mapped[Decimal] = mapped_column(Grams())
    vendor: Mapped[str | None] = mapped_column(sa.String(255))
    cost_per_kg: Mapped[Decimal | None] = mapped_column(Money())
    notes: Mapped[str | None] = mapped_column(sa.Text)
    # The worst stage that was announced; falls back when the spool is refilled, which arms the alert again.
    announced_stage: Mapped[str] = mapped_column(sa.String(16), default="new")
    loaded_at: Mapped[datetime]
    last_synced: Mapped[datetime | None]
    removed_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]

    @property
    def slot(self) -> int | None:
        return slot_of(self.ams_id, self.tray_id)


def slot_of(ams_id: int, tray_id: int) -> int | None:
    """The seeds' slot 0-7 for the first two AMS units, else None."""
    slot = ams_id * SLOTS_PER_UNIT + tray_id
    return slot if tray_id < SLOTS_PER_UNIT and slot < SLOT_COUNT else None


def place_of(slot: int) -> tuple[int, int]:
    """(ams_id, tray_id) of a slot."""
    return divmod(slot, SLOTS_PER_UNIT)


class LedgerEntry(db.Model):
    """One booking on a spool. The sum of a spool's deltas is what remains on it."""

    __tablename__ = "filament_ledger"
    __table_args__ = (
        _belongs("material_id", "bambu_materials"),
        _belongs("print_id", "scheduled_prints"),
        sa.Index("ix_filament_ledger_material_id", "material_id"),
        sa.Index("ix_filament_ledger_print_id", "print_id"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(_owner())
    material_id: Mapped[int]
    print_id: Mapped[int | None]
    kind: Mapped[LedgerKind] = mapped_column(words(LedgerKind, "kind"))
    delta_grams: Mapped[Decimal] = mapped_column(Grams())
    # What the print used, when that was more than the spool held: the spool ends at 0 and this tells it.
    wanted_grams: Mapped[Decimal | None] = mapped_column(Grams())
    cost: Mapped[Decimal | None] = mapped_column(Cost())
    at: Mapped[datetime]


class PrintNotification(db.Model):
    """A printer's notification preferences."""

    __tablename__ = "print_notifications"
    __table_args__ = (sa.UniqueConstraint("printer_id"), _belongs("printer_id", "printers"))
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(_owner())
    printer_id: Mapped[int]
    notify_print_start: Mapped[bool] = mapped_column(default=True)
    notify_print_complete: Mapped[bool] = mapped_column(default=True)
    notify_print_failed: Mapped[bool] = mapped_column(default=True)
    notify_material_change: Mapped[bool] = mapped_column(default=False)
    notify_material_low: Mapped[bool] = mapped_column(default=True)
    notify_maintenance: Mapped[bool] = mapped_column(default=True)
    notify_printer_offline: Mapped[bool] = mapped_column(default=True)
    notify_printer_fault: Mapped[bool] = mapped_column(default=True)
    notify_needs_person: Mapped[bool] = mapped_column(default=True)
    email_enabled: Mapped[bool] = mapped_column(default=True)
    # "22:00" in the user's zone. Between the two, mails and messages wait, but for the urgent.
    quiet_from: Mapped[str | None] = mapped_column(sa.String(5))
    quiet_to: Mapped[str | None] = mapped_column(sa.String(5))
    digest: Mapped[Digest] = mapped_column(words(Digest, "digest"), default=Digest.off)
    # When a daily digest goes out, in the user's zone.
    digest_at: Mapped[str] = mapped_column(sa.String(5), default="08:00")
    webhook_url: Mapped[str | None] = mapped_column(sa.Text)
    webhook_secret_sealed: Mapped[str | None] = mapped_column(sa.Text)
    # The one before a rotation signs along until then, so that a receiver has a day to change.
    webhook_old_secret_sealed: Mapped[str | None] = mapped_column(sa.Text)
    webhook_old_secret_until: Mapped[datetime | None]
    # Since when nothing has arrived there; five days of that switch it off.
    webhook_failing_since: Mapped[datetime | None]
    webhook_disabled_at: Mapped[datetime | None]
    webhook_disabled_reason: Mapped[str | None] = mapped_column(sa.Text)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]

    def secret_owner(self, column: str) -> str:
        return f"print_notifications.{column}:{self.user_id}:{self.printer_id}"


class NotificationChannel(db.Model):
    """A further way out for a printer's events: an apprise URL, which is a secret as a whole."""

    __tablename__ = "notification_channels"
    __table_args__ = (
        sa.UniqueConstraint("user_id", "id"),
        _belongs("printer_id", "printers"),
        sa.Index("ix_notification_channels_printer_id", "printer_id"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(_owner())
    printer_id: Mapped[int]
    name: Mapped[str] = mapped_column(sa.String(255))
    # What apprise calls it, such as "Discord": it may be shown.
    service: Mapped[str] = mapped_column(sa.String(64))
    url_sealed: Mapped[str] = mapped_column(sa.Text)
    is_enabled: Mapped[bool] = mapped_column(default=True)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]

    @property
    def secret_owner(self) -> str:
        return f"notification_channels.url:{self.user_id}:{self.printer_id}"


class PrinterAlert(db.Model):
    """Something that is wrong with a printer: raised and cleared often, told once while it comes and goes."""

    __tablename__ = "printer_alerts"
    __table_args__ = (_belongs("printer_id", "printers"), sa.UniqueConstraint("printer_id", "key"))
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(_owner())
    printer_id: Mapped[int]
    # "offline", "maintenance", "hms:0300-0100-0001-0007" ...
    key: Mapped[str] = mapped_column(sa.String(64))
    raised_at: Mapped[datetime]
    cleared_at: Mapped[datetime | None]
    # None: it has not lasted long enough to be told.
    told_at: Mapped[datetime | None]
    times: Mapped[int] = mapped_column(default=1)


class PrintBatch(db.Model):
    """So many pieces of one plate; its prints are made as they are needed, and a failed one is owed again."""

    __tablename__ = "print_batches"
    __table_args__ = (
        sa.UniqueConstraint("user_id", "id"),
        _belongs("printer_id", "printers"),
        _belongs("print_file_id", "print_files"),
        _in("plate", 1, 1000),
        _in("quantity", 1, 10000),
        _in("units_per_plate", 1, 10000),
        _in("priority", -1000, 1000),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(_owner())
    name: Mapped[str] = mapped_column(sa.String(255))
    printer_id: Mapped[int]
    print_file_id: Mapped[int | None] = mapped_column(index=True)
    plate: Mapped[int] = mapped_column(default=1)
    quantity: Mapped[int]
    units_per_plate: Mapped[int] = mapped_column(default=1)
    priority: Mapped[int] = mapped_column(default=0)
    # A batch that was cancelled owes nothing any more.
    cancelled_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class ScheduledPrint(db.Model):
    __tablename__ = "scheduled_prints"
    __table_args__ = (
        sa.UniqueConstraint("user_id", "id"),
        _belongs("printer_id", "printers"),
        _belongs("order_id", "orders"),
        _belongs("order_item_id", "order_items"),
        _belongs("print_file_id", "print_files"),
        _belongs("batch_id", "print_batches"),
        # What the scheduler looks at, however long the history is.
        sa.Index(
            "ix_scheduled_prints_waiting",
            "printer_id",
            "status",
            sqlite_where=sa.text("status IN ('queued', 'scheduled') AND deleted_at IS NULL"),
            postgresql_where=sa.text("status IN ('queued', 'scheduled') AND deleted_at IS NULL"),
        ),
        sa.Index("ix_scheduled_prints_batch_id", "batch_id"),
        sa.Index("ix_scheduled_prints_user_id_printer_id_status", "user_id", "printer_id", "status"),
        sa.Index("ix_scheduled_prints_user_id_order_id", "user_id", "order_id"),
        sa.Index("ix_scheduled_prints_order_item_id", "order_item_id"),
        sa.Index("ix_scheduled_prints_print_file_id", "print_file_id"),
        sa.Index("ix_scheduled_prints_user_id_created_at", "user_id", "created_at"),
        _in("plate", 1, 1000),
        _in("estimated_duration_minutes", 1, 100000),
        sa.CheckConstraint("estimated_grams >= 0 AND estimated_grams <= 100000000", name="estimated_grams_range"),
        sa.CheckConstraint("used_grams >= 0 AND used_grams <= 100000000", name="used_grams_range"),
        _in("material_slot", 0, 7),
        _in("nozzle_temp", 0, 500),
        _in("bed_temp", 0, 200),
        _in("print_speed", 1, 2000),
        _in("priority", -1000, 1000),
        _in("progress_percent", 0, 100),
        _in("units", 1, 10000),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(_owner())
    printer_id: Mapped[int]
    order_id: Mapped[int | None]
    order_item_id: Mapped[int | None]
    batch_id: Mapped[int | None]
    # How many pieces lie on the plate when it is done.
    units: Mapped[int] = mapped_column(default=1)
    job_name: Mapped[str] = mapped_column(sa.String(255))
    file_name: Mapped[str | None] = mapped_column(sa.String(255))
    print_file_id: Mapped[int | None]
    plate: Mapped[int] = mapped_column(default=1)
    status: Mapped[PrintStatus] = mapped_column(words(PrintStatus, "status"), default=PrintStatus.queued)
    scheduled_start: Mapped[datetime | None]
    # A chained print's start means "not before"; one that a person set can be missed.
    is_chained: Mapped[bool] = mapped_column(default=False)
    estimated_duration_minutes: Mapped[int | None]
    estimated_grams: Mapped[Decimal | None] = mapped_column(Grams())
    material_type: Mapped[str | None] = mapped_column(sa.String(255))
    material_color: Mapped[str | None] = mapped_column(sa.String(255))
    material_slot: Mapped[int | None]
    nozzle_temp: Mapped[int | None]
    bed_temp: Mapped[int | None]
    print_speed: Mapped[int | None]
    priority: Mapped[int] = mapped_column(default=0)
    notes: Mapped[str | None] = mapped_column(sa.Text)
    waiting_reason: Mapped[str | None] = mapped_column(sa.Text)
    # A person holds it back; it keeps its place in the queue.
    held_at: Mapped[datetime | None]
    # The interlocks that a person overrode for its next start, by name.
    overrides: Mapped[list[Any] | None]
    # Why somebody should look at the printer: nobody can say from here what became of the print.
    needs_look: Mapped[str | None] = mapped_column(sa.Text)
    started_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]
    failed_reason: Mapped[str | None] = mapped_column(sa.Text)
    progress_percent: Mapped[int | None]
    used_grams: Mapped[Decimal | None] = mapped_column(Grams())
    material_cost: Mapped[Decimal | None] = mapped_column(Cost())
    deleted_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    printer: Mapped[Printer] = relationship(
        primaryjoin="ScheduledPrint.printer_id == Printer.id", foreign_keys="ScheduledPrint.printer_id"
    )
    order: Mapped[Order | None] = relationship(
        primaryjoin="ScheduledPrint.order_id == Order.id", foreign_keys="ScheduledPrint.order_id"
    )
    print_file: Mapped[PrintFile | None] = relationship(
        primaryjoin="ScheduledPrint.print_file_id == PrintFile.id", foreign_keys="ScheduledPrint.print_file_id"
    )

    def move_to(self, status: PrintStatus, *, at: datetime, reason: str | None = None) -> PrintEvent:
        """The only way a status changes: refuses illegal moves, stamps the times, returns the event it appended.

        Raises:
            IllegalMove: the table of legal moves does not hold this one.
            ValueError: a failure without a reason.
        """
        before = self.status
        if status not in LEGAL_MOVES[before]:
            raise IllegalMove(before, status)
        if status is PrintStatus.failed and not reason:
            raise ValueError("a failed print needs a reason")
        if before in ENDED_STATUSES:
            self.started_at = self.completed_at = self.failed_reason = self.progress_percent = None
            self.used_grams = self.material_cost = self.needs_look = None
        if status is PrintStatus.queued and self.overrides is not None:
            # They were said of one start, which does not come.
            self.overrides = None
        if status is PrintStatus.started:
            self.started_at = at
        if status in ENDED_STATUSES:
            self.completed_at, self.needs_look = at, None
        if status is PrintStatus.failed:
            self.failed_reason = reason
        if status is PrintStatus.completed:
            self.progress_percent = 100
        if status is not PrintStatus.scheduled:
            self.waiting_reason = None
        if status not in WAITING_STATUSES:
            self.held_at = None
        self.status = status
        self.updated_at = at
        event = PrintEvent(
            user_id=self.user_id,
            printer_id=self.printer_id,
            print_id=self.id,
            kind=f"print.{'rescheduled' if before in ENDED_STATUSES else status.value}",
            from_status=before,
            to_status=status,
            reason=reason,
            details={},
            at=at,
        )
        db.session.add(event)
        return event


class PrintEvent(db.Model):
    """Something that happened, written in the transaction of the change itself: history and outbox in one row."""

    __tablename__ = "print_events"
    __table_args__ = (
        sa.UniqueConstraint("user_id", "id"),
        _belongs("printer_id", "printers"),
        _belongs("print_id", "scheduled_prints"),
        _belongs("material_id", "bambu_materials"),
        sa.Index("ix_print_events_print_id", "print_id"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(_owner())
    # None of what concerns no printer: a shop's login.
    printer_id: Mapped[int | None]
    print_id: Mapped[int | None]
    material_id: Mapped[int | None]
    kind: Mapped[str] = mapped_column(sa.String(64))
    from_status: Mapped[PrintStatus | None] = mapped_column(words(PrintStatus, "from_status"))
    to_status: Mapped[PrintStatus | None] = mapped_column(words(PrintStatus, "to_status"))
    reason: Mapped[str | None] = mapped_column(sa.Text)
    details: Mapped[dict[str, Any]]
    at: Mapped[datetime]


class Delivery(db.Model):
    """One event on its way through one channel. What is sent is fixed when the event happens."""

    __tablename__ = "deliveries"
    __table_args__ = (
        sa.UniqueConstraint("user_id", "id"),
        _belongs("printer_id", "printers"),
        _belongs("event_id", "print_events"),
        _belongs("channel_id", "notification_channels"),
        _belongs("folded_into_id", "deliveries"),
        sa.UniqueConstraint("event_id", "destination"),
        sa.Index("ix_deliveries_printer_id", "printer_id", "id"),
        # One stream is one destination of one printer: what goes there goes in order.
        sa.Index(
            "ix_deliveries_stream",
            "printer_id",
            "destination",
            "id",
            sqlite_where=UNSENT,
            postgresql_where=UNSENT,
        ),
        sa.Index("ix_deliveries_due", "next_try_at", sqlite_where=UNSENT, postgresql_where=UNSENT),
        sa.Index("ix_deliveries_folded_into_id", "folded_into_id"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(_owner())
    # As the event's; None goes by mail alone.
    printer_id: Mapped[int | None]
    event_id: Mapped[int]
    message_id: Mapped[str] = mapped_column(sa.String(64), unique=True)
    channel: Mapped[Channel] = mapped_column(words(Channel, "channel"))
    # "email", "webhook" or "channel:12".
    destination: Mapped[str] = mapped_column(sa.String(64))
    channel_id: Mapped[int | None]
    target: Mapped[str] = mapped_column(sa.Text)
    payload: Mapped[dict[str, Any]]
    # It passes quiet hours and digests.
    is_urgent: Mapped[bool] = mapped_column(default=False)
    status: Mapped[DeliveryStatus] = mapped_column(words(DeliveryStatus, "status"), default=DeliveryStatus.pending)
    # All that were ever made, and those of the present ladder, which a replay climbs from its foot.
    attempts: Mapped[int] = mapped_column(default=0)
    tries: Mapped[int] = mapped_column(default=0)
    next_try_at: Mapped[datetime]
    claimed_at: Mapped[datetime | None]
    claimed_by: Mapped[str | None] = mapped_column(sa.String(64))
    # It went out in the summary that carries that delivery's message id.
    folded_into_id: Mapped[int | None]
    sent_at: Mapped[datetime | None]
    error: Mapped[str | None] = mapped_column(sa.Text)
    created_at: Mapped[datetime]


class DeliveryAttempt(db.Model):
    """One try to send a delivery, and what came of it."""

    __tablename__ = "delivery_attempts"
    __table_args__ = (
        _belongs("delivery_id", "deliveries"),
        sa.Index("ix_delivery_attempts_delivery_id", "delivery_id", "id"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(_owner())
    delivery_id: Mapped[int]
    at: Mapped[datetime]
    duration_ms: Mapped[int]
    is_ok: Mapped[bool]
    # HTTP's or SMTP's; None when no answer came, or the channel has none.
    answer_code: Mapped[int | None]
    error: Mapped[str | None] = mapped_column(sa.Text)
    # The first bytes of the answer, as text; as hostile as its sender.
    answer: Mapped[str | None] = mapped_column(sa.Text)


class StartIntent(db.Model):
    """One start of one print: written before anything is sent, so that a command goes out at most once."""

    __tablename__ = "start_intents"
    __table_args__ = (
        _belongs("printer_id", "printers"),
        _belongs("print_id", "scheduled_prints"),
        _belongs("print_file_id", "print_files"),
        sa.UniqueConstraint("printer_id", "submission_id"),
        sa.Index(
            "uq_start_intents_one_open",
            "printer_id",
            unique=True,
            sqlite_where=sa.text("state IN ('claimed', 'uploading', 'armed', 'published', 'unknown')"),
            postgresql_where=sa.text("state IN ('claimed', 'uploading', 'armed', 'published', 'unknown')"),
        ),
        sa.Index("ix_start_intents_print_id", "print_id"),
        # Asked for with every report that tells something new, by printers with years of starts behind them.
        sa.Index(
            "ix_start_intents_not_ended",
            "printer_id",
            sqlite_where=sa.text("ended_at IS NULL"),
            postgresql_where=sa.text("ended_at IS NULL"),
        ),
        # The files to be taken off printers, among all that were ever sent.
        sa.Index("ix_start_intents_is_file_on_printer", "is_file_on_printer"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(_owner())
    printer_id: Mapped[int]
    print_id: Mapped[int]
    print_file_id: Mapped[int | None]
    plate: Mapped[int]
    sha256: Mapped[str] = mapped_column(sa.String(64))
    size_bytes: Mapped[int] = mapped_column(sa.BigInteger)
    remote_name: Mapped[str] = mapped_column(sa.String(64))
    submission_id: Mapped[int]
    mapping: Mapped[list[Any]]
    state: Mapped[IntentState] = mapped_column(words(IntentState, "state"), default=IntentState.claimed)
    reason: Mapped[str | None] = mapped_column(sa.Text)
    # What each interlock read when the start was armed, by name.
    checks: Mapped[dict[str, Any] | None]
    # Who armed it, by which holding of the printer.
    owner: Mapped[str | None] = mapped_column(sa.String(64))
    epoch: Mapped[int | None]
    # A silent printer is asked once for a full report.
    report_asked_at: Mapped[datetime | None]
    # From the upload until its absence was seen: a file left behind has started by itself hours later.
    is_file_on_printer: Mapped[bool] = mapped_column(default=False)
    claimed_at: Mapped[datetime]
    published_at: Mapped[datetime | None]
    confirmed_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class PrinterCommand(db.Model):
    """What a person asks of a printer, on its way from any web process to the worker that holds its connection."""

    __tablename__ = "printer_commands"
    __table_args__ = (
        _belongs("printer_id", "printers"),
        _belongs("print_id", "scheduled_prints"),
        sa.Index("ix_printer_commands_state", "state", "id"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(_owner())
    printer_id: Mapped[int]
    print_id: Mapped[int | None]
    kind: Mapped[CommandKind] = mapped_column(words(CommandKind, "kind"))
    arguments: Mapped[dict[str, Any] | None]
    state: Mapped[CommandState] = mapped_column(words(CommandState, "state"), default=CommandState.requested)
    reason: Mapped[str | None] = mapped_column(sa.Text)
    result: Mapped[dict[str, Any] | None]
    requested_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


class IdempotencyKey(db.Model):
    """The first answer to a POST that may be repeated, kept for a day in the transaction of its effect."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (sa.UniqueConstraint("user_id", "method", "path", "key"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(_owner())
    method: Mapped[str] = mapped_column(sa.String(8))
    path: Mapped[str] = mapped_column(sa.String(255))
    key: Mapped[str] = mapped_column(sa.String(255))
    body_hash: Mapped[str] = mapped_column(sa.String(64))
    answer_status: Mapped[int | None]
    answer_body: Mapped[str | None] = mapped_column(sa.Text)
    created_at: Mapped[datetime] = mapped_column(index=True)


for _table in METADATA.tables.values():
    # SQLite gives the id of a deleted last row to the next one; whoever still holds it would reach another row.
    if isinstance(_table.c.get("id", sa.Column()).type, sa.Integer):
        _table.kwargs["sqlite_autoincrement"] = True
