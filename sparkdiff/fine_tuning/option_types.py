"""Types of the options for type checkers and editors, declared in `option_types.pyi`, which tools/option_types.py
generates.

At run time the classes in this module are empty; `with_params` adds Params, getters and setters to the estimators
directly.
"""

TunerOptions = SearchOptions = dict
TunerGetters, TunerMembers, GrowerGetters, GrowerMembers, ImproverGetters, ImproverMembers, SearchMembers = (
    type("Members", (), {}) for _ in range(7)
)
