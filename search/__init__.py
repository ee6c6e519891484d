"""The search for heterogeneous encoders. The command is in `cli.py`; these names are for programs.

They are imported when first used, so that the command answers a wrong option without waiting for torch.
"""

import importlib


_MODULES = {
    "BoshnasSampler": "samplers.boshnas",
    "Evaluator": "evaluation.evaluator",
    "OpNasSampler": "samplers.op_nas",
    "Search": "study.search",
    "SearchSpace": "space.search_space",
    "SuperNetwork": "evaluation.supernet",
    "Surrogate": "bayesopt.surrogate",
    "UserError": "errors",
    "load_recipe": "recipe",
}

__all__ = list(_MODULES)  # noqa: PLE0605


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
