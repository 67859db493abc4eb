"""What speaks to a simulated printer as a client speaks to a real one: paho over TLS, ftplib over implicit TLS."""

from __future__ import annotations

import contextlib
import ftplib
import io
import json
import queue
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from simulator import Machine, Plate, SimulatedPrinter, make_sliced_file, models

SERIAL = "01P00A123456789"
CODE = "12345678"


class Client:
    """A printer's client; everything heard goes through `messages`, in order, and as bytes through `payloads`."""

    def __init__(self, printer: SimulatedPrinter, code: str = CODE, *, verify: ssl.SSLContext | None = None) -> None:
        self.printer = printer
        self.messages: queue.Queue[dict[str, Any]] = queue.Queue()
        self.payloads: queue.Queue[bytes] = queue.Queue()
        self.connack: queue.Queue[str] = queue.Queue()
        self.ended: queue.Queue[bool] = queue.Queue()
        self._ready: queue.Queue[bool] = queue.Queue()
        self._sequence = 20000
        self.mqtt = mqtt.Client(CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
        self.mqtt.tls_set_context(verify or trusting(printer))
        self.mqtt.username_pw_set("bblp", code)
        self.mqtt.on_connect = lambda client, data, flags, reason, properties: self.connack.put(str(reason))
        self.mqtt.on_subscribe = lambda *_: self._ready.put(True)
        self.mqtt.on_disconnect = lambda *_: self.ended.put(True)
        self.mqtt.on_message = lambda client, data, message: self._hear(message.payload)

    def _hear(self, payload: bytes) -> None:
        self.payloads.put(payload)
        with contextlib.suppress(ValueError):
            self.messages.put(json.loads(payload))

    def connect(self) -> str:
        """The CONNACK's reason."""
        self.mqtt.connect(self.printer.host, self.printer.mqtt_port)
        self.mqtt.loop_start()
        return self.connack.get(timeout=5)

    def listen(self, topic: str | None = None) -> Client:
        assert self.connect() == "Success"
        self.mqtt.subscribe(topic or f"device/{self.printer.serial}/report")
        self._ready.get(timeout=5)
        return self

    def close(self) -> None:
        self.mqtt.disconnect()
        self.mqtt.loop_stop()

    def send(self, section: str, command: str, **fields: Any) -> str:
        self._sequence += 1
        body = {"sequence_id": str(self._sequence), "command": command, **fields}
        self.send_raw(json.dumps({section: body}).encode())
        return str(self._sequence)

    def send_raw(self, payload: bytes) -> None:
        self.mqtt.publish(f"device/{self.printer.serial}/request", payload)

    def ask(self, section: str, command: str, **fields: Any) -> dict[str, Any]:
        """Sends and waits for the acknowledgement."""
        sequence = self.send(section, command, **fields)
        heard = self.until(lambda message: message.get(section, {}).get("sequence_id") == sequence)
        return heard[-1][section]

    def pushall(self) -> dict[str, Any]:
        while not self.messages.empty():
            self.messages.get()
        self.send("pushing", "pushall", version=1, push_target=1)
        report = self.until(lambda message: {"gcode_state", "home_flag", "ams"} <= message.get("print", {}).keys())[-1]
        return report["print"]

    def until(self, wanted: Callable[[dict[str, Any]], bool], seconds: float = 5.0) -> list[dict[str, Any]]:
        """Every message up to the first wanted one."""
        heard = []
        end = time.monotonic() + seconds
        while True:
            message = self.messages.get(timeout=max(0.001, end - time.monotonic()))
            heard.append(message)
            if wanted(message):
                return heard

    def until_state(self, state: str, seconds: float = 5.0) -> list[dict[str, Any]]:
        return self.until(lambda message: message.get("print", {}).get("gcode_state") == state, seconds)

    def hears_nothing(self, seconds: float = 0.15) -> bool:
        try:
            self.messages.get(timeout=seconds)
        except queue.Empty:
            return True
        return False


class Storage(ftplib.FTP_TLS):
    """Implicit TLS, data channel on the control channel's session unless `reuse` is off."""

    reuse = True

    def open(self, printer: SimulatedPrinter, code: str = CODE) -> Storage:
        self.host = printer.host
        plain = socket.create_connection((printer.host, printer.ftps_port), 5)
        self.sock = self.context.wrap_socket(plain, server_hostname=printer.serial)
        self.af = self.sock.family
        self.file = self.sock.makefile("r", encoding=self.encoding)
        self.welcome = self.getresp()
        self.login("bblp", code)
        self.prot_p()
        return self

    def ntransfercmd(self, cmd: str, rest: int | str | None = None) -> tuple[Any, Any]:
        plain, size = ftplib.FTP.ntransfercmd(self, cmd, rest)
        session = self.sock.session if self.reuse else None
        return self.context.wrap_socket(plain, server_hostname=self.host, session=session), size

    def put(self, name: str, data: bytes) -> str:
        self.voidcmd("TYPE I")
        channel = self.transfercmd(f"STOR {name}")
        channel.sendall(data)
        # As towards real printers: no unwrap(), which they do not answer.
        channel.close()
        return self.voidresp()


def trusting(printer: SimulatedPrinter) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(printer.ca_file))
    context.check_hostname = False
    # The leaf has no key usage, as the real ones; Python 3.13 would insist.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def storage(printer: SimulatedPrinter, code: str = CODE) -> Storage:
    return Storage(context=trusting(printer)).open(printer, code)


def start_fields(name: str = "benchy", plate: int = 1, **changed: Any) -> dict[str, Any]:
    return {
        "param": f"Metadata/plate_{plate}.gcode",
        "url": f"ftp://{name}.gcode.3mf",
        "file": f"{name}.gcode.3mf",
        "subtask_name": name,
        "subtask_id": "4711",
        "task_id": "4711",
        "project_id": "4711",
        "profile_id": "0",
        "md5": "",
        "bed_type": "textured_plate",
        "bed_leveling": True,
        "use_ams": True,
        "ams_mapping": [0],
        "ams_mapping2": [{"ams_id": 0, "slot_id": 0}],
        **changed,
    }


def start_message(sequence: int = 20001, **changed: Any) -> dict[str, Any]:
    return {"print": {"command": "project_file", "sequence_id": str(sequence), **start_fields(**changed)}}


def command(name: str, **fields: Any) -> dict[str, Any]:
    return {"print": {"command": name, "sequence_id": "20009", **fields}}


def files(**held: bytes) -> Callable[[str], io.BytesIO]:
    """A storage of these names, `.gcode.3mf` added."""

    def open_file(path: str) -> io.BytesIO:
        name = path.removesuffix(".gcode.3mf")
        if name not in held:
            raise FileNotFoundError(path)
        return io.BytesIO(held[name])

    return open_file


def machine(model: str = "P1S", plate: Plate | None = None, **changed: Any) -> Machine:
    """A machine that holds `benchy`, sliced for it: half an hour, 60 layers, 12 g."""
    row = models[model]
    plate = plate or Plate(1, 30, [("PLA", "#FF0000", 12.0, 4.0)])
    data = make_sliced_file(plates=[plate], model_id=row.slice_ids[0])
    return Machine(f"{row.serial_prefix}00A123456789", model, **{"open_file": files(benchy=data), **changed})


def mapped(printer: Machine, **changed: Any) -> dict[str, Any]:
    return start_message(ams_mapping2=[{"ams_id": printer.units[0].id, "slot_id": 0}], **changed)


def status(printer: Machine) -> dict[str, Any]:
    return printer.report(full=True)["print"]
