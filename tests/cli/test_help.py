from __future__ import annotations

import fcntl
import inspect
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios

import pytest

from octfast.__main__ import _ended, main
from octfast.cli.help import describe, split_help
from octfast.errors import OctfastError

ANSI = re.compile(r"\x1b\[[0-9;]*m")
COLOUR = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:3[0-7]|9[0-7]|38;[0-9;]+)[0-9;]*m")


def commands():
    """Every command with the words that call it, groups too."""
    from typer.main import get_command

    from octfast.cli.root import app

    def walk(words, command):
        yield words, command
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk((*words, name), inner)

    return list(walk((), get_command(app)))


COMMANDS = commands()
LEAVES = [(words, command) for words, command in COMMANDS if not getattr(command, "commands", None)]


def name_of(value):
    return " ".join(value) or "octfast" if isinstance(value, tuple) else ""


# What these do is done while a line is parsed, so they are left out of it.
AT_ONCE = {"-h", "--help", "-V", "--version", "--install-completion", "--show-completion"}


def read_line(line: str) -> None:
    """Parse a command line as the command would, without running it; raises what the parser raises."""
    words = shlex.split(line.split(" | ")[0].split(" > ")[0], comments=True)
    assert words[0] == "octfast"
    found, context, rest = COMMANDS[0][1], None, [word for word in words[1:] if word not in AT_ONCE]
    asked_at_once = len(rest) < len(words) - 1
    while rest or not asked_at_once:
        context = found.make_context(found.name or "octfast", rest, parent=context)
        if not getattr(found, "commands", None):
            return
        _, found, rest = found.resolve_command(context, [*context._protected_args, *context.args])


@pytest.mark.parametrize(("words", "command"), COMMANDS, ids=name_of)
def test_a_command_says_in_its_first_line_what_it_does(words, command):
    first = inspect.cleandoc(command.help or "").split("\n")[0]
    assert re.match(r"[A-Z].{10,}[.:?]", first), first


@pytest.mark.parametrize(("words", "command"), COMMANDS, ids=name_of)
def test_every_option_and_argument_has_help_and_a_name_of_its_own(words, command):
    names = [name for p in command.params for name in (*p.opts, *p.secondary_opts)]
    assert len(names) == len(set(names))
    for param in (*describe(command, "argument"), *describe(command, "option")):
        assert re.search(r"\w{3}", param.text), param.names


@pytest.mark.parametrize(("words", "command"), LEAVES, ids=name_of)
def test_every_command_can_be_quiet_and_verbose(words, command):
    names = {name for p in command.params for name in p.opts}
    assert {"-q", "--quiet", "-v", "--verbose"} <= names


@pytest.mark.parametrize(("words", "command"), LEAVES, ids=name_of)
def test_a_command_has_examples_that_can_be_parsed(words, command):
    _, lines = split_help(command)
    own = [line for line in lines if line.startswith(" ".join(["octfast", *words]))]
    assert own, "no example"
    for line in lines:
        if line.startswith("octfast "):
            read_line(line)


def test_a_wrong_example_would_be_seen():
    with pytest.raises(Exception, match="No such option"):
        read_line("octfast train --epohcs 3")
    with pytest.raises(Exception, match="No such command"):
        read_line("octfast trian")


def call(*words: str, env: dict[str, str] | None = None, terminal: int = 0) -> tuple[int, str, str]:
    """Call octfast in a process of its own; with a terminal of so many columns for its output and errors, if any."""
    return call_python("-m", "octfast", *words, env=env, terminal=terminal)


def call_python(*words: str, env: dict[str, str] | None = None, terminal: int = 0) -> tuple[int, str, str]:
    own = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "GITHUB_ACTIONS")}
    own |= {"TERM": "xterm-256color", **(env or {})}
    line = [sys.executable, *words]
    if not terminal:
        ended = subprocess.run(line, capture_output=True, text=True, env=own, timeout=120)
        return ended.returncode, ended.stdout, ended.stderr
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, terminal, 0, 0))
    with subprocess.Popen(line, stdin=theirs, stdout=theirs, stderr=theirs, env=own) as process:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:  # so Linux says that the other end is closed
            pass
        os.close(ours)
    return process.returncode, shown.decode().replace("\r\n", "\n"), ""


def test_help_loads_no_torch():
    program = "import sys; sys.argv = ['octfast', '--help']; from octfast.__main__ import main\n"
    program += "try: main()\nexcept SystemExit: pass\nprint('torch' in sys.modules, 'numpy' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "False False"


@pytest.mark.parametrize(
    ("words", "wrong", "meant"),
    [
        (["trian"], "no such command 'trian'", "did you mean train?"),
        (["data", "audti"], "no such command 'audti'", "did you mean audit?"),
        (["train", "--epohcs", "3"], "--epohcs", "did you mean --epochs?"),
        (["modle", "summary"], "no such command 'modle'", "did you mean model?"),
        (["train", "--epoch", "3"], "no such option: --epoch", "did you mean --epochs?"),
        (["train", "--epochs", "many"], "--epochs must be a whole number", "see octfast train --help"),
        (["train", "--lr", "fast"], "--lr must be a number", "see octfast train --help"),
        (["show", "--seed", "-1"], "--seed must be 0 or more", "see octfast show --help"),
        (["train", "--head"], "--head needs a value", "--help"),
        (["data", "audit"], "data is missing", "see octfast data audit --help"),
        (["train", "-q", "-v"], "opposite directions", "give one"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistyped_line_ends_in_what_is_wrong_and_what_was_perhaps_meant(octfast, words, wrong, meant):
    ended = octfast(*words)
    assert (ended.code, ended.out, len(ended.lines)) == (2, "", 2)
    assert ended.lines[0].startswith("error: ") and wrong in ended.lines[0].lower()
    assert ended.lines[1].startswith("what to do: ") and meant in ended.lines[1].lower()


def test_colours_follow_the_terminal_and_the_wishes_of_its_user():
    assert not ANSI.search(call("--help")[1])
    assert COLOUR.search(call("--help", terminal=100)[1])
    assert not COLOUR.search(call("--help", terminal=100, env={"NO_COLOR": "1"})[1])
    assert COLOUR.search(call("--help", env={"FORCE_COLOR": "1"})[1])


def test_colours_of_errors():
    assert call("trian")[2].startswith("error: ")
    assert COLOUR.search(call("trian", terminal=100)[1])
    assert call("trian", terminal=100, env={"NO_COLOR": "1"})[1].startswith("error: ")
    assert call("trian", terminal=100, env={"TERM": "dumb"})[1].startswith("error: ")
    assert COLOUR.search(call("trian", env={"FORCE_COLOR": "1"})[2])


@pytest.mark.parametrize("columns", [60, 80, 250])
def test_help_fits_the_terminal_and_no_option_is_cut(columns):
    code, shown, _ = call("train", "--help", terminal=columns, env={"NO_COLOR": "1"})
    shown = ANSI.sub("", shown)
    assert code == 0
    assert max(map(len, shown.splitlines())) <= min(columns, 110)
    train = dict(LEAVES)["train",]
    for name in (name for p in train.params if p.param_type_name == "option" for name in p.opts):
        assert re.search(rf"(?<![\w-]){name}(?![\w-])", shown), name


@pytest.mark.parametrize("columns", [60, 100])
def test_examples_can_be_copied_from_the_terminal(columns):
    """A long command line is cut where a shell goes on reading."""
    _, shown, _ = call("predict", "--help", terminal=columns, env={"NO_COLOR": "1"})
    joined = re.sub(r" \\\n +", " ", ANSI.sub("", shown))
    _, lines = split_help(dict(LEAVES)["predict",])
    assert any(len(line) > 60 for line in lines)
    assert [line.strip() for line in joined.split("Examples:\n")[1].splitlines()] == lines


NAME = "a-very-long-name-of-a-file-" * 3 + ".jpeg"
SHOW = "from octfast.console import *; "
TABLE = f"{SHOW}print_table('Findings', ['file', 'scans', 'loss'], [['{NAME}', 12345, .5]])"
LIST = f"{SHOW}print_list([('ok', 'cache', '{NAME}', ''), ('warn', 'disk', 'full', 'mend')])"


@pytest.mark.parametrize("columns", [20, 60, 120])
@pytest.mark.parametrize("program", [TABLE, LIST], ids=["table", "list"])
def test_what_is_listed_fits_the_terminal_and_loses_nothing(program, columns):
    code, shown, _ = call_python("-c", program, terminal=columns)
    lines = ANSI.sub("", shown).splitlines()
    assert code == 0
    whole = re.sub(r" |12,345|0\.500", "", "".join(lines))
    assert NAME in whole
    if program is TABLE:
        assert any("12,345" in line for line in lines) and any("0.500" in line for line in lines)
    else:
        assert any("-> mend" in line for line in lines)
    if columns > 20:
        assert max(map(len, lines)) <= columns


@pytest.mark.parametrize("program", [TABLE, LIST], ids=["table", "list"])
def test_a_pipe_gets_an_item_a_line(program):
    code, shown, _ = call_python("-c", program)
    assert code == 0 and "\x1b" not in shown
    (line,) = [line for line in shown.splitlines() if NAME in line]
    assert "12,345" in line and "0.500" in line if program is TABLE else "cache" in line


def test_quiet_says_results_alone(octfast):
    words = ("data", "phantom", "--scans", 6, "--size", 64)
    loud = octfast(*words, "--out", "a")
    quiet = octfast(*words, "--out", "b", "-q")
    also = octfast("--quiet", *words, "--out", "c")
    assert quiet.err == also.err == "" and quiet.out.replace("b", "a") == loud.out.replace("b", "a")


@pytest.mark.parametrize("words", [["-v", "data", "audit", "nowhere"], ["data", "audit", "nowhere", "--verbose"]])
def test_verbose_shows_where_an_error_arose(monkeypatch, capsys, words):
    monkeypatch.setattr("sys.argv", ["octfast", *words])
    with pytest.raises(SystemExit, match="1"):
        main()
    shown = capsys.readouterr().err
    assert "Traceback" in shown and shown.splitlines()[-2].startswith("error: no such file or folder: nowhere")


def test_quiet_keeps_warnings_and_the_log_of_the_run(octfast_train, phantoms):
    from octfast.run.folder import open_run

    ended = octfast_train(phantoms, "-q")
    assert ended.code == 0
    assert ended.lines and all(line.startswith("warning: ") for line in ended.lines)
    assert "epoch  1/1" in (open_run().path / "log.txt").read_text()


def test_the_version_and_those_that_matter(octfast):
    from importlib.metadata import version

    first, second = octfast("--version").out.splitlines()
    assert first == f"octfast {version('octfast')}"
    assert second.startswith(f"Python {sys.version.split()[0]}, torch {version('torch')}, ")
    assert f"fastai {version('fastai')}" in second


@pytest.mark.parametrize(("typed", "offered"), [("tr", "train"), ("data au", "audit"), ("train --epo", "--epochs")])
def test_the_shell_completes(typed, offered):
    words = f"octfast {typed}"
    env = {"_OCTFAST_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    program = "import sys; sys.argv = ['octfast']; from octfast.__main__ import main; main()"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, **env})
    assert offered in ended.stdout.split(), ended


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_completion(shell):
    env = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    program = (
        f"import sys; sys.argv = ['octfast', '--show-completion', '{shell}']; from octfast.__main__ import main; main()"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, **env})
    assert ended.returncode == 0 and "_OCTFAST_COMPLETE" in ended.stdout


def test_a_file_name_does_not_steer_the_terminal(octfast):
    ended = octfast("interpret", "run\x1b[2J\x1b]0;x\x07")
    assert ended.code == 1 and "\x1b" not in ended.err and "\\x1b[2J" in ended.err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OctfastError("wrong", "mend"), 1, ["error: wrong", "what to do: mend"]),
        (OSError(28, "No space left on device", "runs/x"), 1, ["error: runs/x: No space left on device"]),
        (MemoryError(), 1, ["error: out of memory"]),
        (KeyboardInterrupt(), 130, ["stopped"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_how_it_ends(capsys, error, code, said):
    def app(**_):
        raise error

    assert _ended(app) == code
    shown = capsys.readouterr().err
    assert "Traceback" not in shown and shown.splitlines()[: len(said)] == said


def test_a_fault_of_its_own_is_shown_whole_and_called_so(capsys):
    def app(**_):
        raise ZeroDivisionError("nobody's input")

    assert _ended(app) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown and "nobody's input" in shown and "fault of octfast" in shown


def test_ctrl_c_while_it_begins_is_one_line():
    pressed = (
        "import sys, octfast.__main__ as command\n"
        "class Pressed:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Pressed())\n"
        "command.main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", pressed], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (130, "stopped\n")
