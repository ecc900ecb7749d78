/* What the sources of the Python face share. */
#ifndef EXCLFS_MODULE_H
#define EXCLFS_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "mirror.h"

typedef struct {
    PyObject_HEAD
    struct mirror *mirror;
    unsigned calls; /* that are at work in the mirror without the interpreter's lock, under which this is counted */
} MirrorObject;

#define BEGIN_WORK(self) \
    (self)->calls++;     \
    Py_BEGIN_ALLOW_THREADS
#define END_WORK(self)   \
    Py_END_ALLOW_THREADS \
    (self)->calls--;

/* module.c */
PyObject *os_error(int error);               /* sets OSError; NULL */
struct mirror *running(MirrorObject *self); /* NULL with an exception set, once it has been stopped */

/* module_inodes.c */
PyObject *Mirror_identify(MirrorObject *self, PyObject *argument);
PyObject *Mirror_set_word(MirrorObject *self, PyObject *arguments);
PyObject *Mirror_path(MirrorObject *self, PyObject *argument);
PyObject *Mirror_attributes(MirrorObject *self, PyObject *argument);
PyObject *Mirror_barrier(MirrorObject *self, PyObject *argument);
PyObject *Mirror_ancestors(MirrorObject *self, PyObject *argument);
PyObject *Mirror_way(MirrorObject *self, PyObject *argument);
PyObject *Mirror_below(MirrorObject *self, PyObject *arguments);
PyObject *Mirror_openers(MirrorObject *self, PyObject *argument);
PyObject *Mirror_identity(MirrorObject *self, PyObject *argument);
PyObject *Mirror_restore(MirrorObject *self, PyObject *arguments);
PyObject *Mirror_resolve(MirrorObject *self, PyObject *arguments);
PyObject *Mirror_access(MirrorObject *self, PyObject *arguments);
PyObject *Mirror_keep(MirrorObject *self, PyObject *argument);
PyObject *Mirror_release(MirrorObject *self, PyObject *argument);

/* module_gates.c */
PyObject *Mirror_watch(MirrorObject *self, PyObject *arguments);
PyObject *Mirror_let_go(MirrorObject *self, PyObject *arguments);
PyObject *Mirror_open_gates(MirrorObject *self, PyObject *ignored);
PyObject *Mirror_sightings(MirrorObject *self, PyObject *ignored);
PyObject *Mirror_sighted(MirrorObject *self, PyObject *ignored);

#endif
