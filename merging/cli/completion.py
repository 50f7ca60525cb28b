"""`merging completion`: commands, options and configs, for a shell to complete."""

import argparse

from merging.cli.command import Command, print_for_a_pipe

# Of `--config=NAME` bash makes three words; what stands before NAME is the first. zsh
# makes one, and is offered the whole.
# Nothing to say leaves the word to the shell, which completes files (-o default).
_SCRIPT = """\
# shellcheck shell=bash disable=SC2207
_merging() {{
  local words='' word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}}
  local prefix=''
  if [ "${{word#--config=}}" != "$word" ]; then
    prefix='--config=' before='--config' word=${{word#--config=}}
  elif [ "$word" = '=' ]; then
    word=''
  elif [ "$before" = '=' ]; then
    before=${{COMP_WORDS[COMP_CWORD-2]}}
  fi
  if [ "$COMP_CWORD" -eq 1 ]; then
    words='{commands} --help'
  else
    case ${{COMP_WORDS[1]}}:$before:$word in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -P "$prefix" -W "$words" -- "$word"))
  if [ "${{#COMPREPLY[@]}}" -eq 1 ] && [ "${{COMPREPLY[0]: -1}}" = '=' ]; then
    compopt -o nospace 2>/dev/null
  fi
}}
complete -o default -F _merging merging"""


def _run(arguments: argparse.Namespace) -> int:
    from merging.cli import COMMANDS

    cases = [line for name, of in COMMANDS.items() for line in _cases(name, of)]
    text = _SCRIPT.format(commands=" ".join(COMMANDS), cases="\n".join(cases))
    print_for_a_pipe(text)
    return 0


def _cases(name: str, command: Command) -> list[str]:
    """Return what to offer after a command: names of configs, options, keys."""
    from merging.runtime import config

    parser = argparse.ArgumentParser()
    command.options(parser)
    offered = [
        option
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    ]
    lines = []
    if command.configs:
        names = [n for n in config.shipped() if n.split("/")[0] in command.configs]
        keys = config.leaves(config.load(command.example))
        offered += [f"--config.{key}=" for key in keys]
        lines.append(f"      {name}:--config:*) words='{' '.join(names)}' ;;")
    return [*lines, f"      {name}:*:-*) words='{' '.join(offered)}' ;;"]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh"), help="which one is yours")


COMMAND = Command(
    "what your shell needs to complete commands, options and configs",
    """\
    Print a script that makes the shell complete commands, options, the names of the
    configs that come with the package, and the keys of each command's first config.

    examples:
      source <(merging completion bash)                    # in ~/.bashrc
      autoload -U +X bashcompinit && bashcompinit          # in ~/.zshrc
      source <(merging completion zsh)
    """,
    _options,
    _run,
)
