/*
 * The type Window. Whatever may wait for the window's lock or a page runs without the GIL.
 */
#include "module.h"

#include <string.h>

#include <openssl/crypto.h>

#include "../status.h"
#include "../window.h"

#define GRACE_MS 5000

typedef struct {
	PyObject_HEAD
	struct vb_window *window; /* NULL once it is freed */
	Py_ssize_t exports;       /* memoryviews of guest memory */
	Py_ssize_t calls;         /* under way without the GIL */
	bool closed;
} Window;

static PyObject *fail_of(Window *self, int status)
{
	PyObject *module = PyType_GetModule(Py_TYPE((PyObject *)self));

	return module ? vb_python_fail(module, status) : NULL;
}

/* Frees what is left of a closed window when nothing refers to it any more. */
static void settle(Window *self)
{
	if (self->closed && !self->exports && !self->calls && self->window) {
		vb_window_free(self->window);
		self->window = NULL;
	}
}

static bool is_open(Window *self)
{
	if (self->window && !self->closed)
		return true;
	fail_of(self, VB_CLOSED);
	return false;
}

static PyThreadState *unlock(Window *self)
{
	self->calls++;
	return PyEval_SaveThread();
}

/*
 * Gives the GIL up for a call, during which the window is not freed; NULL, with an exception, where it is closed.
 * Numbers go into the call as they came from Python: a negative one is beyond what there is, and refused as such.
 */
static PyThreadState *enter(Window *self)
{
	return is_open(self) ? unlock(self) : NULL;
}

/* Takes the GIL again; false, with an exception, where the call failed. */
static bool leave(Window *self, PyThreadState *thread, int status)
{
	PyEval_RestoreThread(thread);
	self->calls--;
	settle(self);
	if (status)
		fail_of(self, status);
	return !status;
}

/* The same, for a call that has no result. */
static PyObject *leave_with_none(Window *self, PyThreadState *thread, int status)
{
	return leave(self, thread, status) ? Py_NewRef(Py_None) : NULL;
}

static PyObject *window_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
	static char *names[] = {"zones", "key", "instance", "cipher", "handler_cpus", "placed", "userfaultfd", NULL};
	struct vb_zone_config zones[VB_MAXIMUM_ZONES];
	int cpus[VB_MAXIMUM_HANDLERS];
	struct vb_config config = {.zones = zones, .handler_cpus = cpus, .grace_ms = GRACE_MS};
	PyObject *sequence, *handlers;
	Py_buffer key, instance;
	const char *cipher;
	allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
	Window *self = NULL;
	struct vb_window *window = NULL;
	int placed, status = VB_OK;

	if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "Oy*y*sOpi", names, &sequence, &key, &instance, &cipher,
					 &handlers, &placed, &config.userfaultfd))
		return NULL;
	if (vb_python_zones(sequence, zones, &config.zone_count) || vb_python_cpus(handlers, cpus, &config.handler_count))
		goto out;
	if (!strcmp(cipher, "aes-256-gcm"))
		config.cipher = VB_AES_256_GCM;
	else if (!strcmp(cipher, "sm4-gcm"))
		config.cipher = VB_SM4_GCM;
	else
		status = VB_NO_CIPHER;
	if (key.len != VB_REALM_KEY_BYTES || instance.len != VB_INSTANCE_BYTES)
		status = VB_INVALID;
	config.key = key.buf;
	config.instance = instance.buf;
	config.placed = placed != 0;
	if (!status) {
		Py_BEGIN_ALLOW_THREADS
		status = vb_window_create(&config, &window);
		Py_END_ALLOW_THREADS
	}
	if (status) {
		PyObject *module = PyType_GetModule(type);

		if (module)
			vb_python_fail(module, status);
		goto out;
	}
	self = (Window *)allocate(type, 0);
	if (self)
		self->window = window;
	else
		vb_window_free(window);
out:
	PyBuffer_Release(&key);
	PyBuffer_Release(&instance);
	return (PyObject *)self;
}

static PyObject *window_close(Window *self, PyObject *unused)
{
	(void)unused;
	if (self->window && !self->closed) {
		PyThreadState *thread;

		self->closed = true;
		thread = unlock(self);
		vb_window_close(self->window);
		leave(self, thread, VB_OK);
	}
	Py_RETURN_NONE;
}

static void window_dealloc(Window *self)
{
	PyTypeObject *type = Py_TYPE((PyObject *)self);
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

	vb_window_free(self->window); /* no view and no call is left: each holds a reference */
	release(self);
	Py_DECREF((PyObject *)type);
}

static PyObject *window_write(Window *self, PyObject *arguments)
{
	Py_ssize_t offset;
	Py_buffer data;
	PyThreadState *thread;
	PyObject *result = NULL;

	if (!PyArg_ParseTuple(arguments, "ny*", &offset, &data))
		return NULL;
	thread = enter(self);
	if (thread)
		result = leave_with_none(self, thread,
					 vb_window_write(self->window, (size_t)offset, data.buf, (size_t)data.len));
	PyBuffer_Release(&data);
	return result;
}

/* What is in the window: `length` bytes, or the hash of each of their pages where there is an `algorithm`. */
static PyObject *fetch(Window *self, Py_ssize_t offset, Py_ssize_t length, const char *algorithm)
{
	PyThreadState *thread;
	PyObject *result;
	size_t size = (size_t)length;
	char *to;
	int status;

	if (!is_open(self))
		return NULL;
	if (size > vb_window_bytes(self->window))
		return fail_of(self, VB_INVALID);
	if (algorithm)
		size = (size + VB_PAGE_SIZE_BYTES - 1) / VB_PAGE_SIZE_BYTES * VB_DIGEST_BYTES;
	result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
	if (!result)
		return NULL;
	to = PyBytes_AsString(result);
	thread = unlock(self);
	if (algorithm)
		status = vb_window_digests(self->window, (size_t)offset, (size_t)length, algorithm, (uint8_t *)to);
	else
		status = vb_window_read(self->window, (size_t)offset, to, (size_t)length);
	if (leave(self, thread, status))
		return result;
	OPENSSL_cleanse(to, size);
	Py_DECREF(result);
	return NULL;
}

static PyObject *window_read(Window *self, PyObject *arguments)
{
	Py_ssize_t offset, length;

	if (!PyArg_ParseTuple(arguments, "nn", &offset, &length))
		return NULL;
	return fetch(self, offset, length, NULL);
}

static PyObject *window_digests(Window *self, PyObject *arguments)
{
	Py_ssize_t offset, length;
	const char *algorithm;

	if (!PyArg_ParseTuple(arguments, "nns", &offset, &length, &algorithm))
		return NULL;
	return fetch(self, offset, length, algorithm);
}

static PyObject *window_set_percent(Window *self, PyObject *arguments)
{
	Py_ssize_t zone;
	int percent;
	PyThreadState *thread;

	if (!PyArg_ParseTuple(arguments, "ni", &zone, &percent) || !(thread = enter(self)))
		return NULL;
	return leave_with_none(self, thread, vb_window_set_percent(self->window, (size_t)zone, (unsigned)percent));
}

static PyObject *window_stats(Window *self, PyObject *arguments)
{
	Py_ssize_t zone;
	PyThreadState *thread;
	struct vb_stats stats;

	if (!PyArg_ParseTuple(arguments, "n", &zone) || !(thread = enter(self)))
		return NULL;
	return leave(self, thread, vb_window_stats(self->window, (size_t)zone, &stats)) ? vb_python_stats(&stats) : NULL;
}

static PyObject *window_sample(Window *self, PyObject *arguments)
{
	Py_ssize_t zone;
	int on;
	PyThreadState *thread;

	if (!PyArg_ParseTuple(arguments, "np", &zone, &on) || !(thread = enter(self)))
		return NULL;
	return leave_with_none(self, thread, vb_window_sample(self->window, (size_t)zone, on != 0));
}

static PyObject *window_reuse(Window *self, PyObject *arguments)
{
	Py_ssize_t zone;
	PyThreadState *thread;
	struct vb_reuse reuse;

	if (!PyArg_ParseTuple(arguments, "n", &zone) || !(thread = enter(self)))
		return NULL;
	return leave(self, thread, vb_window_reuse(self->window, (size_t)zone, &reuse)) ? vb_python_reuse(&reuse) : NULL;
}

/* What vb_window_pin and its like have in common: a range of whole pages. */
static PyObject *on_range(Window *self, PyObject *arguments, int (*call)(struct vb_window *, size_t, size_t))
{
	Py_ssize_t offset, length;
	PyThreadState *thread;

	if (!PyArg_ParseTuple(arguments, "nn", &offset, &length) || !(thread = enter(self)))
		return NULL;
	return leave_with_none(self, thread, call(self->window, (size_t)offset, (size_t)length));
}

static PyObject *window_pin(Window *self, PyObject *arguments)
{
	return on_range(self, arguments, vb_window_pin);
}

static PyObject *window_unpin(Window *self, PyObject *arguments)
{
	return on_range(self, arguments, vb_window_unpin);
}

static PyObject *window_discard(Window *self, PyObject *arguments)
{
	return on_range(self, arguments, vb_window_discard);
}

static PyObject *window_draw(Window *self, PyObject *arguments)
{
	PyThreadState *thread;
	Py_ssize_t pages;
	void *address = NULL;
	int status;

	if (!PyArg_ParseTuple(arguments, "n", &pages) || !(thread = enter(self)))
		return NULL;
	status = pages > 0 ? vb_window_draw(self->window, (size_t)pages, &address) : VB_INVALID;
	return leave(self, thread, status) ? PyLong_FromVoidPtr(address) : NULL;
}

static PyObject *window_keep(Window *self, PyObject *arguments)
{
	PyThreadState *thread;
	size_t missing = 0;
	Py_buffer keep;
	bool kept = false;

	if (!PyArg_ParseTuple(arguments, "y*", &keep))
		return NULL;
	thread = enter(self);
	if (thread)
		kept = leave(self, thread, vb_window_keep(self->window, keep.buf, (size_t)keep.len, &missing));
	PyBuffer_Release(&keep);
	return kept ? PyLong_FromSize_t(missing) : NULL;
}

static PyObject *window_settle(Window *self, PyObject *unused)
{
	PyThreadState *thread = enter(self);

	(void)unused;
	return thread ? leave_with_none(self, thread, vb_window_settle(self->window)) : NULL;
}

static PyObject *window_failure(Window *self, PyObject *unused)
{
	struct vb_failure failure;
	PyThreadState *thread = enter(self);

	(void)unused;
	if (!thread)
		return NULL;
	failure = vb_window_failure(self->window);
	leave(self, thread, VB_OK);
	if (!failure.status)
		Py_RETURN_NONE;
	return Py_BuildValue("(IKis)", failure.zone, (unsigned long long)failure.page, failure.status,
			     vb_status_message(failure.status));
}

static PyObject *window_address(Window *self, void *unused)
{
	(void)unused;
	if (!self->window)
		return fail_of(self, VB_CLOSED);
	return PyLong_FromVoidPtr(vb_window_address(self->window));
}

static PyObject *window_side(Window *self, void *unused)
{
	(void)unused;
	if (!self->window || self->closed)
		return fail_of(self, VB_CLOSED);
	return PyLong_FromVoidPtr((void *)(uintptr_t)vb_window_side(self->window));
}

static PyObject *window_size(Window *self, void *unused)
{
	(void)unused;
	if (!self->window)
		return fail_of(self, VB_CLOSED);
	return PyLong_FromSize_t(vb_window_bytes(self->window));
}

static PyObject *window_failure_fd(Window *self, void *unused)
{
	(void)unused;
	if (!self->window)
		return fail_of(self, VB_CLOSED);
	return PyLong_FromLong(vb_window_failure_fd(self->window));
}

static int window_getbuffer(Window *self, Py_buffer *view, int flags)
{
	int result;

	if (!self->window || self->closed) {
		view->obj = NULL;
		PyErr_SetString(PyExc_BufferError, vb_status_message(VB_CLOSED));
		return -1;
	}
	result = PyBuffer_FillInfo(view, (PyObject *)self, vb_window_address(self->window),
				   (Py_ssize_t)vb_window_bytes(self->window), 0, flags);
	if (result == 0)
		self->exports++;
	return result;
}

static void window_releasebuffer(Window *self, Py_buffer *view)
{
	(void)view;
	self->exports--;
	settle(self);
}

static PyMethodDef window_methods[] = {
	{"close", (PyCFunction)window_close, METH_NOARGS, NULL},
	{"write", (PyCFunction)window_write, METH_VARARGS, NULL},
	{"read", (PyCFunction)window_read, METH_VARARGS, NULL},
	{"digests", (PyCFunction)window_digests, METH_VARARGS, NULL},
	{"set_percent", (PyCFunction)window_set_percent, METH_VARARGS, NULL},
	{"stats", (PyCFunction)window_stats, METH_VARARGS, NULL},
	{"sample", (PyCFunction)window_sample, METH_VARARGS, NULL},
	{"reuse", (PyCFunction)window_reuse, METH_VARARGS, NULL},
	{"pin", (PyCFunction)window_pin, METH_VARARGS, NULL},
	{"unpin", (PyCFunction)window_unpin, METH_VARARGS, NULL},
	{"discard", (PyCFunction)window_discard, METH_VARARGS, NULL},
	{"draw", (PyCFunction)window_draw, METH_VARARGS, NULL},
	{"keep", (PyCFunction)window_keep, METH_VARARGS, NULL},
	{"settle", (PyCFunction)window_settle, METH_NOARGS, NULL},
	{"failure", (PyCFunction)window_failure, METH_NOARGS, NULL},
	{NULL, NULL, 0, NULL},
};

static PyGetSetDef window_properties[] = {
	{"address", (getter)window_address, NULL, NULL, NULL},
	{"side", (getter)window_side, NULL, NULL, NULL},
	{"size", (getter)window_size, NULL, NULL, NULL},
	{"failure_fd", (getter)window_failure_fd, NULL, NULL, NULL},
	{NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot window_slots[] = {
	{Py_tp_new, (void *)window_new},
	{Py_tp_dealloc, (void *)window_dealloc},
	{Py_tp_methods, window_methods},
	{Py_tp_getset, window_properties},
	{Py_bf_getbuffer, (void *)window_getbuffer},
	{Py_bf_releasebuffer, (void *)window_releasebuffer},
	{0, NULL},
};

PyType_Spec vb_python_window = {
	.name = "vambrace.pager._core.Window",
	.basicsize = sizeof(Window),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
	.slots = window_slots,
};
