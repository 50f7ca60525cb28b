"""What each of mergekit's methods takes: parameters, a base, how many models."""

from typing import NamedTuple


class Signature(NamedTuple):
    """A method of mergekit 0.1.5.

    Attributes:
      of_models: its parameters that are looked for with each model.
      shared: those that are one for all.
      required: those that have no default.
      base: ``required``, ``optional``, or ``merged``, which is one model among all.
      inputs: how many models it takes, least and most, the base among them.
      experts: likewise, the base not among them.
    """

    of_models: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    base: str = "required"
    inputs: tuple[int, int | None] = (1, None)
    experts: tuple[int, int | None] = (0, None)


_SWITCHES = ("normalize", "rescale", "int8_mask")
# Whoever sums task vectors takes these, also where they change nothing; and files of
# other methods hold them, which mergekit passes over.
COMMON = ("weight", "density"), ("lambda", *_SWITCHES)


def _sum_of_vectors(*of_models: str) -> Signature:
    return Signature(("weight", "density", *of_models), COMMON[1], ("weight",))


SIGNATURES = {
    "linear": Signature(("weight",), ("normalize",), ("weight",), base="merged"),
    "slerp": Signature((), ("t",), ("t",), base="merged", inputs=(2, 2)),
    "nuslerp": Signature(
        ("weight",),
        ("nuslerp_row_wise", "nuslerp_flatten"),
        ("weight",),
        base="optional",
        experts=(2, 2),
    ),
    "multislerp": Signature(
        ("weight",),
        ("normalize_weights", "eps"),
        ("weight",),
        base="optional",
        experts=(1, None),
    ),
    "karcher": Signature((), ("max_iter", "tol"), base="merged"),
    "passthrough": Signature(("scale",), base="merged", inputs=(1, 1)),
    "model_stock": Signature((), ("filter_wise",), inputs=(3, None)),
    "arcee_fusion": Signature(inputs=(2, 2)),
    "nearswap": Signature((), ("t",), ("t",), inputs=(2, 2)),
    "task_arithmetic": _sum_of_vectors(),
    "ties": _sum_of_vectors(),
    "dare_linear": _sum_of_vectors(),
    "dare_ties": _sum_of_vectors(),
    "breadcrumbs": _sum_of_vectors("gamma"),
    "breadcrumbs_ties": _sum_of_vectors("gamma"),
    "della": _sum_of_vectors("epsilon"),
    "della_linear": _sum_of_vectors("epsilon"),
    "sce": Signature((), ("int8_mask", "select_topk")),
    "ram": Signature((), ("epsilon",)),
    "ramplus_tl": Signature((), ("r", "alpha", "epsilon")),
}
# Parameters that are true or false; all others are numbers.
SWITCHES = (*_SWITCHES, "nuslerp_row_wise", "nuslerp_flatten")
SWITCHES += ("normalize_weights", "filter_wise")
