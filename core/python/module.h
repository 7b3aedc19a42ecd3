/*
 * vambrace.pager._core: the window for Python, in the limited API of 3.11. Its contract is _core.pyi.
 *
 *   module.c  the module, its constants, and functions that need no window
 *   window.c  the type Window
 */
#ifndef VAMBRACE_PYTHON_MODULE_H
#define VAMBRACE_PYTHON_MODULE_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

extern PyType_Spec vb_python_window;

/* Raises _core.Error(status, message) and gives NULL. */
PyObject *vb_python_fail(PyObject *module, int status);

#endif
