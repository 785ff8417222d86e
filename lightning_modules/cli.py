"""The command `convsuite`.

Nothing heavy is imported before it is known which command runs, so that `--help`, `list` and `doctor` answer at once,
and answer even where a part of the installation is broken.
"""

from __future__ import annotations

import difflib
import os
import sys
from importlib import import_module
from itertools import dropwhile

# Name: (what it does, the module that does it).
COMMANDS = {
    "fit": ("train; the same command goes on where an interrupted run stopped", "training"),
    "validate": ("measure a trained network on the validation set", "training"),
    "test": ("measure a trained network on the test set", "training"),
    "predict": (
        "classify or segment images (--data.predict_root, or the test set), or generate some; into the run folder",
        "training",
    ),
    "fit_test": ("train, then test the best checkpoint, or the last where nothing is monitored", "training"),
    "describe": ("parameters, MACs, receptive field, shapes and costs of patches of a configured network", "training"),
    "list": ("list models, convs or configs", "listing"),
    "doctor": ("check this installation", "doctor"),
    "reproduce": ("run a grid of experiments, write its table and draw its figures", "reproduce"),
}

HELP = """usage: convsuite COMMAND [options]

Train and compare convolution variants.

commands:
{commands}

  convsuite COMMAND --help     the options of a command
  convsuite --version          the version

examples:
  convsuite fit_test --config gaussian/fashion_mnist.yaml --data.train_size 1000
  convsuite fit_test --config gaussian/fashion_mnist.yaml --config gaussian/layers/ours.yaml --seed_everything 1
  convsuite predict --ckpt_path runs/fashion_mnist/<id>/checkpoints/last.ckpt --data.predict_root photos

exit codes: 0 done, 1 an error, 2 wrong usage, 130 stopped with Ctrl-C, 143 stopped with SIGTERM.
CONVSUITE_TRACEBACK=1 in the environment shows where an error comes from.
"""

# A mistake of the suite rather than of its user: the message alone would not tell.
_UNEXPECTED = (AssertionError, AttributeError, LookupError, NameError, TypeError)


def main(args: list[str] | None = None) -> int:
    """Run one command.

    From a shell (`args` is None) an error is one line on stderr, `error: ...`, and exit code 1. From Python, as
    `main(["fit", "--config", ...])`, errors are raised as they are. Wrong usage is `SystemExit(2)` in both, after a
    message on stderr; a training that was stopped by a signal is `SystemExit(128 + signal)`.

    Returns:
        The exit code, 0 if all went well.
    """
    if args is not None:
        return _run(args)
    try:
        return _run(sys.argv[1:])
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `convsuite list configs | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for the flush at exit
        return 1
    except Exception as error:
        if os.environ.get("CONVSUITE_TRACEBACK") == "1":
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 1


def _run(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if args else 2
    if args[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(version("convsuite"))
        return 0
    command, *rest = args
    if command not in COMMANDS:
        _refuse(command)
    module = import_module(f"lightning_modules.commands.{COMMANDS[command][1]}")
    return module.run(command, rest) if COMMANDS[command][1] == "training" else module.run(rest)


def _help() -> str:
    return HELP.format(commands="\n".join(f"  {name:<10} {what}" for name, (what, _) in COMMANDS.items()))


def _refuse(command: str) -> None:
    nearest = difflib.get_close_matches(command, COMMANDS, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    print(f"error: unknown command {command!r}.{hint} Valid: {', '.join(COMMANDS)}.", file=sys.stderr)
    raise SystemExit(2)


def _one_line(error: Exception) -> str:
    message = " ".join(_own_message(error).split()) or type(error).__name__
    if len(message) > 1000:  # a network that does not fit a checkpoint lists every weight
        message = f"{message[:1000]} ..."
    if isinstance(error, _UNEXPECTED):
        message = f"{type(error).__name__}: {message} (CONVSUITE_TRACEBACK=1 shows where)"
    return message


def _own_message(error: Exception) -> str:
    """What an error says, without the traceback that torch puts before what an error in a worker process said."""
    text = str(error)
    if not (text.startswith("Caught ") and "\nOriginal Traceback (" in text):
        return text
    lines = text.rpartition("Traceback (most recent call last):\n")[2].splitlines()
    message = "\n".join(dropwhile(lambda line: line.startswith(" "), lines))  # behind the places in the code
    return message.partition(":")[2] if message else text


if __name__ == "__main__":
    sys.exit(main())
