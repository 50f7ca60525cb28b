"""What `merging completion` prints makes bash and zsh offer what there is."""

import os
import pty
import select
import shutil
import signal
import subprocess
import sys

import pytest

from merging.cli import COMMANDS, main


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("shell") / "completion.bash"
    found = subprocess.run(
        [sys.executable, "-m", "merging", "completion", "bash"],
        capture_output=True,
        check=True,
    )
    path.write_bytes(found.stdout)
    return path


def offered(script, *words):
    """Return what bash offers for the last of a line's words, cut as bash cuts them."""
    line = f"COMP_WORDS=(merging {' '.join(map(repr, words))}); COMP_CWORD={len(words)}"
    program = f'source {script}; {line}; _merging; echo "${{COMPREPLY[@]}}"'
    found = subprocess.run(
        ["bash", "-c", program], capture_output=True, check=True, text=True
    )
    return found.stdout.split()


def test_the_first_word_is_a_command(script):
    assert offered(script, "") == [*COMMANDS, "--help"]
    assert offered(script, "me") == ["merge", "methods"]


def test_configs_go_by_the_names_that_the_command_takes(script):
    assert offered(script, "merge", "--config", "merge/tas") == [
        "merge/task_arithmetic"
    ]
    assert offered(script, "sweep", "--config", "=", "scaling_curves/s") == [
        "scaling_curves/smoke"
    ]
    assert "smollm2/miniworld" in offered(script, "sweep", "--config", "=")
    assert offered(script, "merge", "--config", "train/") == []


def test_options_and_keys_are_those_of_the_command(script):
    assert offered(script, "merge", "--dr") == ["--dry_run"]
    assert offered(script, "merge", "--config.me") == [
        "--config.memory_budget=",
        "--config.method.density=",
        "--config.method.name=",
        "--config.method.scale=",
        "--config.method.weights=",
    ]
    assert offered(script, "verify", "--config") == []


def test_values_are_left_to_the_shell(script):
    assert offered(script, "merge", "--config.base", "=", "BA") == []


@pytest.mark.skipif(not shutil.which("zsh"), reason="needs zsh")
@pytest.mark.parametrize(
    ("line", "offer"),
    [
        ("merging me", "merge    methods"),
        ("merging merge --config merge/tas", "merge/task_arithmetic"),
        ("merging merge --config=merge/tas", "--config=merge/task_arithmetic"),
    ],
)
def test_zsh_offers_the_same_to_who_types_a_tab(script, line, offer):
    child, terminal = pty.fork()
    if child == 0:
        os.environ |= {"TERM": "dumb", "ZDOTDIR": "/nonexistent"}
        os.execvp("zsh", ["zsh", "-f", "-i"])
    load = "autoload -U compinit bashcompinit; compinit -u -D; bashcompinit"
    os.write(terminal, f"{load}; source {script}; echo RE''ADY\n".encode())
    _read_until(b"READY", terminal)
    os.write(terminal, f"{line}\t\t".encode())
    _read_until(offer.encode(), terminal)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(terminal)


def _read_until(wanted, terminal):
    said = b""
    while wanted not in said:
        assert select.select([terminal], [], [], 20)[0], said
        said += os.read(terminal, 65536)


def test_the_script_passes_shellcheck(script):
    program = shutil.which("shellcheck", path=f"{sys.prefix}/bin:{os.environ['PATH']}")
    assert program, "shellcheck comes with the extra `test`"
    found = subprocess.run([program, script], capture_output=True, text=True)
    assert not found.stdout


def test_another_shell_is_a_mistake(capsys):
    assert main.main(["completion", "tcsh"]) == 2
    assert "invalid choice: 'tcsh'" in capsys.readouterr().err
