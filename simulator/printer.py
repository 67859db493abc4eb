"""A simulated printer on real sockets: the model of `machine.py` fed with real time, behind MQTT over TLS and FTPS."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from simulator.broker import Door, LoopThread, PrinterBroker
from simulator.certificates import Authority, Credentials, shared_authority
from simulator.faults import Faults, Link
from simulator.ftps import FtpsServer
from simulator.machine import Machine
from simulator.printer_models import Cadence
from simulator.records import CommandRecord, ConnectionRecord, StartRecord
from simulator.replay import Replay
from simulator.run import Phase
from simulator.script import RESTART, Script, Step
from simulator.spools import AmsUnit, Spool

_FASTEST_SECONDS = 0.05
_SLOWEST_SECONDS = 1.0
_MIXED_FULL_SECONDS = 5.0


class SimulatedPrinter:
    """One printer at `host`; port 0 takes a free one, read back as `mqtt_port` and `ftps_port`.

    `speed` is simulated seconds per real second; 0 stops the printer's time, and then only `advance()` moves it.
    `require_session_reuse`: the FTPS data channel must resume the control channel's TLS session, as on real printers.
    The other arguments are `Machine`'s. Everything public may be called from any thread; what a person does at the
    printer (`press_…`, `swap_spool`, …) raises what the method of that name of Machine raises.
    """

    def __init__(
        self,
        serial: str,
        access_code: str,
        model: str = "P1S",
        name: str | None = None,
        host: str = "127.0.0.1",
        mqtt_port: int = 0,
        ftps_port: int = 0,
        speed: float = 1.0,
        seed: int = 0,
        spools: Sequence[Spool | None] | None = None,
        *,
        units: Sequence[AmsUnit] | None = None,
        external: Spool | None = None,
        developer_mode: bool = True,
        nozzle_diameter: str = "0.4",
        authority: Authority | None = None,
        require_session_reuse: bool = True,
        faults: Faults | None = None,
    ) -> None:
        self.serial = serial
        self.access_code = access_code
        self.host = host
        self.mqtt_port = mqtt_port
        self.ftps_port = ftps_port
        self.authority = authority or shared_authority()
        self.faults = faults or Faults()
        self.faults.reach_link = self._reach_link
        self.machine = Machine(
            serial,
            model,
            name=name,
            access_code=access_code,
            seed=seed,
            spools=spools,
            units=units,
            external=external,
            developer_mode=developer_mode,
            nozzle_diameter=nozzle_diameter,
            open_file=self._open_file,
            faults=self.faults,
            boot_epoch_seconds=int(time.time()),
        )
        self.name = self.machine.name
        self._speed = speed
        self._thread = LoopThread.shared()
        self._folder = tempfile.TemporaryDirectory(prefix="simulated-printer-", ignore_cleanup_errors=True)
        self.files = Path(self._folder.name) / "storage"
        """The root of the printer's storage, as FTPS shows it."""
        self.files.mkdir()
        classic = self.machine.model.classic
        self._broker = PrinterBroker(serial, access_code, Door(self.faults, self._hear, classic))
        self._ftps = FtpsServer(
            self.files, access_code, self.faults, self._may_write, needs_session_reuse=require_session_reuse
        )
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._own_certificate = self.authority.issue(serial)
        self._script: deque[tuple[float, Step]] = deque()
        self._life: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._fed_at = 0.0
        self._reported_at = 0.0
        self._full_at = 0.0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Powers on and listens. Raises OSError if a port that was asked for is taken."""
        self.plug_in()

    def stop(self) -> None:
        """Powers off for good: the storage goes with everything in it."""
        self.pull_plug()
        self._call(self._broker.bury)
        self._folder.cleanup()

    @property
    def ca_file(self) -> Path:
        """The certificate of the authority that issued this printer's."""
        return self.authority.ca_file

    @property
    def ca_pem(self) -> str:
        return self.authority.ca_pem

    @property
    def starts(self) -> list[StartRecord]:
        """Every `project_file` that arrived, accepted or not, oldest first."""
        return self.machine.starts

    @property
    def commands(self) -> list[CommandRecord]:
        return self.machine.commands

    @property
    def connections(self) -> list[ConnectionRecord]:
        return self._broker.connections

    @property
    def speed(self) -> float:
        return self._speed

    @speed.setter
    def speed(self, value: float) -> None:
        def change() -> None:
            self._speed = value

        self._press(change)

    def press_start(self, name: str) -> None:
        """Starts a print at the screen: the stored file `name`, or a half-hour one if there is none."""
        self._press(lambda: self.machine.press_start(name))

    def press_stop(self) -> None:
        self._press(self.machine.stop)

    def press_pause(self) -> None:
        self._press(self.machine.pause)

    def press_resume(self) -> None:
        self._press(self.machine.resume)

    def swap_spool(self, ams_id: int, tray_id: int, spool: Spool | None) -> None:
        self._press(lambda: self.machine.swap_spool(ams_id, tray_id, spool))

    def finish_now(self) -> None:
        self._press(self.machine.finish_now)

    def fail(self, code: int) -> None:
        self._press(lambda: self.machine.fail(code))

    def pause_with(self, code: int) -> None:
        """The printer pauses by itself with this `print_error`."""
        self._press(lambda: self.machine.pause_with(code))

    def show_hms(self, codes: Sequence[tuple[int, int]]) -> None:
        """Health messages (attr, code) that the reports carry from now on."""
        self._press(lambda: self.machine.show_hms(codes))

    def replay(self, replay: Replay) -> None:
        """Plays a captured sequence, its times in simulated seconds, until power-off; see Machine.play."""
        self._press(lambda: self.machine.play(replay))

    def follow(self, script: Script) -> None:
        """Misbehaves by this script from now on, in place of any before; it goes on over power cycles."""

        def begin() -> None:
            self._script = deque((self.machine.now + step.at_seconds, step) for step in script.steps)

        self._press(begin)

    @property
    def has_listeners(self) -> bool:
        """Whether anybody has subscribed to anything."""
        return self._broker.has_subscribers

    def advance(self, seconds: float) -> None:
        """Moves simulated time on at once; a report at each change of state or stage on the way and one at the end."""

        async def move() -> None:
            await self._feed(seconds)
            await self._send_report()

        self._thread.run(move())

    def plug_in(self) -> None:
        """Power on: a fresh boot on the same ports, IDLE, with the storage and the spools as they were."""
        if self._life is not None:
            return
        self._own_certificate = self.authority.issue(self.serial)
        certificate, key = self._write_certificate()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        if not self.machine.model.newest_tls_is_1_3:
            self._context.maximum_version = ssl.TLSVersion.TLSv1_2
        self._context.load_cert_chain(certificate, key)
        self._thread.run(self._power_on(self._context))
        try:
            self.ftps_port = self._ftps.start(self.host, self.ftps_port, certificate, key)
        except OSError:
            self._thread.run(self._power_off())
            raise

    def pull_plug(self) -> None:
        """Power off: listeners and connections are gone at once, and so is the print under way."""
        if self._life is None:
            return
        self._ftps.stop()
        self._thread.run(self._power_off())

    def restart(self) -> None:
        """Off and on again, as by a hand at the switch."""
        self.pull_plug()
        self.plug_in()

    def change_certificate(self) -> None:
        """From now on new connections see the certificate that the faults say; those there are stay."""
        certificate, key = self._write_certificate()
        self._call(lambda: self._context.load_cert_chain(certificate, key))
        self._ftps.change_certificate(certificate, key)

    def _write_certificate(self) -> tuple[Path, Path]:
        return self._credentials().write(Path(self._folder.name))

    def _credentials(self) -> Credentials:
        match self.faults.wrong_certificate:
            case "other authority":
                return Authority("Another CA").issue(self.serial)
            case "other serial":
                return self.authority.issue(f"{self.serial[:-1]}X")
            case "expired":
                return self.authority.issue(self.serial, from_days=-30, to_days=-1)
            case "not yet valid":
                return self.authority.issue(self.serial, from_days=1)
        return self._own_certificate

    async def _power_on(self, context: ssl.SSLContext) -> None:
        self.mqtt_port = await self._broker.start(self.host, self.mqtt_port, context)
        self._fed_at = time.monotonic()
        self._life = asyncio.create_task(self._live())

    async def _power_off(self) -> None:
        life, self._life = self._life, None
        await self._broker.stop()
        self.machine.power_cycle()
        if life is not None:
            life.cancel()
            # A fault of the simulator itself must not pass for a silent printer: it surfaces here.
            with contextlib.suppress(asyncio.CancelledError):
                await life

    async def _live(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._pause_seconds())
            self._wake.clear()
            await self._catch_up()
            if self._report_is_due():
                await self._send_report()

    def _interval_seconds(self) -> float:
        """Between reports: a second as on real printers, less when a print runs faster than time."""
        if not self.machine.busy or self._speed <= 1:
            return _SLOWEST_SECONDS
        return max(_FASTEST_SECONDS, _SLOWEST_SECONDS / self._speed)

    def _pause_seconds(self) -> float:
        until_report = self._reported_at + self._interval_seconds() - time.monotonic()
        until_event = self._seconds_to_next_event() / self._speed if self._speed > 0 else _SLOWEST_SECONDS
        return max(0.001, min(until_report, until_event))

    def _report_is_due(self) -> bool:
        return time.monotonic() - self._reported_at >= self._interval_seconds() - 0.002

    async def _catch_up(self) -> None:
        now = time.monotonic()
        elapsed, self._fed_at = now - self._fed_at, now
        if self._speed > 0:
            await self._feed(elapsed * self._speed)

    async def _feed(self, seconds: float) -> None:
        """Advances the machine event by event, so that no state or stage passes unreported however fast time runs."""
        machine = self.machine
        while seconds > 0:
            step = min(seconds, max(self._seconds_to_next_event(), 1e-6))
            before = _newsworthy(machine)
            machine.advance(step)
            seconds -= step
            self._play_script()
            for message in machine.outbox.take_overdue():
                await self._publish(message)
            if _newsworthy(machine) != before:
                await self._send_report()

    def _seconds_to_next_event(self) -> float:
        until_step = self._script[0][0] - self.machine.now if self._script else float("inf")
        return max(0.0, min(self.machine.seconds_to_next_event(), until_step))

    def _play_script(self) -> None:
        while self._script and self._script[0][0] <= self.machine.now + 1e-6:
            _, step = self._script.popleft()
            step.play(self.machine)
            if step.do == RESTART:
                self._broker.cut_all()
                self.machine.power_cycle()

    async def _send_report(self) -> None:
        self._reported_at = time.monotonic()
        if not self._broker.has_subscribers or not self.faults.sends_reports() or self.machine.is_replaying:
            return
        cadence = self.machine.model.cadence
        full_is_due = cadence is Cadence.MIXED and self._reported_at - self._full_at >= _MIXED_FULL_SECONDS
        if cadence is Cadence.FULL or full_is_due:
            self._full_at = self._reported_at
            report = self.machine.report(full=True)
        else:
            report = self.machine.report(full=False)
        for message in self.machine.outbox.let_out([report] if report else []):
            await self._publish(message)

    async def _hear(self, payload: bytes) -> None:
        await self._catch_up()
        message = _read(payload)
        for answer in self.machine.handle(message, datetime.now(UTC)):
            await self._publish(answer)
        if self.machine.reboot_wanted:
            self._broker.cut_all()
            self.machine.power_cycle()
        if isinstance(message, dict) and "print" in message:
            await self._send_report()
        self._wake.set()

    async def _publish(self, message: dict[str, Any]) -> None:
        layout: dict[str, Any] = {"indent": 4} if self.machine.model.pretty_json else {"separators": (",", ":")}
        await self._broker.publish(self.faults.bytes_to_send(json.dumps(message, **layout).encode()))

    def _press(self, button: Callable[[], None]) -> None:
        async def press() -> None:
            await self._catch_up()
            button()
            await self._send_report()
            self._wake.set()

        self._thread.run(press())

    def _reach_link(self, act: Callable[[Link], None]) -> None:
        if self._thread.is_current:
            act(self._broker)
        else:
            self._call(lambda: act(self._broker))

    def _call(self, action: Callable[[], None]) -> None:
        async def call() -> None:
            action()

        self._thread.run(call())

    def _may_write(self) -> bool:
        machine = self.machine
        return machine.storage == "normal" and (machine.developer_mode or not machine.model.guards_files)

    def _open_file(self, path: str) -> BinaryIO:
        target = (self.files / path).resolve()
        if not target.is_relative_to(self.files.resolve()) or not target.is_file():
            raise FileNotFoundError(path)
        return target.open("rb")


def _newsworthy(machine: Machine) -> tuple[object, ...]:
    """What a report is sent for when it changes. Not each change of filament: a print of several has two a layer."""
    run = machine.run
    return machine.state, machine.print_error, run.stage if run is not None and run.phase is Phase.WARMING else None


def _read(payload: bytes) -> Any:
    """The JSON of a request, or None; a trailing NUL, as some clients send, is no harm."""
    try:
        return json.loads(payload.rstrip(b"\0").decode(errors="replace"))
    except (ValueError, RecursionError):
        return None
