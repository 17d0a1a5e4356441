from __future__ import annotations

import subprocess
import sys


def test_renewals_while_many_clients_connect_do_not_end_the_process() -> None:
    command = [sys.executable, "-m", "tests.faults.tls_renewal_trial", "10"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ", 0 refused" in ended.stdout
