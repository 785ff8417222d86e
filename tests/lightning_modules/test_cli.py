"""The command itself: light, helpful, and with exit codes that mean something."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise

import pytest
import yaml

from lightning_modules import cli
from lightning_modules.cli import COMMANDS, main
from lightning_modules.commands.config_files import find_config

HEAVY = ("lightning", "timm", "torchvision", "jsonargparse", "wandb")


def test_light_commands_import_nothing_heavy():
    commands = [["--help"], ["list"], ["list", "configs"], ["list", "models"], ["list", "convs"], ["doctor"]]
    code = f"""
import sys
from lightning_modules.cli import main
for args in {commands}:
    main(args)
    heavy = [name for name in {HEAVY} if name in sys.modules]
    assert not heavy, (args, heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {command} " in out for command in COMMANDS)
    assert main([]) == 2


def test_the_examples_of_the_help_are_possible(capsys):
    main(["--help"])
    examples = [line.split() for line in capsys.readouterr().out.splitlines() if "--" in line and "COMMAND" not in line]
    configs = [value for words in examples for option, value in pairwise(words) if option == "--config"]
    assert configs
    assert all(find_config(name) for name in configs)
    (predicted,) = [words[words.index("--ckpt_path") + 1] for words in examples if "--ckpt_path" in words]
    settings = yaml.safe_load(find_config("gaussian/fashion_mnist.yaml").read_text())
    assert settings["data"]["init_args"].get("val_size", 0) == 0, "nothing is monitored: there is no best.ckpt"
    assert predicted == "runs/fashion_mnist/<id>/checkpoints/last.ckpt"


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out[0].isdigit()


def test_an_unknown_command_offers_the_nearest(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["fit-test"])
    assert exit.value.code == 2
    assert "unknown command 'fit-test'. Did you mean 'fit_test'?" in capsys.readouterr().err


def test_commands_get_what_stands_behind_them(monkeypatch):
    import lightning_modules.commands.reproduce as reproduce

    monkeypatch.setattr(reproduce, "run", lambda args: print(args) or 7)
    assert main(["reproduce", "grid.yaml", "--jobs", "2"]) == 7


def from_a_shell(monkeypatch, error):
    """The exit code of a command that raises `error`."""

    def fail(args):
        raise error

    monkeypatch.setattr(cli, "_run", fail)
    monkeypatch.setattr(sys, "argv", ["convsuite", "fit"])
    return main()


def test_an_error_is_one_line(monkeypatch, capsys):
    assert from_a_shell(monkeypatch, ValueError("train_size is\n  too large")) == 1
    assert capsys.readouterr().err == "error: train_size is too large\n"


def test_an_error_without_a_message_has_a_name(monkeypatch, capsys):
    assert from_a_shell(monkeypatch, ValueError()) == 1
    assert capsys.readouterr().err == "error: ValueError\n"


def test_a_long_message_is_cut(monkeypatch, capsys):
    from_a_shell(monkeypatch, RuntimeError("weight " * 1000))
    assert len(capsys.readouterr().err) < 1100


def raised_in_a_worker(error):
    """`error` as a DataLoader raises it where one of its workers did."""
    from torch._utils import ExceptionWrapper

    try:
        try:
            raise KeyError("deep below")
        except KeyError as cause:
            raise error from cause
    except Exception:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(Exception, match=r"Caught .* in DataLoader worker process 0") as raised:
        wrapped.reraise()
    return raised.value


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a.nii.gz: is\n\n  damaged:\nfetch it"), "error: a.nii.gz: is damaged: fetch it"),
        (FileNotFoundError("gone"), "error: gone"),
        (ValueError(), "error: ValueError"),
        (TypeError("no: number"), "error: TypeError: no: number (CONVSUITE_TRACEBACK=1 shows where)"),
    ],
)
def test_an_error_in_a_worker_says_what_it_is(monkeypatch, capsys, error, line):
    from_a_shell(monkeypatch, raised_in_a_worker(error))
    assert capsys.readouterr().err == f"{line}\n"


def test_an_error_in_a_worker_of_a_worker_is_the_innermost(monkeypatch, capsys):
    from_a_shell(monkeypatch, raised_in_a_worker(raised_in_a_worker(ValueError("why\nindeed"))))
    assert capsys.readouterr().err == "error: why indeed\n"


def test_a_traceback_of_another_form_is_shown_as_it_is(monkeypatch, capsys):
    from_a_shell(monkeypatch, ValueError("Caught it.\nOriginal Traceback (most recent call last):\n  | a group"))
    assert "a group" in capsys.readouterr().err


def test_a_mistake_of_the_suite_says_where_to_look(monkeypatch, capsys):
    from_a_shell(monkeypatch, AttributeError("'NoneType' object has no attribute 'x'"))
    assert capsys.readouterr().err.startswith(
        "error: AttributeError: 'NoneType' object has no attribute 'x' (CONVSUITE_"
    )


def test_the_traceback_is_there_for_who_asks(monkeypatch):
    monkeypatch.setenv("CONVSUITE_TRACEBACK", "1")
    with pytest.raises(ValueError, match="why"):
        from_a_shell(monkeypatch, ValueError("why"))


def test_ctrl_c_ends_with_130(monkeypatch):
    assert from_a_shell(monkeypatch, KeyboardInterrupt()) == 130


def test_from_python_errors_are_raised_as_they_are(monkeypatch):
    def fail(args):
        raise ValueError("as it is")

    monkeypatch.setattr(cli, "_run", fail)
    with pytest.raises(ValueError, match="as it is"):
        main(["fit"])


def test_only_the_command_line_needs_jsonargparse_and_wandb(tmp_path):
    code = (
        "import sys; sys.modules['jsonargparse'] = sys.modules['wandb'] = None; "
        "import lightning_modules.runs, lightning_modules.loggers, lightning_modules.checkpoint_io, "
        "lightning_modules.environment, lightning_modules.callbacks.run_folder, "
        "lightning_modules.callbacks.graceful_stop, lightning_modules.callbacks.results, "
        "lightning_modules.callbacks.progress, lightning_modules.callbacks.exact_resume"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
