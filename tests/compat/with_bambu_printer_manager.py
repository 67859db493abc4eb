"""bambu-printer-manager against one printer: the same arguments and answer as with_bambulabs_api.py."""

import json
import sys
import time

import bpm.bambuprinter
from bpm.bambuconfig import BambuConfig
from bpm.bambuprinter import BambuPrinter

PATIENCE_SECONDS = 20.0


def eventually(look, wanted):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and str(look()) not in wanted:
        time.sleep(0.05)
    return str(look())


def main(host, mqtt_port, ftps_port, serial, code, file):
    # The program knows port 990 alone, which only root may open here.
    client = bpm.bambuprinter.IoTFTPSClient
    bpm.bambuprinter.IoTFTPSClient = lambda host, port, *rest, **more: client(host, int(ftps_port), *rest, **more)
    printer = BambuPrinter(
        config=BambuConfig(hostname=host, access_code=code, serial_number=serial, mqtt_port=int(mqtt_port))
    )
    printer.start_session()

    def state():
        return printer.printer_state.gcode_state

    eventually(lambda: printer.printer_state.climate.bed_temp > 0, {"True"})
    seen = {"model": str(printer.config.printer_model), "bed": printer.printer_state.climate.bed_temp}
    # Somebody starts it at the screen; the program sees it and steers it.
    print("press start", file=sys.stderr, flush=True)
    seen["started"] = eventually(state, {"RUNNING"})
    printer.pause_printing()
    seen["paused"] = eventually(state, {"PAUSE"})
    printer.resume_printing()
    seen["resumed"] = eventually(state, {"RUNNING"})
    printer.stop_printing()
    seen["stopped"] = eventually(state, {"FAILED", "IDLE"})
    printer.quit()
    print(json.dumps(seen))


main(*sys.argv[1:])
