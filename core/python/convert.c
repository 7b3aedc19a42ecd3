/*
 * Python's objects and the window's structures, one made from the other.
 */
#include "module.h"

#include <limits.h>

int vb_python_zones(PyObject *sequence, struct vb_zone_config *zones, size_t *count)
{
	Py_ssize_t length = PySequence_Size(sequence);

	if (length < 0)
		return -1;
	if (length > VB_MAXIMUM_ZONES) {
		PyErr_SetString(PyExc_ValueError, "too many zones");
		return -1;
	}
	for (Py_ssize_t i = 0; i < length; i++) {
		PyObject *item = PySequence_GetItem(sequence, i);
		unsigned long long pages, budget = 0;
		int percent, ok;

		if (!item)
			return -1;
		if (!PyTuple_Check(item)) {
			PyErr_SetString(PyExc_TypeError, "a zone is a tuple (pages, percent) or (pages, percent, pin budget)");
			Py_DECREF(item);
			return -1;
		}
		ok = PyArg_ParseTuple(item, "Ki|K", &pages, &percent, &budget);
		Py_DECREF(item);
		if (!ok)
			return -1;
		zones[i] = (struct vb_zone_config){
			.pages = pages,
			.percent = percent < 0 ? 101 : (unsigned)percent, /* refused by the window */
			.pin_budget = budget,
		};
	}
	*count = (size_t)length;
	return 0;
}

int vb_python_cpus(PyObject *sequence, int *cpus, size_t *count)
{
	Py_ssize_t length = PySequence_Size(sequence);

	if (length < 0)
		return -1;
	if (length > VB_MAXIMUM_HANDLERS) {
		PyErr_SetString(PyExc_ValueError, "too many handlers");
		return -1;
	}
	for (Py_ssize_t i = 0; i < length; i++) {
		PyObject *item = PySequence_GetItem(sequence, i);
		long cpu = item ? PyLong_AsLong(item) : -1;

		Py_XDECREF(item);
		if (PyErr_Occurred())
			return -1;
		if (cpu < 0 || cpu > INT_MAX) {
			PyErr_SetString(PyExc_ValueError, "a CPU's number is out of range");
			return -1;
		}
		cpus[i] = (int)cpu;
	}
	*count = (size_t)length;
	return 0;
}

/* A tuple of these numbers, and of those. */
static PyObject *numbers(const uint64_t *first, size_t count, const uint64_t *then, size_t more)
{
	PyObject *result = PyTuple_New((Py_ssize_t)(count + more));

	for (size_t i = 0; result && i < count + more; i++) {
		PyObject *value = PyLong_FromUnsignedLongLong(i < count ? first[i] : then[i - count]);

		if (!value || PyTuple_SetItem(result, (Py_ssize_t)i, value)) {
			Py_DECREF(result);
			return NULL;
		}
	}
	return result;
}

PyObject *vb_python_stats(const struct vb_stats *stats)
{
	const uint64_t values[] = {
		stats->pages, stats->percent, stats->open, stats->window, stats->plaintext, stats->plaintext_max,
		stats->standby, stats->pinned, stats->pin_budget, stats->faults, stats->zero_faults,
		stats->standby_hits, stats->demotions, stats->evictions, stats->discarded, stats->bytes_encrypted,
		stats->bytes_decrypted, stats->busy, stats->rekeys, stats->handler_ns,
	};

	return numbers(values, sizeof values / sizeof *values, stats->histogram, VB_HISTOGRAM);
}

PyObject *vb_python_reuse(const struct vb_reuse *reuse)
{
	PyObject *counts = numbers(reuse->reuse, VB_REUSE, NULL, 0);

	if (!counts)
		return NULL;
	return Py_BuildValue("(NIKKN)", PyBool_FromLong(reuse->on), reuse->shift, (unsigned long long)reuse->ns,
			     (unsigned long long)reuse->touches, counts);
}
