#!/usr/bin/env python3
"""Stands in for gcloud: no cloud is behind it.

Writes every call to FAKE/calls, keeps one queued resource in FAKE/resource, and does
what FAKE/scenario.json says, a JSON object of lists that are used up one by one:

  create   "ok", "lost" (works, reports failure), or an error's text
  states   of the resource, each time it is looked at; the last one stays
  ssh      "ok" or an error's text, for each call that runs no command of ours
  scp      likewise
  run      what the command prints, or an error's text after "ERROR"
  delete   "ok" or an error's text
"""

import json
import os
import sys
from pathlib import Path

FOLDER = Path(os.environ["FAKE"])
RESOURCE = FOLDER / "resource"


def following(key: str, default: str = "ok", last_stays: bool = False) -> str:
    path = FOLDER / "scenario.json"
    scenario = json.loads(path.read_text())
    left = scenario.get(key, [])
    if not left:
        return default
    chosen = left[0]
    if len(left) > 1 or not last_stays:
        del left[0]
    path.write_text(json.dumps(scenario))
    return chosen


def fail(text: str) -> None:
    print(f"ERROR: (gcloud.compute.tpus) {text}", file=sys.stderr)
    sys.exit(1)


def main(arguments: list[str]) -> None:
    with open(FOLDER / "calls", "a") as calls:
        calls.write(json.dumps(arguments) + "\n")
    assert arguments[:2] == ["compute", "tpus"], arguments
    if arguments[2:5] == ["tpu-vm", "versions", "list"]:
        print(following("versions", "tpu-ubuntu2204-base\nv2-alpha-tpuv6e"))
        return
    verb = arguments[3]
    if verb == "create":
        chosen = following("create")
        if chosen in ("ok", "lost"):
            RESOURCE.touch()
        if chosen != "ok":
            fail("the connection was reset" if chosen == "lost" else chosen)
    elif not RESOURCE.exists():
        fail("NOT_FOUND: Resource was not found")
    elif verb == "describe":
        print(following("states", "ACTIVE", last_stays=True))
    elif verb == "delete":
        chosen = following("delete")
        if chosen != "ok":
            fail(chosen)
        RESOURCE.unlink()
    elif verb == "scp":
        assert (
            Path(arguments[4]).read_bytes()[:2] == b"\x1f\x8b"
        )  # what gzip begins with
        if (chosen := following("scp")) != "ok":
            fail(chosen)
    elif verb == "ssh" and "merging.lock 'merging'" in arguments[-1]:
        chosen = following("run", "[worker status 0]")
        if chosen.startswith("ERROR"):
            fail(chosen)
        print(chosen)
    elif (chosen := following("ssh")) != "ok":
        fail(chosen)


main(sys.argv[1:])
