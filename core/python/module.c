/* The module, its constants, and functions that need no window. */
#include "module.h"

#include <errno.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include <linux/filter.h>
#include <linux/seccomp.h>

#include "../status.h"
#include "../timing.h"
#include "../window.h"

struct state {
	PyObject *error;
	PyObject *window_type;
};

PyObject *vb_python_fail(PyObject *module, int status)
{
	struct state *state = PyModule_GetState(module);
	PyObject *arguments = Py_BuildValue("(is)", status, vb_status_message(status));

	if (arguments) {
		PyErr_SetObject(state->error, arguments);
		Py_DECREF(arguments);
	}
	return NULL;
}

static PyObject *lock_process(PyObject *module, PyObject *unused)
{
	(void)unused;
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0 || mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) != 0)
		return vb_python_fail(module, -errno);
	Py_RETURN_NONE;
}

/* Binds this process to the system calls that a program of struct sock_filter allows, for good. It has one thread yet. */
static PyObject *restrict_calls(PyObject *module, PyObject *arguments)
{
	Py_buffer program;
	struct sock_fprog filter = {0};
	int status = VB_INVALID;

	if (!PyArg_ParseTuple(arguments, "y*", &program))
		return NULL;
	if (program.len && program.len % (Py_ssize_t)sizeof *filter.filter == 0 &&
	    program.len / (Py_ssize_t)sizeof *filter.filter <= BPF_MAXINSNS) {
		filter.len = (unsigned short)(program.len / (Py_ssize_t)sizeof *filter.filter);
		filter.filter = program.buf;
		status = prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter)
				 ? -errno
				 : VB_OK;
	}
	PyBuffer_Release(&program);
	return status ? vb_python_fail(module, status) : Py_NewRef(Py_None);
}

static PyObject *time_walk(PyObject *module, PyObject *arguments)
{
	Py_buffer memory, pages;
	unsigned target, rounds;
	unsigned long long wait;
	struct vb_walk walk;
	uint64_t ns = 0;
	bool valid;

	if (!PyArg_ParseTuple(arguments, "y*Iy*IK", &memory, &target, &pages, &rounds, &wait))
		return NULL;
	walk = (struct vb_walk){memory.buf, target, pages.buf, (size_t)pages.len / sizeof *walk.pages, rounds, wait};
	valid = (uintptr_t)memory.buf % VB_PAGE_SIZE_BYTES == 0 && (size_t)pages.len % sizeof *walk.pages == 0 &&
		(!walk.count || (uintptr_t)pages.buf % sizeof *walk.pages == 0) && target < (size_t)memory.len / VB_PAGE_SIZE_BYTES;
	for (size_t i = 0; valid && i < walk.count; i++)
		valid = walk.pages[i] < (size_t)memory.len / VB_PAGE_SIZE_BYTES;
	if (valid) {
		Py_BEGIN_ALLOW_THREADS
		ns = vb_time_walk(&walk);
		Py_END_ALLOW_THREADS
	}
	PyBuffer_Release(&memory);
	PyBuffer_Release(&pages);
	return valid ? PyLong_FromUnsignedLongLong(ns) : vb_python_fail(module, VB_INVALID);
}

static PyObject *address_of(PyObject *module, PyObject *memory)
{
	Py_buffer view;
	uintptr_t address;

	(void)module;
	if (PyObject_GetBuffer(memory, &view, PyBUF_WRITABLE) != 0)
		return NULL;
	address = (uintptr_t)view.buf;
	PyBuffer_Release(&view);
	return PyLong_FromUnsignedLongLong(address);
}

static PyMethodDef module_methods[] = {
	{"address_of", address_of, METH_O, NULL},
	{"time_walk", time_walk, METH_VARARGS, NULL},
	{"lock_process", lock_process, METH_NOARGS, NULL},
	{"restrict_calls", restrict_calls, METH_VARARGS, NULL},
	{NULL, NULL, 0, NULL},
};

static int module_exec(PyObject *module)
{
	static const struct {
		const char *name;
		long value;
	} constants[] = {
		{"MINIMUM_WINDOW", VB_MINIMUM_WINDOW}, {"MAXIMUM_ZONES", VB_MAXIMUM_ZONES},
		{"EXIT_FAILED", VB_EXIT_FAILED}, {"INVALID", VB_INVALID}, {"CLOSED", VB_CLOSED},
		{"FAILED", VB_FAILED}, {"AUTHENTICATION", VB_AUTHENTICATION}, {"PINNED", VB_PINNED},
		{"NO_CIPHER", VB_NO_CIPHER}, {"NO_USERFAULTFD", VB_NO_USERFAULTFD}, {"NO_MOVE", VB_NO_MOVE},
		{"SWAP", VB_SWAP}, {"BUDGET", VB_BUDGET}, {"PIN_HEADROOM", VB_PIN_HEADROOM},
	};
	struct state *state = PyModule_GetState(module);

	state->error = PyErr_NewException("vambrace.pager._core.Error", NULL, NULL);
	if (!state->error || PyModule_AddObjectRef(module, "Error", state->error))
		return -1;
	state->window_type = PyType_FromModuleAndSpec(module, &vb_python_window, NULL);
	if (!state->window_type || PyModule_AddObjectRef(module, "Window", state->window_type))
		return -1;
	for (size_t i = 0; i < sizeof constants / sizeof *constants; i++)
		if (PyModule_AddIntConstant(module, constants[i].name, constants[i].value))
			return -1;
	return 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
	struct state *state = PyModule_GetState(module);

	Py_VISIT(state->error);
	Py_VISIT(state->window_type);
	return 0;
}

static int module_clear(PyObject *module)
{
	struct state *state = PyModule_GetState(module);

	Py_CLEAR(state->error);
	Py_CLEAR(state->window_type);
	return 0;
}

static PyModuleDef_Slot module_slots[] = {
	{Py_mod_exec, (void *)module_exec},
	{0, NULL},
};

static struct PyModuleDef definition = {
	PyModuleDef_HEAD_INIT,
	.m_name = "vambrace.pager._core",
	.m_size = sizeof(struct state),
	.m_methods = module_methods,
	.m_slots = module_slots,
	.m_traverse = module_traverse,
	.m_clear = module_clear,
};

PyMODINIT_FUNC PyInit__core(void)
{
	return PyModuleDef_Init(&definition);
}
