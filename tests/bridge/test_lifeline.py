"""A script runs as if it had been started itself, until its parent lets go."""

import signal
import subprocess
import sys

SCRIPT = """
import signal, sys, time
print(__name__, sys.argv[1:], flush=True)
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("deaf", flush=True)
if "quits" in sys.argv:
    sys.exit(3)
time.sleep(60)
"""


def start(tmp_path, *arguments: str, runner: tuple[str, ...] = ("-m", "bridge.lifeline")) -> subprocess.Popen:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, *runner, str(tmp_path / "script.py"), *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_script_gets_its_arguments_and_its_exit_code_is_kept(tmp_path):
    with start(tmp_path, "quits", "--now") as process:
        assert process.stdout.readline() == "__main__ ['quits', '--now']\n"
        assert process.wait(10) == 3


def test_a_script_ends_when_the_pipe_is_closed(tmp_path):
    with start(tmp_path) as process:
        process.stdout.readline()
        process.stdin.write("nothing of interest")
        process.stdin.close()
        assert process.wait(10) == -signal.SIGTERM


def test_a_script_that_does_not_listen_is_killed(tmp_path):
    hasty = "import sys, runpy; from bridge import lifeline; lifeline.PATIENCE_S = 0.1; del sys.argv[0]; "
    hasty += "lifeline.watch(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    with start(tmp_path, "deaf", runner=("-c", hasty)) as process:
        assert [process.stdout.readline() for _ in range(2)][1] == "deaf\n"
        process.stdin.close()
        assert process.wait(10) == -signal.SIGKILL
