"""Merge many YAML files in one process, with mergekit in its own environment.

  VENV/bin/python tests/benchmarks/mergekit_side.py JOBS.json

JOBS.json lists [YAML, folder to make]; what became of each is printed, as JSON: null,
or why it was refused. Adapters are added in float32, to models kept beside JOBS.json.
"""

import json
import logging
import sys
from pathlib import Path

import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

_OPTIONS = MergeOptions(
    copy_tokenizer=False,
    write_model_card=False,
    quiet=True,
    random_seed=0,
    lora_merge_dtype="float32",
)


def main() -> None:
    """Merge all, and print what became of each."""
    logging.disable(logging.ERROR)
    jobs, found = Path(sys.argv[1]), []
    kept = {"lora_merge_cache": str(jobs.with_suffix(".adapted"))}
    options = _OPTIONS.model_copy(update=kept)
    for path, output in json.loads(jobs.read_text()):
        try:
            document = yaml.safe_load(Path(path).read_text())
            config = MergeConfiguration.model_validate(document)
            run_merge(config, output, options=options)
            found.append(None)
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            found.append(text[:200])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
