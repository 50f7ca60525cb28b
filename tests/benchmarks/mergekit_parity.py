"""Ours beside mergekit on the same YAML files: how far apart the weights come out.

  python tests/benchmarks/mergekit_parity.py --workdir parity
  python tests/benchmarks/mergekit_parity.py --workdir parity --mergekit VENV

Small float32 models, so that nothing but the rules can differ. Without chance in the
method, every weight must agree to 1e-6. DARE's masks come from different generators: of
those merges the share of weights that move, and how far all of them move together, must
agree to 3 %.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import contenders
import inputs
import numpy as np
from merge_speed import table
from safetensors.numpy import load_file, save_file

SHAPE = inputs.SIZES["tiny"]._replace(layers=4)
CLOSE, ALIKE = 1e-6, 0.03

_TWO = """
models:
  - model: {base}/../expert1
    parameters: {{weight: 1.0, density: 0.5}}
  - model: {base}/../expert2
    parameters: {{weight: 0.6, density: 0.3}}
"""
_GRADIENTS = """
models:
  - model: {base}/../expert1
    parameters:
      weight: 1.0
      density:
        - filter: mlp
          value: [0.2, 0.5, 0.9]
        - value: 0.4
  - model: {base}/../expert2
    parameters:
      density: 0.5
      weight:
        - filter: self_attn
          value: [1.0, 0.2]
        - value: 0.5
"""
_SLICES = """
slices:
  - sources:
      - {{model: "{base}/../expert1", layer_range: [0, 2], parameters: {{weight: 0.3}}}}
      - {{model: "{base}/../expert2", layer_range: [0, 2], parameters: {{weight: 0.7}}}}
  - sources:
      - {{model: "{base}/../expert1", layer_range: [2, 4], parameters: {{weight: 0.9}}}}
      - {{model: "{base}/../expert2", layer_range: [2, 4], parameters: {{weight: 0.1}}}}
"""
CASES = {
    "linear": ("linear", _TWO, ""),
    "linear, not normalized": ("linear", _TWO, "parameters: {normalize: false}"),
    "linear, slices": ("linear", _SLICES, ""),
    "task_arithmetic": ("task_arithmetic", _TWO, "parameters: {lambda: 0.7}"),
    "ties": ("ties", _TWO, "parameters: {lambda: 0.8}"),
    "ties, a sum": ("ties", _TWO, "parameters: {normalize: false}"),
    "ties, gradients and filters": ("ties", _GRADIENTS, ""),
    "dare_linear": ("dare_linear", _TWO, ""),
    "dare_linear, not rescaled": ("dare_linear", _TWO, "parameters: {rescale: false}"),
    "dare_ties": ("dare_ties", _TWO, ""),
    "dare_ties, normalized": ("dare_ties", _TWO, "parameters: {normalize: true}"),
}


def main() -> int:
    """Merge every case with both, print a table, and return 0 if all agree."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--mergekit", type=Path, help="a virtual environment with it")
    parser.add_argument(
        "--merging", default=f"{shlex.quote(sys.executable)} -m merging"
    )
    options = parser.parse_args()
    workdir = options.workdir.resolve()
    environment = contenders.mergekit_environment(
        (options.mergekit or workdir / "mergekit").resolve()
    )
    base = _float32_models(workdir)
    print(contenders.versions(environment))
    rows = []
    for name, (method, models, more) in CASES.items():
        # mergekit's linear would merge the base as well.
        text = "" if method == "linear" else f"base_model: {base}\n"
        text += f"merge_method: {method}\n{models.format(base=base)}"
        yaml = workdir / "case.yml"
        yaml.write_text(f"{text}\n{more}\ndtype: float32\n")
        peer = contenders.mergekit_yaml(environment, yaml, workdir / "theirs")
        theirs = _merged(peer.arguments, workdir / "theirs")
        config = contenders.CONFIGS / "average.py"
        command = [*shlex.split(options.merging), "merge", "--config", str(config)]
        command += [
            f"--config.merge_yaml={yaml}",
            f"--config.output={workdir / 'ours'}",
        ]
        ours = _merged(command, workdir / "ours")
        start = load_file(base / "model.safetensors")
        rows.append({"case": name} | _compare(start, theirs, ours, "dare" in method))
    print(table(rows))
    return 0 if all(row["agrees"] for row in rows) else 1


def _float32_models(workdir: Path) -> Path:
    """Write a base and two experts in float32; return the base's folder."""
    models = inputs.make(workdir, SHAPE, 2)
    random = np.random.default_rng(7)
    for path in (models.base, *models.experts):
        folder = workdir / "float32" / path.name
        shutil.copytree(path, folder, dirs_exist_ok=True)
        weights = {
            name: random.normal(0, 0.02, shape).astype(np.float32)
            for name, shape in inputs.tensors(SHAPE)
        }
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        config = (folder / "config.json").read_text().replace("bfloat16", "float32")
        (folder / "config.json").write_text(config)
    return workdir / "float32" / "base"


def _merged(command: list[str], output: Path) -> dict[str, np.ndarray]:
    shutil.rmtree(output, ignore_errors=True)
    subprocess.run(command, check=True, capture_output=True)
    weights: dict[str, np.ndarray] = {}
    for file in sorted(output.glob("*.safetensors")):
        weights |= load_file(file)
    return weights


def _compare(base, theirs, ours, chance: bool) -> dict[str, object]:
    if theirs.keys() != ours.keys():
        return {"agrees": False, "difference": "other tensors"}
    moved = [_moved(base, merged) for merged in (theirs, ours)]
    furthest = max(float(np.abs(theirs[n] - ours[n]).max()) for n in ours)
    ratio = moved[1][1] / moved[0][1]
    alike = abs(moved[1][0] / moved[0][0] - 1) < ALIKE and abs(ratio - 1) < ALIKE
    return {
        "difference": None if chance else f"{furthest:.1e}",
        "theirs moves": f"{moved[0][0]:.4f}",
        "ours moves": f"{moved[1][0]:.4f}",
        "ratio of L1 norms": f"{ratio:.4f}",
        "agrees": alike if chance else furthest <= CLOSE,
    }


def _moved(base, merged) -> tuple[float, float]:
    """Return the share of weights that moved, and the sum of how far."""
    changed = sum(np.count_nonzero(merged[n] != base[n]) for n in base)
    far = sum(np.abs(merged[n] - base[n]).sum(dtype=np.float64) for n in base)
    return changed / sum(x.size for x in base.values()), float(far)


if __name__ == "__main__":
    sys.exit(main())
