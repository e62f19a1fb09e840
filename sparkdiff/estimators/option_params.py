"""Options as pyspark Params: a Param, a getter and a setter for each."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

from pyspark.ml.param import Param, Params
from typing_extensions import Self

Fields = Mapping[str, dataclasses.Field[Any]]
C = TypeVar("C", bound=type)


def with_params(fields: Fields, *, setters: bool = False) -> Callable[[C], C]:
    """Return a decorator that gives a class a Param and a getter per option, and with `setters` a setter that calls
    `_set`.
    """

    def add_params(cls: C) -> C:
        for name, field in fields.items():
            setattr(cls, name, Param(Params._dummy(), name, field.metadata["help"]))  # type: ignore[no-untyped-call]

            def get(self: Any, name: str = name) -> Any:
                return self.getOrDefault(name)

            def set_(self: Any, value: Any, name: str = name) -> Any:
                return self._set(**{name: value})

            get.__doc__ = f"Value of {name} or its default."
            set_.__doc__ = f"Set {name}: {field.metadata['help']}."
            capital = name[0].upper() + name[1:]
            setattr(cls, f"get{capital}", get)
            if setters:
                setattr(cls, f"set{capital}", set_)
        return cls

    return add_params


class CheckedParams(Params):
    """Base of estimators whose `_set` checks the values of Params; every way to set a Param goes through `_set`."""

    OBJECTS: ClassVar[Mapping[str, Any]] = {}
    """Params whose values are objects such as a pipeline, not options, with the fields that describe them."""

    def setParams(self, **params: Any) -> Self:
        """Set Params by name; for a Param in `OBJECTS`, None leaves the value unchanged."""
        return self._set(**{name: v for name, v in params.items() if v is not None or name not in self.OBJECTS})

    def set(self, param: Param[Any], value: Any) -> None:
        """Set a Param, checked as by `setParams`."""
        self._shouldOwn(param)  # type: ignore[no-untyped-call]
        self._set(**{param.name: value})


def convert_options(kind: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values `given` for some options of the class `kind`, such as Options, converted to the options' types.

    Raises:
        InputError: an option is unknown or a value can't be converted; the message lists all of them.
    """
    found = kind.of(given)
    return {name: getattr(found, name) for name in given}


def tuple_as_list(value: Any) -> Any:
    """The value; a tuple as a list, because pyspark's explainParams cannot show tuples."""
    return list(value) if isinstance(value, tuple) else value
