"""The parameters of a kernel: one struct, filled from Python by name.

A family of kernels takes one struct, declared in its ``.cu`` or ``.cuh`` file. A :class:`ParamStruct` is its twin: a
NumPy record of the same members in the same order, laid out as C does it. A test compiles ``layout_checks`` with every
source, so that a member that is added, moved or widened on one side alone does not compile.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np

POINTER = np.dtype(np.uint64)
INT, UNSIGNED, LONG = np.dtype(np.int32), np.dtype(np.uint32), np.dtype(np.int64)


class ParamStruct:
    """The twin of a C++ struct: ``ParamStruct("StepParams", s=POINTER, heads=UNSIGNED)``, members in C++'s order.

    Called with a value for every member, it makes the argument for a launch. A pointer takes an array on the device, an
    address or None (null); a member that is a struct itself takes what its own ``ParamStruct`` made. An array must live
    until the kernel has been launched: CuPy's pool gives memory to later work of the same stream only.

    >>> sizes = ParamStruct("Sizes", tokens=INT, state=POINTER)
    >>> sizes(tokens=3, state=None).tolist()
    (3, 0)
    >>> sizes(tokens=3)
    Traceback (most recent call last):
        ...
    TypeError: Sizes needs tokens, state; got tokens
    """

    def __init__(self, name: str, **members: Any):
        self.name, self.members = name, tuple(members)
        self.structs = {key: value for key, value in members.items() if isinstance(value, ParamStruct)}
        types = ((key, value.dtype if isinstance(value, ParamStruct) else value) for key, value in members.items())
        self.dtype: np.dtype = np.dtype([*types], align=True)

    def __call__(self, **values: Any) -> Any:
        if tuple(values) != self.members:
            if values.keys() != set(self.members):
                raise TypeError(f"{self.name} needs {', '.join(self.members)}; got {', '.join(values)}")
            values = {name: values[name] for name in self.members}
        return np.array(tuple(map(_plain, values.values())), self.dtype)[()]

    def partial(self, **constants: Any) -> Callable[..., Any]:
        """The struct with all but the pointers at its start known: a function of those, as addresses, in C++'s order.

        For calls that take microseconds: nine pointers are filled in within a quarter of the time of the whole struct.

        >>> sizes = ParamStruct("Sizes", state=POINTER, mask=POINTER, tokens=INT)
        >>> sizes.partial(tokens=3)(4096, 0).tolist()
        (4096, 0, 3)
        """
        pointers = self.members[: len(self.members) - len(constants)]
        if any(self.dtype[name] != POINTER for name in pointers):
            raise TypeError(f"{self.name}.partial needs all but the pointers at its start; got {', '.join(constants)}")
        constant_bytes = self(**dict.fromkeys(pointers), **constants).tobytes()[POINTER.itemsize * len(pointers) :]
        pack, dtype = struct.Struct(f"={len(pointers)}Q").pack, self.dtype
        return lambda *addresses: np.frombuffer(pack(*addresses) + constant_bytes, dtype)[0]

    def layout_checks(self) -> str:
        """C++ that compiles only if the struct of this name has the size and the members' places of this twin.

        ``__INTADDR__`` is what offsetof is made of; not every version of NVRTC has ``__builtin_offsetof``.

        >>> print(ParamStruct("Sizes", tokens=INT, state=POINTER).layout_checks())
        static_assert(sizeof(Sizes) == 16, "size of Sizes");
        static_assert(__INTADDR__(&((Sizes*)0)->tokens) == 0, "Sizes.tokens");
        static_assert(__INTADDR__(&((Sizes*)0)->state) == 8, "Sizes.state");
        """
        lines = [f'static_assert(sizeof({self.name}) == {self.dtype.itemsize}, "size of {self.name}");']
        for member in self.members:
            offset = self.dtype.fields[member][1]  # type: ignore[index]  # a record has fields
            lines.append(
                f'static_assert(__INTADDR__(&(({self.name}*)0)->{member}) == {offset}, "{self.name}.{member}");'
            )
        return "\n".join([*(struct.layout_checks() for struct in self.structs.values()), *lines])


def _plain(value: Any) -> Any:
    """A pointer as a number; numbers and records as they are."""
    if value is None:
        return 0
    data: Any = getattr(value, "data", None)
    return data.ptr if hasattr(data, "ptr") else value
