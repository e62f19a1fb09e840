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

    def decorated(cls: C) -> C:
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

    return decorated


class CheckedParams(Params):
    """Params whose values are checked by `_set`, however they are set."""

    OBJECTS: ClassVar[Mapping[str, Any]] = {}
    """Params that are not options, such as a pipeline."""

    def setParams(self, **params: Any) -> Self:
        """Set Params by name; an object that is None stays as it is."""
        return self._set(**{name: v for name, v in params.items() if v is not None or name not in self.OBJECTS})

    def set(self, param: Param[Any], value: Any) -> None:
        """Set a Param, checked as by `setParams`."""
        self._shouldOwn(param)  # type: ignore[no-untyped-call]
        self._set(**{param.name: value})


def checked(kind: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of these options of a class, such as Options, converted to their types.

    Raises:
        InputError: lists every unknown name and every value that can't be converted.
    """
    found = kind.of(given)
    return {name: getattr(found, name) for name in given}


def listed(value: Any) -> Any:
    """The value; a tuple as a list, because pyspark's explainParams cannot show tuples."""
    return list(value) if isinstance(value, tuple) else value
