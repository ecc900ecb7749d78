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
                            "mounted",    NULL};
    int source, device, channel, passthrough, ask_always, privileged, hold_open, gates;
    unsigned long long mounted;
    struct settings settings;
    if (self->mirror != NULL) {
        PyErr_SetString(PyExc_ValueError, "a mirror is made once");
        return -1;
    }
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "iii$ddddIIpppiIpK", names, &source, &device, &channel,
                                     &settings.entry_timeout, &settings.attr_timeout, &settings.negative_timeout,
                                     &settings.decision_timeout, &settings.threads, &settings.descriptors, &passthrough,
                                     &ask_always, &privileged, &hold_open, &settings.opens, &gates, &mounted))
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

/* ---- inodes and words ----------------------------------------------------------------------------------- */

/* Of all views of an inode the policy knows one. */
static PyObject *inode_tuple(struct inode *view) {
    const struct inode *inode = primary_of(view);
    return Py_BuildValue("(KKKI)", (unsigned long long)inode->nodeid, (unsigned long long)inode->key.dev,
                         (unsigned long long)inode->key.ino, inode->generation);
}

/* The one of all views that the policy knows, in place of one that was found: with its reference. */
static struct inode *known_one(struct mirror *mirror, struct inode *view) {
    struct inode *inode = primary_of(view);
    if (inode == view) return inode;
    inode_get(inode);
    inode_put(mirror, view);
    return inode;
}

static PyObject *Mirror_identify(MirrorObject *self, PyObject *argument) {
    struct mirror *mirror = running(self);
    uint64_t nodeid = PyLong_AsUnsignedLongLong(argument);
    if (mirror == NULL || PyErr_Occurred()) return NULL;
    struct inode *inode = inode_by_nodeid(mirror, nodeid);
    if (inode == NULL) return os_error(ESTALE);
    PyObject *result = inode_tuple(inode);
    inode_put(mirror, inode);
    return result;
}

static PyObject *Mirror_set_word(MirrorObject *self, PyObject *arguments) {
    unsigned long long nodeid;
    unsigned word;
    int wait, error = -ESTALE;
    struct mirror *mirror = running(self);
    if (mirror == NULL || !PyArg_ParseTuple(arguments, "KIp", &nodeid, &word, &wait)) return NULL;
    BEGIN_WORK(self)
    struct inode *inode = inode_by_nodeid(mirror, nodeid);
    if (inode != NULL) {
        error = word_set(mirror, inode, word, wait);
        inode_put(mirror, inode);
    }
    END_WORK(self)
    if (error) return os_error(error);
    Py_RETURN_NONE;
}

static PyObject *Mirror_path(MirrorObject *self, PyObject *argument) {
    struct mirror *mirror = running(self);
    uint64_t nodeid = PyLong_AsUnsignedLongLong(argument);
    if (mirror == NULL || PyErr_Occurred()) return NULL;
    struct inode *inode = inode_by_nodeid(mirror, nodeid);
    if (inode == NULL) return os_error(ESTALE);
    char path[PATH_MAX + NAME_MAX];
    struct inode *parent = inode_parent(mirror, inode);
    bool placed = parent != NULL || inode == mirror->root;
    size_t size = placed ? inode_own_path(mirror, inode, path, sizeof path) : 0;
    if (parent != NULL) inode_put(mirror, parent);
    inode_put(mirror, inode);
    if (!placed) return os_error(ESTALE);
    return PyBytes_FromStringAndSize(path, (Py_ssize_t)size);
}

static PyObject *Mirror_attributes(MirrorObject *self, PyObject *argument) {
    struct mirror *mirror = running(self);
    uint64_t nodeid = PyLong_AsUnsignedLongLong(argument);
    if (mirror == NULL || PyErr_Occurred()) return NULL;
    struct statx attributes;
    int error = -ESTALE;
    BEGIN_WORK(self)
    struct inode *inode = inode_by_nodeid(mirror, nodeid);
    if (inode != NULL) {
        error = backing_stat(mirror, inode, &attributes);
        inode_put(mirror, inode);
    }
    END_WORK(self)
    if (error) return os_error(error);
    return Py_BuildValue("(IIII)", attributes.stx_uid, attributes.stx_gid, (unsigned)attributes.stx_mode,
                         attributes.stx_nlink);
}

static PyObject *Mirror_barrier(MirrorObject *self, PyObject *argument) {
    struct mirror *mirror = running(self);
    int enforcing = mirror == NULL ? -1 : PyObject_IsTrue(argument);
    if (enforcing < 0) return NULL;
    BEGIN_WORK(self)
    tree_barrier(mirror, enforcing);
    END_WORK(self)
    Py_RETURN_NONE;
}

/* ---- the tree ------------------------------------------------------------------------------------------- */

/* A tuple of inodes, from the last to the first; lets go of them and of the array. */
static PyObject *inodes_upwards(struct mirror *mirror, struct inode **inodes, int number) {
    PyObject *all = PyTuple_New(number);
    for (int i = 0; i < number; i++) {
        PyObject *one = all == NULL ? NULL : inode_tuple(inodes[number - 1 - i]);
        if (one != NULL) PyTuple_SET_ITEM(all, i, one);
        else Py_CLEAR(all);
    }
    for (int i = 0; i < number; i++) inode_put(mirror, inodes[i]);
    free(inodes);
    return all;
}

static PyObject *Mirror_ancestors(MirrorObject *self, PyObject *argument) {
    struct mirror *mirror = running(self);
    uint64_t nodeid = PyLong_AsUnsignedLongLong(argument);
    if (mirror == NULL || PyErr_Occurred()) return NULL;
    struct inode *inode = inode_by_nodeid(mirror, nodeid);
    if (inode == NULL) return os_error(ESTALE);
    struct inode **above = calloc(MOST_ABOVE, sizeof *above);
    int number = 0;
    BEGIN_WORK(self)
    if (above != NULL) number = tree_ancestors(mirror, inode, above);
    inode_put(mirror, inode);
    END_WORK(self)
    return above == NULL ? PyErr_NoMemory() : inodes_upwards(mirror, above, number);
}

/* What the path leads to, its parent, and so on to the root; looked up anew. */
static PyObject *Mirror_way(MirrorObject *self, PyObject *argument) {
    struct mirror *mirror = running(self);
    const char *path = PyBytes_AsString(argument);
    if (mirror == NULL || path == NULL) return NULL;
    struct inode **way = calloc(MOST_ABOVE, sizeof *way);
    if (way == NULL) return PyErr_NoMemory();
    int number;
    BEGIN_WORK(self)
    number = path_way(mirror, path, way);
    END_WORK(self)
    if (number >= 0 || number == -ESTALE) return inodes_upwards(mirror, way, number < 0 ? 0 : number);
    free(way);
    return os_error(number);
}

/* Those of the nodeids that lie below the directory. */
static PyObject *Mirror_below(MirrorObject *self, PyObject *arguments) {
    unsigned long long nodeid;
    PyObject *candidates;
    struct mirror *mirror = running(self);
    if (mirror == NULL || !PyArg_ParseTuple(arguments, "KO!", &nodeid, &PyTuple_Type, &candidates)) return NULL;
    struct inode *directory = inode_by_nodeid(mirror, nodeid);
    if (directory == NULL) return os_error(ESTALE);
    BEGIN_WORK(self)
    ways_learn(mirror);
    END_WORK(self)
    PyObject *below = PyList_New(0);
    for (Py_ssize_t i = 0; below != NULL && i < PyTuple_GET_SIZE(candidates); i++) {
        PyObject *candidate = PyTuple_GET_ITEM(candidates, i);
        struct inode *inode = inode_by_nodeid(mirror, PyLong_AsUnsignedLongLong(candidate));
        if (inode == NULL) continue;
        bool lies = tree_is_below(mirror, inode, directory);
        inode_put(mirror, inode);
        if (lies && PyList_Append(below, candidate)) Py_CLEAR(below);
    }
    inode_put(mirror, directory);
    if (below != NULL && PyErr_Occurred()) Py_CLEAR(below);
    return below;
}

/* ---- open files ----------------------------------------------------------------------------------------- */

enum { MOST_OPENERS = 1024 };

static PyObject *Mirror_openers(MirrorObject *self, PyObject *argument) {
    struct mirror *mirror = running(self);
    uint64_t nodeid = PyLong_AsUnsignedLongLong(argument);
    if (mirror == NULL || PyErr_Occurred()) return NULL;
    struct inode *inode = inode_by_nodeid(mirror, nodeid);
    if (inode == NULL) return os_error(ESTALE);
    struct opener *openers = calloc(MOST_OPENERS, sizeof *openers);
    size_t number = openers == NULL ? 0 : openers_of(mirror, inode, openers, MOST_OPENERS);
    inode_put(mirror, inode);
    PyObject *all = openers == NULL ? PyErr_NoMemory() : PyList_New(0);
    for (size_t i = 0; all != NULL && i < number; i++) {
        const struct opener *opener = &openers[i];
        PyObject *one = Py_BuildValue("(iKILl)", (int)opener->pid, (unsigned long long)opener->start_time,
                                      (unsigned)opener->uid, (long long)opener->since.tv_sec, opener->since.tv_nsec);
        if (one == NULL || PyList_Append(all, one)) Py_CLEAR(all);
        Py_XDECREF(one);
    }
    free(openers);
    return all;
}

/* ---- identity ------------------------------------------------------------------------------------------- */

static PyObject *Mirror_identity(MirrorObject *self, PyObject *argument) {
    struct mirror *mirror = running(self);
    uint64_t nodeid = PyLong_AsUnsignedLongLong(argument);
    if (mirror == NULL || PyErr_Occurred()) return NULL;
    struct inode *inode = inode_by_nodeid(mirror, nodeid);
    if (inode == NULL) return os_error(ESTALE);
    struct identity identity;
    identity_of(mirror, primary_of(inode), &identity);
    inode_put(mirror, inode);
    return Py_BuildValue("(KLIIINiy#)", (unsigned long long)identity.ino, (long long)identity.birth_seconds,
                         identity.birth_nanoseconds, identity.generation, (unsigned)identity.type,
                         PyBool_FromLong(identity.nested), identity.handle.type, (const char *)identity.handle.data,
                         (Py_ssize_t)identity.handle.bytes);
}

/* The inode keeps a reference until release(). */
static PyObject *Mirror_restore(MirrorObject *self, PyObject *arguments) {
    const char *path, *handle;
    Py_ssize_t handle_bytes;
    unsigned long long ino;
    long long birth;
    unsigned type;
    int nested;
    struct identity identity = {0};
    struct mirror *mirror = running(self);
    if (mirror == NULL || !PyArg_ParseTuple(arguments, "yKLIIIpiy#", &path, &ino, &birth, &identity.birth_nanoseconds,
                                            &identity.generation, &type, &nested, &identity.handle.type, &handle,
                                            &handle_bytes))
        return NULL;
    if (handle_bytes > (Py_ssize_t)sizeof identity.handle.data) return os_error(EINVAL);
    identity.ino = ino;
    identity.birth_seconds = birth;
    identity.type = type;
    identity.nested = nested;
    identity.handle.bytes = (unsigned)handle_bytes;
    memcpy(identity.handle.data, handle, identity.handle.bytes);
    struct inode *inode = NULL;
    int error;
    BEGIN_WORK(self)
    error = identity_restore(mirror, &identity, path, &inode);
    if (!error) inode = known_one(mirror, inode);
    END_WORK(self)
    return error ? os_error(error) : inode_tuple(inode);
}

/* ---- a path below the root ------------------------------------------------------------------------------ */

/* The group ids of a tuple, to be freed; NULL with an exception set. */
static gid_t *read_groups(PyObject *tuple, size_t *count) {
    Py_ssize_t size = PyTuple_GET_SIZE(tuple);
    if (size > NGROUPS_MAX) return os_error(EINVAL), NULL;
    gid_t *groups = calloc((size_t)size + 1, sizeof *groups);
    if (groups == NULL) return PyErr_NoMemory(), NULL;
    for (Py_ssize_t i = 0; i < size; i++) groups[i] = (gid_t)PyLong_AsUnsignedLong(PyTuple_GET_ITEM(tuple, i));
    *count = (size_t)size;
    if (!PyErr_Occurred()) return groups;
    free(groups);
    return NULL;
}

/* The inode keeps a reference until release(). */
static PyObject *Mirror_resolve(MirrorObject *self, PyObject *arguments) {
    const char *path;
    unsigned uid, gid;
    PyObject *group_list;
    struct mirror *mirror = running(self);
    if (mirror == NULL || !PyArg_ParseTuple(arguments, "yIIO!", &path, &uid, &gid, &PyTuple_Type, &group_list))
        return NULL;
    size_t count;
    gid_t *groups = read_groups(group_list, &count);
    if (groups == NULL) return NULL;
    struct inode *inode;
    int error;
    BEGIN_WORK(self)
    error = path_resolve(mirror, path, uid, gid, groups, count, &inode);
    if (!error) inode = known_one(mirror, inode);
    END_WORK(self)
    free(groups);
    return error ? os_error(error) : inode_tuple(inode);
}

static PyObject *Mirror_access(MirrorObject *self, PyObject *arguments) {
    unsigned long long nodeid;
    unsigned uid, gid;
    int mask, error = -ESTALE;
    PyObject *group_list;
    struct mirror *mirror = running(self);
    if (mirror == NULL || !PyArg_ParseTuple(arguments, "KIIO!i", &nodeid, &uid, &gid, &PyTuple_Type, &group_list, &mask))
        return NULL;
    size_t count;
    gid_t *groups = read_groups(group_list, &count);
    if (groups == NULL) return NULL;
    BEGIN_WORK(self)
    struct inode *inode = inode_by_nodeid(mirror, nodeid);
    if (inode != NULL) {
        error = path_access(mirror, inode, uid, gid, groups, count, mask);
        inode_put(mirror, inode);
    }
    END_WORK(self)
    free(groups);
    if (error && error != -EACCES && error != -EPERM && error != -EROFS) return os_error(error);
    return PyBool_FromLong(error == 0);
}

static PyObject *Mirror_keep(MirrorObject *self, PyObject *argument) {
    struct mirror *mirror = running(self);
    uint64_t nodeid = PyLong_AsUnsignedLongLong(argument);
    if (mirror == NULL || PyErr_Occurred()) return NULL;
    if (inode_by_nodeid(mirror, nodeid) == NULL) return os_error(ESTALE);
    Py_RETURN_NONE;
}

static PyObject *Mirror_release(MirrorObject *self, PyObject *argument) {
    struct mirror *mirror = running(self);
    uint64_t nodeid = PyLong_AsUnsignedLongLong(argument);
    if (mirror == NULL || PyErr_Occurred()) return NULL;
    struct inode *inode = inode_by_nodeid(mirror, nodeid);
    if (inode != NULL) {
        inode_put(mirror, inode); /* this call's */
        inode_put(mirror, inode); /* the one that resolve() left */
    }
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
