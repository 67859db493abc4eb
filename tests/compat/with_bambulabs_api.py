"""bambulabs-api against one printer: python with_bambulabs_api.py HOST MQTT_PORT FTPS_PORT SERIAL CODE FILE.

Runs in the environment of `make compat`; prints one JSON object of what the program saw and did.
"""

import json
import sys
import time

from bambulabs_api.ftp_client import PrinterFTPClient
from bambulabs_api.mqtt_client import PrinterMQTTClient

PATIENCE_SECONDS = 20.0


def eventually(look, wanted):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and str(look()) not in wanted:
        time.sleep(0.05)
    return str(look())


def main(host, mqtt_port, ftps_port, serial, code, file):
    client = PrinterMQTTClient(host, code, serial, port=int(mqtt_port))
    client.connect()
    client.start()
    seen = {"before": eventually(client.get_printer_state, {"IDLE", "FINISH"})}
    seen["nozzle_diameter"] = client.nozzle_diameter()
    # Its command for the light names no command, and nobody reports that a printer obeys it.
    seen["light"] = client.get_light_state()
    with open(file, "rb") as stream:
        seen["upload"] = PrinterFTPClient(host, code, port=int(ftps_port)).upload_file(stream, "compat.gcode.3mf")
    client.start_print_3mf("compat.gcode.3mf", 1, use_ams=False)
    seen["started"] = eventually(client.get_printer_state, {"RUNNING"})
    client.pause_print()
    seen["paused"] = eventually(client.get_printer_state, {"PAUSE"})
    client.resume_print()
    seen["resumed"] = eventually(client.get_printer_state, {"RUNNING"})
    client.set_print_speed_lvl(3)
    seen["speed"] = eventually(client.get_print_speed, {"124"})
    client.stop_print()
    seen["stopped"] = eventually(client.get_printer_state, {"FAILED", "IDLE"})
    client.stop()
    print(json.dumps(seen))


main(*sys.argv[1:])
