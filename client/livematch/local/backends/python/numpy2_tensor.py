"""Make pb_utils.Tensor work with NumPy 2 in Python backend stubs that were compiled for NumPy 1.

Such a stub reads an array's item size at NumPy 1's offset and gets 0: tensors made from arrays are sent empty, and
as_numpy() repeats the first element. Passing arrays as DLPack avoids this in both directions. The local server's copy
of triton_python_backend_utils.py imports this module; an NGC container does not need it.
"""

import ctypes
from types import SimpleNamespace
from typing import Any

import c_python_backend_utils  # type: ignore[import-not-found]  # a module inside the stub
import numpy as np
import numpy.typing as npt

_StubTensor = c_python_backend_utils.Tensor
_NAME = b"dltensor"
_USED_NAME = b"used_dltensor"

_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype = ctypes.c_void_p
_get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
_set_name = ctypes.pythonapi.PyCapsule_SetName
_set_name.argtypes = [ctypes.py_object, ctypes.c_char_p]


def tensor(name: str, array: npt.NDArray[Any]) -> object:
    if array.size == 0:
        return _StubTensor(name, array)  # right for empty arrays, whose strides the stub's DLPack reader rejects
    exported = _as_writable(np.ascontiguousarray(array)).__dlpack__()
    # The stub renames a used capsule in a way that NumPy's destructor rejects, so it gets one without a destructor.
    capsule = _new_capsule(_get_pointer(exported, _NAME), _NAME, None)
    _set_name(exported, _USED_NAME)
    return _StubTensor.from_dlpack(name, capsule)


def _as_writable(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a writable view of the same memory: NumPy exports no read-only array, and the stub only reads it."""
    interface = array.__array_interface__
    pointer, _ = interface["data"]
    return np.asarray(SimpleNamespace(__array_interface__=interface | {"data": (pointer, False)}, owner=array))


if int(np.__version__.split(".")[0]) >= 2:
    setattr(tensor, "from_dlpack", _StubTensor.from_dlpack)  # noqa: B010, a function has no such attribute to assign
    c_python_backend_utils.Tensor = tensor
    _StubTensor.as_numpy = lambda self: np.from_dlpack(self)  # a read-only view
