"""A decoding process ends with the main one, and says nothing of what that one left half-way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LEFT = """
import multiprocessing, os, signal, socket, sys, time
from multiprocessing.resource_sharer import DupFd, _resource_sharer
from octfast.data.workers import end_with_the_main_process

def decode(pipe):
    end_with_the_main_process()
    DupFd(1)  # as torch offers a batch
    pipe.send(_resource_sharer._address)
    pipe.recv()
    os.kill(os.getpid(), signal.SIGINT)
    sys.excepthook(ValueError, ValueError("what is no connection's fault"), None)
    pipe.send("still here")

multiprocessing.set_start_method("fork")
here, there = multiprocessing.Pipe()
decoding = multiprocessing.Process(target=decode, args=(there,))
decoding.start()
address = here.recv()
for _ in range(5):
    with socket.socket(socket.AF_UNIX) as taken:
        taken.connect(address)
time.sleep(0.3)
here.send("go on")
print(here.recv())
decoding.join()
"""

ENDED = """
import multiprocessing, os, signal, sys, time
from octfast.data.workers import end_with_the_main_process

def decode():
    time.sleep(0.5)
    end_with_the_main_process()
    print("decodes", flush=True)
    os._exit(0)

multiprocessing.set_start_method("fork")
multiprocessing.Process(target=decode).start()
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are forked on Linux alone")


def test_what_the_main_process_left_half_way_is_no_news():
    ended = subprocess.run([sys.executable, "-c", LEFT], capture_output=True, text=True, timeout=120)
    assert ended.stdout == "still here\n"
    assert ended.stderr == "ValueError: what is no connection's fault\n"


@pytest.mark.parametrize(("how", "printed"), [("killed", ""), ("lives", "decodes\n")])
def test_one_that_is_started_as_the_main_process_is_killed_ends(how, printed):
    # Its end is when the pipe that it holds is closed.
    ended = subprocess.run([sys.executable, "-c", ENDED, how], capture_output=True, text=True, timeout=120)
    assert (ended.stdout, ended.stderr) == (printed, "")
