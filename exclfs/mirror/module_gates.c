/*
 * The Python face of gates.c. None of these waits for anything but the gates' lock, which nobody holds for long.
 */
#include "module.h"

PyObject *Mirror_watch(MirrorObject *self, PyObject *arguments) {
    unsigned long long before, after, told;
    struct mirror *mirror = running(self);
    if (mirror == NULL || !PyArg_ParseTuple(arguments, "KKK", &before, &after, &told)) return NULL;
    gates_watch(mirror, before, after, told);
    Py_RETURN_NONE;
}

PyObject *Mirror_let_go(MirrorObject *self, PyObject *arguments) {
    unsigned long long number;
    int answer;
    struct mirror *mirror = running(self);
    if (mirror == NULL || !PyArg_ParseTuple(arguments, "Ki", &number, &answer)) return NULL;
    if (answer < 0 || answer >= 512) return os_error(EINVAL); /* the kernel takes no other */
    int error = gates_let_go(mirror, number, answer);
    if (error) return os_error(error);
    Py_RETURN_NONE;
}

PyObject *Mirror_open_gates(MirrorObject *self, PyObject *ignored) {
    (void)ignored;
    struct mirror *mirror = running(self);
    if (mirror == NULL) return NULL;
    gates_open(mirror);
    Py_RETURN_NONE;
}

/* ([(event, number, opcode, pid, uid, error, path, second path)], how many were dropped before them) */
PyObject *Mirror_sightings(MirrorObject *self, PyObject *ignored) {
    (void)ignored;
    struct mirror *mirror = running(self);
    PyObject *all = mirror == NULL ? NULL : PyList_New(0);
    if (all == NULL) return NULL;
    unsigned long untold;
    struct gate_news *news = gates_news(mirror, &untold);
    while (news != NULL) {
        struct gate_news *next = news->next;
        PyObject *one = all == NULL ? NULL
                                    : Py_BuildValue("(iKIIIiyy)", (int)news->event, (unsigned long long)news->number,
                                                    news->opcode, news->pid, news->uid, news->error, news->paths,
                                                    news->second);
        if (one == NULL || PyList_Append(all, one)) Py_CLEAR(all);
        Py_XDECREF(one);
        free(news);
        news = next;
    }
    return all == NULL ? NULL : Py_BuildValue("(Nk)", all, untold);
}

PyObject *Mirror_sighted(MirrorObject *self, PyObject *ignored) {
    (void)ignored;
    struct mirror *mirror = running(self);
    return mirror == NULL ? NULL : PyLong_FromLong(mirror->gates.news);
}
