/*
 * The Python face of inodes: which they are, their words, what lies above and below, who has them open, where they are
 * found. Paths may lead to a disk, so those calls are made without the interpreter's lock.
 */
#include "module.h"

/* ---- inodes and words ----------------------------------------------------------------------------------- */

/* The inode of this nodeid, with a reference; NULL, with an exception set, if there is none. */
static struct inode *inode_named(MirrorObject *self, PyObject *nodeid, struct mirror **mirror) {
    *mirror = running(self);
    uint64_t number = *mirror == NULL ? 0 : PyLong_AsUnsignedLongLong(nodeid);
    if (PyErr_Occurred()) return NULL;
    struct inode *inode = inode_by_nodeid(*mirror, number);
    if (inode == NULL) os_error(ESTALE);
    return inode;
}

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

PyObject *Mirror_identify(MirrorObject *self, PyObject *argument) {
    struct mirror *mirror;
    struct inode *inode = inode_named(self, argument, &mirror);
    if (inode == NULL) return NULL;
    PyObject *result = inode_tuple(inode);
    inode_put(mirror, inode);
    return result;
}

PyObject *Mirror_set_word(MirrorObject *self, PyObject *arguments) {
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

PyObject *Mirror_path(MirrorObject *self, PyObject *argument) {
    struct mirror *mirror;
    struct inode *inode = inode_named(self, argument, &mirror);
    if (inode == NULL) return NULL;
    char path[PATH_MAX + NAME_MAX];
    struct inode *parent = inode_parent(mirror, inode);
    bool placed = parent != NULL || inode == mirror->root;
    size_t size = placed ? inode_own_path(mirror, inode, path, sizeof path) : 0;
    if (parent != NULL) inode_put(mirror, parent);
    inode_put(mirror, inode);
    if (!placed) return os_error(ESTALE);
    return PyBytes_FromStringAndSize(path, (Py_ssize_t)size);
}

PyObject *Mirror_attributes(MirrorObject *self, PyObject *argument) {
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

PyObject *Mirror_barrier(MirrorObject *self, PyObject *argument) {
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

PyObject *Mirror_ancestors(MirrorObject *self, PyObject *argument) {
    struct mirror *mirror;
    struct inode *inode = inode_named(self, argument, &mirror);
    if (inode == NULL) return NULL;
    struct inode **above = calloc(MOST_ABOVE, sizeof *above);
    int number = 0;
    BEGIN_WORK(self)
    if (above != NULL) number = tree_ancestors(mirror, inode, above);
    inode_put(mirror, inode);
    END_WORK(self)
    return above == NULL ? PyErr_NoMemory() : inodes_upwards(mirror, above, number);
}

/* What the path leads to, its parent, and so on to the root; looked up anew. */
PyObject *Mirror_way(MirrorObject *self, PyObject *argument) {
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
PyObject *Mirror_below(MirrorObject *self, PyObject *arguments) {
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

PyObject *Mirror_openers(MirrorObject *self, PyObject *argument) {
    struct mirror *mirror;
    struct inode *inode = inode_named(self, argument, &mirror);
    if (inode == NULL) return NULL;
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

PyObject *Mirror_identity(MirrorObject *self, PyObject *argument) {
    struct mirror *mirror;
    struct inode *inode = inode_named(self, argument, &mirror);
    if (inode == NULL) return NULL;
    struct identity identity;
    identity_of(mirror, primary_of(inode), &identity);
    inode_put(mirror, inode);
    return Py_BuildValue("(KLIIINiy#)", (unsigned long long)identity.ino, (long long)identity.birth_seconds,
                         identity.birth_nanoseconds, identity.generation, (unsigned)identity.type,
                         PyBool_FromLong(identity.nested), identity.handle.type, (const char *)identity.handle.data,
                         (Py_ssize_t)identity.handle.bytes);
}

/* The inode keeps a reference until release(). */
PyObject *Mirror_restore(MirrorObject *self, PyObject *arguments) {
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
PyObject *Mirror_resolve(MirrorObject *self, PyObject *arguments) {
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

PyObject *Mirror_access(MirrorObject *self, PyObject *arguments) {
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

PyObject *Mirror_keep(MirrorObject *self, PyObject *argument) {
    struct mirror *mirror = running(self);
    uint64_t nodeid = PyLong_AsUnsignedLongLong(argument);
    if (mirror == NULL || PyErr_Occurred()) return NULL;
    if (inode_by_nodeid(mirror, nodeid) == NULL) return os_error(ESTALE);
    Py_RETURN_NONE;
}

PyObject *Mirror_release(MirrorObject *self, PyObject *argument) {
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
