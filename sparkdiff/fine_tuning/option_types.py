"""Types of the options, for type checkers and editors: `option_types.pyi` beside this file, which tools/option_types.py writes.

At run time these classes are empty; `with_params` adds the Params, getters and setters to the estimators themselves.
"""

TunerOptions = SearchOptions = dict
TunerGetters, TunerMembers, GrowerGetters, GrowerMembers, ImproverGetters, ImproverMembers, SearchMembers = (
    type("Members", (), {}) for _ in range(7)
)
