#!/usr/bin/env python3
"""What test.sh shows while a step runs: on a terminal its name and the seconds, in one line; elsewhere nothing before a minute is over.
The steps are those of the gates, with a cargo that takes its time and builds nothing. Needs no more than test.sh itself.
"""

import os
import pty
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CARGO = "#!/bin/sh\necho nothing is built\nsleep 2.5\nexit 1\n"
STEPS = ["build of the simulator", "build of the release"]
LAST = "0 passed, 2 failed, 1 skipped"


def run(home, terminal):
    """All that test.sh prints."""
    environment = {
        **os.environ,
        "PATH": f"{home}:{os.environ['PATH']}",
        "CARGO_TARGET_DIR": str(home / "target"),
        "LANCE_EVIDENCE": str(home / "evidence"),
        "TERM": "xterm",
    }
    near, far = pty.openpty() if terminal else os.pipe()
    with subprocess.Popen(
        [ROOT / "test.sh", "--gates"], env=environment, stdin=subprocess.DEVNULL, stdout=far, stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as tests:
        os.close(far)
        printed = b""
        while True:
            try:
                came = os.read(near, 4096)
            except OSError:
                # A terminal that nobody has open any more is an error to read from.
                came = b""
            if not came:
                break
            printed += came
        os.close(near)
    assert tests.returncode == 1, f"exit code {tests.returncode}:\n{printed.decode()}"
    return printed.decode().replace("\r\n", "\n")


def check_common(printed):
    assert printed.splitlines()[-1] == LAST, printed
    for step in STEPS:
        assert re.search(f"FAILED after [0-9.]+ s with exit code 1: {step}\n", printed), printed
    assert printed.count("nothing is built") == len(STEPS), printed


def main():
    with tempfile.TemporaryDirectory(prefix="lance-progress-") as directory:
        home = Path(directory)
        (home / "cargo").write_text(CARGO)
        (home / "cargo").chmod(0o755)
        terminal = run(home, True)
        check_common(terminal)
        for step in STEPS:
            line = re.search(f"== {step}(.*)\n", terminal)[1]
            assert re.fullmatch(rf"(\r== {step}  [0-9]+ s)+\r\x1b\[K== {step}", line), repr(line)
        plain = run(home, False)
        check_common(plain)
        assert [line for line in plain.splitlines() if line.startswith("== build")] == [f"== {step}" for step in STEPS], plain
        assert not re.search("[\r\x1b]| has run for ", plain), plain
    print("> test.sh shows on a terminal that a step runs, and leaves logs as they are")


if __name__ == "__main__":
    sys.exit(main())
