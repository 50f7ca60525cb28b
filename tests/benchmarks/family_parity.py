"""Our decoder beside transformers: how far apart the logits are, and what comes back.

  python tests/benchmarks/family_parity.py --workdir parity
  python tests/benchmarks/family_parity.py --workdir parity --torch VENV/bin/python
  python tests/benchmarks/family_parity.py --workdir parity --goldens

For every family transformers makes a tiny random float32 model. Ours reads it and must
find the same logits, to 1e-4, with and without padding; then it goes through `merging
convert` to Orbax and back, and transformers must load it with its bytes and logits. The
last two columns are the same comparison with a convention wrong on purpose.
`--goldens` puts the models where pytest finds them.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from merge_speed import table

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

import family_cases  # noqa: E402

from merging.models.hf.convert import convert  # noqa: E402

_TORCH_SIDE = Path(__file__).with_name("family_models.py")
VISIBLE = 1e-2


def main() -> int:
    """Print a row for each family, and return 0 if all hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument(
        "--torch", default=sys.executable, help="a Python with torch and transformers"
    )
    parser.add_argument("--goldens", action="store_true", help="keep the models")
    options = parser.parse_args()
    made, back = options.workdir / "made", options.workdir / "back"
    shutil.rmtree(options.workdir, ignore_errors=True)
    _transformers(options.torch, "make", made)
    names = sorted(path.name for path in made.iterdir())
    for name in names:
        stacked = options.workdir / "orbax" / name
        convert(str(made / name), str(stacked), format="orbax")
        convert(str(stacked), str(back / name), format="safetensors")
    judged = _transformers(options.torch, "judge", made, back)
    verdicts = {line["name"]: line for line in map(json.loads, judged.splitlines())}
    rows = [_row(made / name, verdicts[name]) for name in names]
    print(table(rows))
    if options.goldens:
        shutil.copytree(made, family_cases.GOLDENS, dirs_exist_ok=True)
    return 0 if all(row["holds"] for row in rows) else 1


def _row(folder: Path, verdict: dict) -> dict[str, object]:
    config, params, case = family_cases.load(folder)
    errors = [
        family_cases.error(config, params, case),
        family_cases.padded_error(config, params, case),
        verdict["logits"],
    ]
    wrong = [
        family_cases.padded_error(*mistaken(config, params), case)
        for mistaken in (family_cases.wrong_norm, family_cases.wrong_rotary)
    ]
    holds = max(errors) <= family_cases.CLOSE and min(wrong) > VISIBLE
    return {
        "family": folder.name,
        "max |Δ logit|": f"{errors[0]:.1e}",
        "padded": f"{errors[1]:.1e}",
        "exported, same bytes": verdict["identical"],
        "exported, max |Δ logit|": f"{errors[2]:.1e}",
        "norm wrong": f"{wrong[0]:.2f}",
        "rotary wrong": f"{wrong[1]:.2f}",
        "holds": holds and verdict["identical"],
    }


def _transformers(python: str, *arguments: object) -> str:
    command = [python, str(_TORCH_SIDE), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
