"""Makes pb_utils.Tensor work with NumPy 2 in Python backend stubs that were compiled for NumPy 1.

Such a stub looks for an array's item size where NumPy 1 had it and finds 0: tensors made of arrays are sent empty, and
as_numpy() repeats the first element. DLPack goes another way, in both directions. Imported by the local server's copy
of triton_python_backend_utils.py; an NGC container needs nothing of this.
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
        return _StubTensor(name, array)  # is empty indeed, and has strides that the stub's DLPack reader refuses
    exported = _as_writable(np.ascontiguousarray(array)).__dlpack__()
    # The stub renames a capsule it has used in a way that NumPy's destructor complains about, so it gets another one.
    capsule = _new_capsule(_get_pointer(exported, _NAME), _NAME, None)
    _set_name(exported, _USED_NAME)
    return _StubTensor.from_dlpack(name, capsule)


def _as_writable(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same memory, because NumPy exports no read-only array; the stub only reads it."""
    interface = array.__array_interface__
    pointer, _ = interface["data"]
    return np.asarray(SimpleNamespace(__array_interface__=interface | {"data": (pointer, False)}, owner=array))


if int(np.__version__.split(".")[0]) >= 2:
    setattr(tensor, "from_dlpack", _StubTensor.from_dlpack)  # noqa: B010, a function has no such attribute to assign
    c_python_backend_utils.Tensor = tensor
    _StubTensor.as_numpy = lambda self: np.from_dlpack(self)  # a read-only view
