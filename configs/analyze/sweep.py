"""All analyses of a whole sweep: every base, every run's experts, their merges.

    merging sweep --config scaling_curves/tiny --config.keep_merges=true \\
        --workdir curves
    merging analyze --config analyze/sweep --config.sweep=curves --workdir analysed
    merging report --workdir curves --analysis analysed

Resumable, part by part; the sections have the settings of analyze/geometry,
analyze/saturation and analyze/connectivity. Cost: mostly connectivity's,
(28 + 9 × merges) × (points − 2) evaluations of `count` examples for eight experts; the
24 groups of `tiny_full` took 32 minutes of two cores, with other work beside it.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.analysis = "sweep"
    config.sweep = ""  # the workdir of a sweep, better of one with kept merges
    config.sizes = ()  # of these alone; (): all
    config.bases = ()
    config.parts = ("geometry", "saturation", "connectivity")
    config.geometry = ConfigDict(dict(densities=(0.2,), spectral_rank=2))
    config.saturation = ConfigDict(
        dict(
            densities=(0.9, 0.8, 0.7, 0.6, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005),
            orders=64,
        )
    )
    config.connectivity = ConfigDict(dict(points=11, count=32, scales=(0.3, 1.0)))
    config.merges = ("task_arithmetic_K8",)  # METHOD_KN, of connectivity; (): none
    return config
