"""Bases of the estimators that tell type checkers and editors their options.

The file `option_types.pyi` beside this one has their members; `python tools/option_types.py` writes it. At run time the
classes are empty: `with_params` adds the Params, getters and setters to the estimators themselves.
"""

TunerOptions = SearchOptions = dict


class TunerGetters:
    """Params and getters of `FineTuner` and of its models."""


class TunerMembers:
    """Setters of `FineTuner`."""


class GrowerGetters:
    """Further Params and getters of `Grower` and of its models."""


class GrowerMembers:
    """Constructor, getters and setters of `Grower`."""


class ImproverGetters:
    """Further Params and getters of `Improver` and of its models."""


class ImproverMembers:
    """Constructor, getters and setters of `Improver`."""


class SearchMembers:
    """Params, getters and setters of `Search`."""
