/*
 * vambrace.pager._core: the window for Python, in the limited API of 3.11. Its contract is _core.pyi.
 *
 *   module.c   the module, its constants, and functions that need no window
 *   window.c   the type Window
 *   convert.c  what goes into it, and comes out of it
 */
#ifndef VAMBRACE_PYTHON_MODULE_H
#define VAMBRACE_PYTHON_MODULE_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include "../window.h"

extern PyType_Spec vb_python_window;

/* Raises _core.Error(status, message) and gives NULL. */
PyObject *vb_python_fail(PyObject *module, int status);

/* At most VB_MAXIMUM_ZONES tuples (pages, percent) or (pages, percent, pin budget). -1, with an exception, where it is not. */
int vb_python_zones(PyObject *sequence, struct vb_zone_config *zones, size_t *count);
/* At most VB_MAXIMUM_HANDLERS numbers of processors. -1, with an exception, where it is not. */
int vb_python_cpus(PyObject *sequence, int *cpus, size_t *count);

/* In the order of vambrace.pager.ZoneStats; the histogram is what follows. */
PyObject *vb_python_stats(const struct vb_stats *stats);
/* In the order of vambrace.pager.Reuse. */
PyObject *vb_python_reuse(const struct vb_reuse *reuse);

#endif
