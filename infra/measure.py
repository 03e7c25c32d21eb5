"""Prints what Lambda has to load: the size of each function, and how long its process takes until it asks for work.

    infra/tools cargo lambda build --release --x86-64 --bin analyzer-lambda --bin updater-lambda
    infra/tools python infra/measure.py

The time is from starting the process until its first request to the Runtime API, on this machine; Lambda adds what it needs
to fetch the code and to make a sandbox. Only functions for this machine's processor can be started. The state is a folder, so
nothing leaves this machine; on Lambda the updater also reads one small object before it asks for work.
"""

import http.server
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

STARTS = 21
ZIP_BYTES_MAX = 5_000_000
MACHINES = {62: "x86_64", 183: "aarch64"}  # e_machine of ELF


class RuntimeApi(http.server.BaseHTTPRequestHandler):
    """Notes when somebody asks for work, and has none."""

    asked = threading.Event()

    def do_GET(self):
        self.asked.set()
        time.sleep(60)

    def log_message(self, *_):
        pass


def first_request(bootstrap, api, folder):
    environment = {
        "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{api.server_port}",
        "AWS_LAMBDA_FUNCTION_NAME": "measure",
        "AWS_LAMBDA_FUNCTION_VERSION": "1",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "PALISADE_STATE": folder,
        "PALISADE_LOGS": "s3://nowhere",
    }
    RuntimeApi.asked.clear()
    began = time.perf_counter()
    process = subprocess.Popen([bootstrap], env=environment)
    asked = RuntimeApi.asked.wait(10)
    took = time.perf_counter() - began
    process.kill()
    process.wait()
    if not asked:
        sys.exit(f"{bootstrap} asks for no work")
    return took * 1_000


def main():
    target = Path(os.environ.get("CARGO_TARGET_DIR", Path(__file__).parent.parent / "target")) / "lambda"
    bootstraps = sorted(target.glob("*-lambda/bootstrap"))
    if not bootstraps:
        sys.exit(f"there is no function in {target}; build them first, as this file says at its top")
    api = http.server.ThreadingHTTPServer(("127.0.0.1", 0), RuntimeApi)
    api.daemon_threads = True
    threading.Thread(target=api.serve_forever, daemon=True).start()
    print(f"{'function':20} {'processor':10} {'binary':>10} {'zip':>10} {'start, median of ' + str(STARTS):>22}")
    too_large = False
    for bootstrap in bootstraps:
        content = bootstrap.read_bytes()
        machine = MACHINES.get(int.from_bytes(content[18:20], "little"), "unknown")
        with tempfile.TemporaryDirectory() as folder:
            zipped = Path(folder) / "function.zip"
            with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as out:
                out.write(bootstrap, "bootstrap")
            size = zipped.stat().st_size
            start = "not started"
            if machine == platform.machine():
                times = [first_request(bootstrap, api, folder) for _ in range(STARTS)]
                start = f"{statistics.median(times):.0f} ms"
        too_large |= size > ZIP_BYTES_MAX
        print(f"{bootstrap.parent.name:20} {machine:10} {len(content) / 1e6:7.2f} MB {size / 1e6:7.2f} MB {start:>22}")
    if too_large:
        sys.exit(f"a zip is larger than {ZIP_BYTES_MAX / 1e6:.0f} MB")


main()
