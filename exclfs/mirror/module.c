/*
 * The Python face of the mirror: exclfs.mirror._mirror.
 *
 * Thin: it converts values and errors. Every call that can wait releases the interpreter, and stop() waits for those
 * that are at work before it frees what they work on. Errors are OSError with the errno; exclfs/mirror/__init__.py
 * makes them typed.
 */
#include "module.h"

#include <sys/mount.h>
#include <sys/prctl.h>

PyObject *os_error(int error) {
    errno = error < 0 ? -error : error;
    return PyErr_SetFromErrno(PyExc_OSError);
}

/* ---- making and ending ---------------------------------------------------------------------------------- */

static int Mirror_init(MirrorObject *self, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"source",     "device",       "channel",          "entry_timeout",    "attr_timeout",
                            "negative_timeout", "decision_timeout", "threads",    "descriptors",      "passthrough",
                            "ask_always", "privileged",   "hold_open",        "opens",            "gates",
                            "mounted",    "cpu_latency",  NULL};
    int source, device, channel, passthrough, ask_always, privileged, hold_open, gates;
    unsigned long long mounted;
    struct settings settings;
    if (self->mirror != NULL) {
        PyErr_SetString(PyExc_ValueError, "a mirror is made once");
        return -1;
    }
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "iii$ddddIIpppiIpKi", names, &source, &device, &channel,
                                     &settings.entry_timeout, &settings.attr_timeout, &settings.negative_timeout,
                                     &settings.decision_timeout, &settings.threads, &settings.descriptors, &passthrough,
                                     &ask_always, &privileged, &hold_open, &settings.opens, &gates, &mounted,
                                     &settings.cpu_latency))
        return -1;
    settings.passthrough = passthrough;
    settings.ask_always = ask_always;
    settings.privileged = privileged;
    settings.gates = gates;
    settings.hold_open = (enum open_files)hold_open;
    settings.mounted = (dev_t)mounted;
    int error = mirror_new(&self->mirror, source, device, channel, settings);
    if (error) {
        os_error(error);
        return -1;
    }
    return 0;
}

static void end(MirrorObject *self) {
    struct mirror *mirror = self->mirror;
    self->mirror = NULL;
    if (mirror == NULL) return;
    Py_BEGIN_ALLOW_THREADS
    channel_stop(mirror);
    gates_stop(mirror);
    questions_stop(mirror); /* thaws the words that a call may be waiting for */
    Py_END_ALLOW_THREADS
    while (self->calls > 0) {
        Py_BEGIN_ALLOW_THREADS
        usleep(1000);
        Py_END_ALLOW_THREADS
    }
    mirror_free(mirror);
}

static void Mirror_dealloc(MirrorObject *self) {
    end(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

struct mirror *running(MirrorObject *self) {
    if (self->mirror != NULL) return self->mirror;
    PyErr_SetString(PyExc_ValueError, "the mirror has been stopped");
    return NULL;
}

static PyObject *Mirror_start(MirrorObject *self, PyObject *ignored) {
    (void)ignored;
    struct mirror *mirror = running(self);
    if (mirror == NULL) return NULL;
    int error;
    BEGIN_WORK(self)
    error = channel_start(mirror);
    END_WORK(self)
    if (error) return os_error(error);
    Py_RETURN_NONE;
}

static PyObject *Mirror_stop(MirrorObject *self, PyObject *ignored) {
    (void)ignored;
    end(self);
    Py_RETURN_NONE;
}

/* ---- looking -------------------------------------------------------------------------------------------- */

static PyObject *Mirror_counters(MirrorObject *self, PyObject *ignored) {
    (void)ignored;
    static const char *names[COUNTERS] = {
        "lookup", "getattr", "setattr", "readlink", "create",   "open",  "read",      "write",       "release",
        "readdir", "remove", "xattr",   "forget",   "other", "asked", "timed_out", "asked_again"};
    struct mirror *mirror = running(self);
    PyObject *all = mirror == NULL ? NULL : PyDict_New();
    if (all == NULL) return NULL;
    unsigned long values[COUNTERS + 3];
    const char *labels[COUNTERS + 3];
    unsigned number = 0;
    for (; number < COUNTERS; number++) {
        labels[number] = names[number];
        values[number] = atomic_load(&mirror->counters[number]);
    }
    labels[number] = "inodes";
    values[number++] = atomic_load(&mirror->table.known);
    labels[number] = "descriptors";
    pthread_mutex_lock(&mirror->budget.lock);
    values[number++] = mirror->budget.spare.count + mirror->budget.nested.count + mirror->budget.pinned.count;
    pthread_mutex_unlock(&mirror->budget.lock);
    labels[number] = "passthrough";
    values[number++] = atomic_load(&mirror->passthrough);
    for (unsigned i = 0; i < number; i++) {
        PyObject *value = PyLong_FromUnsignedLong(values[i]);
        if (value == NULL || PyDict_SetItemString(all, labels[i], value)) {
            Py_XDECREF(value);
            Py_DECREF(all);
            return NULL;
        }
        Py_DECREF(value);
    }
    return all;
}

static PyObject *Mirror_latencies(MirrorObject *self, PyObject *ignored) {
    (void)ignored;
    struct mirror *mirror = running(self);
    PyObject *all = mirror == NULL ? NULL : PyTuple_New(LATENCIES);
    if (all == NULL) return NULL;
    for (unsigned i = 0; i < LATENCIES; i++) {
        PyObject *value = PyLong_FromUnsignedLong(atomic_load(&mirror->questions.latencies[i]));
        if (value == NULL) {
            Py_DECREF(all);
            return NULL;
        }
        PyTuple_SET_ITEM(all, i, value);
    }
    return all;
}

static PyObject *Mirror_awaits(MirrorObject *self, PyObject *argument) {
    struct mirror *mirror = running(self);
    unsigned long pid = mirror == NULL ? 0 : PyLong_AsUnsignedLong(argument);
    if (mirror == NULL || PyErr_Occurred()) return NULL;
    return PyBool_FromLong(pid <= UINT32_MAX && questions_await(mirror, (uint32_t)pid));
}

static PyObject *Mirror_finished(MirrorObject *self, PyObject *ignored) {
    (void)ignored;
    struct mirror *mirror = running(self);
    return mirror == NULL ? NULL : PyLong_FromLong(mirror->finished);
}

static PyMethodDef Mirror_methods[] = {
    {"start", (PyCFunction)Mirror_start, METH_NOARGS, NULL},
    {"stop", (PyCFunction)Mirror_stop, METH_NOARGS, NULL},
    {"finished", (PyCFunction)Mirror_finished, METH_NOARGS, NULL},
    {"identify", (PyCFunction)Mirror_identify, METH_O, NULL},
    {"set_word", (PyCFunction)Mirror_set_word, METH_VARARGS, NULL},
    {"barrier", (PyCFunction)Mirror_barrier, METH_O, NULL},
    {"ancestors", (PyCFunction)Mirror_ancestors, METH_O, NULL},
    {"way", (PyCFunction)Mirror_way, METH_O, NULL},
    {"below", (PyCFunction)Mirror_below, METH_VARARGS, NULL},
    {"openers", (PyCFunction)Mirror_openers, METH_O, NULL},
    {"identity", (PyCFunction)Mirror_identity, METH_O, NULL},
    {"restore", (PyCFunction)Mirror_restore, METH_VARARGS, NULL},
    {"access", (PyCFunction)Mirror_access, METH_VARARGS, NULL},
    {"path", (PyCFunction)Mirror_path, METH_O, NULL},
    {"attributes", (PyCFunction)Mirror_attributes, METH_O, NULL},
    {"resolve", (PyCFunction)Mirror_resolve, METH_VARARGS, NULL},
    {"keep", (PyCFunction)Mirror_keep, METH_O, NULL},
    {"release", (PyCFunction)Mirror_release, METH_O, NULL},
    {"counters", (PyCFunction)Mirror_counters, METH_NOARGS, NULL},
    {"latencies", (PyCFunction)Mirror_latencies, METH_NOARGS, NULL},
    {"awaits", (PyCFunction)Mirror_awaits, METH_O, NULL},
    {"watch", (PyCFunction)Mirror_watch, METH_VARARGS, NULL},
    {"let_go", (PyCFunction)Mirror_let_go, METH_VARARGS, NULL},
    {"open_gates", (PyCFunction)Mirror_open_gates, METH_NOARGS, NULL},
    {"sightings", (PyCFunction)Mirror_sightings, METH_NOARGS, NULL},
    {"sighted", (PyCFunction)Mirror_sighted, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject MirrorType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "exclfs.mirror._mirror.Mirror",
    .tp_basicsize = sizeof(MirrorObject),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)Mirror_init,
    .tp_dealloc = (destructor)Mirror_dealloc,
    .tp_methods = Mirror_methods,
};

/* ---- functions ------------------------------------------------------------------------------------------ */

static PyObject *module_mount(PyObject *module, PyObject *arguments) {
    (void)module;
    const char *source, *mountpoint, *type, *data;
    unsigned long flags;
    if (!PyArg_ParseTuple(arguments, "yyyky", &source, &mountpoint, &type, &flags, &data)) return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = channel_mount(mountpoint, source, type, flags, data);
    Py_END_ALLOW_THREADS
    if (error) return os_error(error);
    Py_RETURN_NONE;
}

static PyObject *module_detach(PyObject *module, PyObject *arguments) {
    (void)module;
    const char *mountpoint;
    int failed;
    if (!PyArg_ParseTuple(arguments, "y", &mountpoint)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    failed = umount2(mountpoint, MNT_DETACH | UMOUNT_NOFOLLOW);
    Py_END_ALLOW_THREADS
    if (failed) return os_error(errno);
    Py_RETURN_NONE;
}

/* (st_dev, nodeid, generation) of a FUSE inode, without asking its server. */
static PyObject *module_fuse_handle(PyObject *module, PyObject *argument) {
    (void)module;
    int fd = PyObject_AsFileDescriptor(argument);
    if (fd < 0) return NULL;
    struct statx attributes;
    if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, STATX_INO, &attributes))
        return os_error(errno);
    union {
        struct file_handle handle;
        char space[sizeof(struct file_handle) + MAX_HANDLE_SZ];
    } from;
    from.handle.handle_bytes = MAX_HANDLE_SZ;
    int mount;
    if (name_to_handle_at(fd, "", &from.handle, &mount, AT_EMPTY_PATH)) return os_error(errno);
    uint32_t words[3]; /* fs/fuse/inode.c, fuse_encode_fh(): nodeid high, nodeid low, generation */
    if (from.handle.handle_bytes < sizeof words) return os_error(EINVAL);
    memcpy(words, from.handle.f_handle, sizeof words);
    return Py_BuildValue("(KKI)", (unsigned long long)makedev(attributes.stx_dev_major, attributes.stx_dev_minor),
                         (unsigned long long)words[0] << 32 | words[1], words[2]);
}

/* What request_parse() makes of a message: (argument size ignored) names and data, or OSError. For tests and fuzzing. */
static PyObject *module_parse(PyObject *module, PyObject *argument) {
    (void)module;
    char *bytes;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(argument, &bytes, &size)) return NULL;
    /* A copy of exactly this size, so that a read beyond its end is one that AddressSanitizer sees. */
    void *message = malloc(size > 0 ? (size_t)size : 1);
    if (message == NULL) return PyErr_NoMemory();
    memcpy(message, bytes, (size_t)size);
    struct request request;
    int error = request_parse(message, (size_t)size, &request);
    PyObject *result = error ? os_error(error)
                             : Py_BuildValue("(yyy#)", request.name, request.second_name, (const char *)request.data,
                                             (Py_ssize_t)request.data_size);
    free(message);
    return result;
}

static PyObject *module_hide(PyObject *module, PyObject *ignored) {
    (void)module;
    (void)ignored;
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)) return os_error(errno);
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"mount", module_mount, METH_VARARGS, NULL},   {"detach", module_detach, METH_VARARGS, NULL},
    {"fuse_handle", module_fuse_handle, METH_O, NULL}, {"parse", module_parse, METH_O, NULL},
    {"hide", module_hide, METH_NOARGS, NULL},      {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_mirror", .m_size = -1, .m_methods = functions};

PyMODINIT_FUNC PyInit__mirror(void) {
    if (PyType_Ready(&MirrorType) < 0) return NULL;
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL) return NULL;
    Py_INCREF(&MirrorType);
    if (PyModule_AddObject(module, "Mirror", (PyObject *)&MirrorType) < 0) {
        Py_DECREF(&MirrorType);
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
