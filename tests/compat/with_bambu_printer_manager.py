"""bambu-printer-manager against one printer: the same arguments and answer as with_bambulabs_api.py."""

import json
import sys
import time
from pathlib import Path

import bpm.bambuprinter
from bpm.bambuconfig import BambuConfig
from bpm.bambuprinter import BambuPrinter
from bpm.bambutools import PlateType

PATIENCE_SECONDS = 20.0
CANCELLED = 0x0300400C


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
        config=BambuConfig(
            hostname=host,
            access_code=code,
            serial_number=serial,
            mqtt_port=int(mqtt_port),
            # Else it keeps its notes in the home of whoever runs the tests.
            bpm_cache_path=Path(file).parent / "notes",
        )
    )
    printer.start_session()

    def state():
        return printer.printer_state.gcode_state

    eventually(lambda: printer.printer_state.climate.bed_temp > 0, {"True"})
    seen = {"model": str(printer.config.printer_model), "bed": printer.printer_state.climate.bed_temp}
    printer.light_state = False
    seen["light"] = eventually(lambda: printer.light_state, {"False"})
    printer.set_spool_details(
        1, "GFG99", tray_type="PETG", tray_color="FF0000FF", nozzle_temp_min=230, nozzle_temp_max=260
    )
    seen["told"] = eventually(
        lambda: [spool.type for spool in printer.printer_state.spools if spool.id == 1], {"['PETG']"}
    )
    printer.load_filament(1)
    seen["loaded"] = eventually(lambda: printer.printer_state.active_tray_id, {"1"})
    printer.unload_filament()
    seen["unloaded"] = eventually(lambda: printer.printer_state.active_tray_id != 1, {"True"})
    files = printer.upload_sdcard_file(file, "/compat.gcode.3mf")
    seen["files"] = [each["name"] for each in files["children"]]
    printer.print_3mf_file("/compat.gcode.3mf", 1, PlateType.AUTO, True, "[0]")
    seen["started"] = eventually(state, {"RUNNING"})
    printer.pause_printing()
    seen["paused"] = eventually(state, {"PAUSE"})
    printer.resume_printing()
    seen["resumed"] = eventually(state, {"RUNNING"})
    printer.speed_level = 4
    seen["speed"] = eventually(lambda: int(printer.speed_level), {"4"})
    printer.stop_printing()
    seen["stopped"] = eventually(state, {"FAILED", "IDLE"})
    # What a cancelled print leaves on the screen.
    seen["error"] = eventually(lambda: printer.printer_state.print_error, {str(CANCELLED)})
    printer.clean_print_error("", CANCELLED)
    seen["cleared"] = eventually(lambda: printer.printer_state.print_error, {"0"})
    printer.quit()
    print(json.dumps(seen))


main(*sys.argv[1:])
