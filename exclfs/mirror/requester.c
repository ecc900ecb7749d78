/*
 * The requester: doing something as the user who asked for it.
 *
 * The server's privileges never serve a requester. Whatever may need a block on the disk runs with the requester's
 * fsuid and fsgid and without CAP_SYS_RESOURCE (else reserved blocks and quotas would be bypassed); what creates,
 * with the requester's umask too, so that a new file never belongs to anybody else. What writes runs without
 * CAP_FSETID as well (else setuid bits would survive a stranger's write). Root keeps both, as it would there.
 *
 * The calls are raw: ids and capabilities belong to the thread, and glibc's wrappers would change every thread.
 */
#include "mirror.h"

#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

enum { RESERVE = 1u << CAP_SYS_RESOURCE, SETID = 1u << CAP_FSETID, ADMIN = 1u << CAP_SYS_ADMIN }; /* the first word */

static int change_capabilities(const struct worker *worker, unsigned without) {
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
    struct __user_cap_data_struct sets[2] = {
        {.permitted = worker->permitted[0], .effective = worker->permitted[0] & ~without},
        {.permitted = worker->permitted[1], .effective = worker->permitted[1]},
    };
    return syscall(SYS_capset, &header, sets) ? errno : 0;
}

static int learn_capabilities(struct worker *worker) {
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
    struct __user_cap_data_struct sets[2];
    if (syscall(SYS_capget, &header, sets)) return -errno;
    worker->permitted[0] = sets[0].permitted;
    worker->permitted[1] = sets[1].permitted;
    return 0;
}

int requester_begin(struct worker *worker) {
    worker->own_uid = worker->fsuid = geteuid();
    worker->own_gid = worker->fsgid = getegid();
    worker->umask = 0;
    /* A working directory and a umask of this thread alone. */
    if (unshare(CLONE_FS)) return -errno;
    umask(0);
    nested_begin();
    if (fchdir(worker->mirror->proc_self_fd)) return -errno;
    if (!worker->mirror->settings.privileged) return 0;
    /* Without this the kernel would drop the filesystem capabilities whenever fsuid leaves 0, and the thread could
     * no longer enter a directory that only the server may enter (default_permissions has checked the requester). */
    if (prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)) return -errno;
    return learn_capabilities(worker);
}

/* Both calls answer with the previous id and tell of no error: asking again is the only proof. */
static int set_fsuid(uid_t uid) {
    syscall(SYS_setfsuid, uid);
    return (uid_t)syscall(SYS_setfsuid, (uid_t)-1) == uid ? 0 : EPERM;
}

static int set_fsgid(gid_t gid) {
    syscall(SYS_setfsgid, gid);
    return (gid_t)syscall(SYS_setfsgid, (gid_t)-1) == gid ? 0 : EPERM;
}

static int take_ids(struct worker *worker, uid_t uid, gid_t gid) {
    if (uid == (uid_t)-1 || gid == (gid_t)-1) return EOVERFLOW; /* not mapped in the mount's user namespace */
    if (gid != worker->fsgid) {
        if (set_fsgid(gid)) {
            become_server(worker);
            return EPERM;
        }
        worker->fsgid = gid;
    }
    if (uid != worker->fsuid) {
        if (set_fsuid(uid)) {
            become_server(worker);
            return EPERM;
        }
        worker->fsuid = uid;
    }
    return 0;
}

static int give_up(struct worker *worker, unsigned capabilities) {
    if (!worker->mirror->settings.privileged || (worker->given_up & capabilities) == capabilities) return 0;
    worker->given_up |= capabilities;
    int error = change_capabilities(worker, worker->given_up);
    if (error) become_server(worker);
    return error;
}

int become(struct worker *worker, const struct fuse_in_header *header) {
    int error = take_ids(worker, header->uid, header->gid);
    return error || header->uid == 0 ? error : give_up(worker, RESERVE);
}

/* For what an unprivileged server may do for others, because the kernel has checked that they may. */
int become_if_able(struct worker *worker, const struct fuse_in_header *header) {
    return worker->mirror->settings.privileged ? become(worker, header) : 0;
}

/* The umask stays as it is afterwards: nothing looks at it but what comes through here. */
int become_creator(struct worker *worker, const struct fuse_in_header *header, mode_t mask) {
    int error = become(worker, header);
    mask &= 0777;
    if (!error && mask != worker->umask) {
        umask(mask);
        worker->umask = mask;
    }
    return error;
}

/* A test build lets setuid bits survive, to show that the tests see it (tests/conformance). */
#ifdef EXCLFS_TEST_KEEPS_SETUID
enum { GIVEN_UP_TO_WRITE = 0 };
#else
enum { GIVEN_UP_TO_WRITE = SETID };
#endif

int become_writer(struct worker *worker, const struct fuse_in_header *header, bool strip) {
    int error = become(worker, header);
    if (error) return error;
    /* Root's own writes keep setuid bits, as they would on the backing filesystem. */
    return strip || header->uid != 0 ? give_up(worker, GIVEN_UP_TO_WRITE) : 0;
}

/* For the names of xattrs: whether those of root are shown to others is for the backing filesystem to say. */
int become_lister(struct worker *worker, const struct fuse_in_header *header) {
    return header->uid == 0 ? 0 : give_up(worker, ADMIN);
}

/* Somebody without any claim. Not 65534: filesystems are made with a reserve for "nobody" (resuid=65534). */
int become_nobody(struct worker *worker, bool strip) {
    if (!worker->mirror->settings.privileged) return 0;
    int error = take_ids(worker, (uid_t)-2, (gid_t)-2);
    return error ? error : give_up(worker, strip ? RESERVE | SETID : RESERVE);
}

void become_server(struct worker *worker) {
    if (worker->given_up) {
        if (change_capabilities(worker, 0)) abort(); /* raising what is permitted cannot fail */
        worker->given_up = 0;
    }
    if (worker->fsuid != worker->own_uid) {
        if (set_fsuid(worker->own_uid)) abort(); /* going on as a stranger would be worse */
        worker->fsuid = worker->own_uid;
    }
    if (worker->fsgid != worker->own_gid) {
        if (set_fsgid(worker->own_gid)) abort();
        worker->fsgid = worker->own_gid;
    }
}

/* ---- a thread that is somebody else for good ------------------------------------------------------------ */

struct errand {
    uid_t uid;
    gid_t gid;
    const gid_t *groups;
    size_t count;
    int (*work)(void *);
    void *argument;
    int result;
};

static void *errand_run(void *argument) {
    struct errand *errand = argument;
    bool other = errand->uid != geteuid() || errand->gid != getegid();
    if (geteuid() == 0 && (syscall(SYS_setgroups, errand->count, errand->groups) ||
                           syscall(SYS_setresgid, errand->gid, errand->gid, errand->gid) ||
                           syscall(SYS_setresuid, errand->uid, errand->uid, errand->uid)))
        errand->result = -errno;
    else if (geteuid() != errand->uid || (other && getegid() != errand->gid))
        errand->result = -EPERM;
    else
        errand->result = errand->work(errand->argument);
    return NULL;
}

/* Runs work() in a thread of its own that has become this user, without any privilege; gives its result. */
int run_as(uid_t uid, gid_t gid, const gid_t *groups, size_t count, int (*work)(void *), void *argument) {
    struct errand errand = {uid, gid, groups, count, work, argument, -EPERM};
    pthread_t thread;
    int error = pthread_create(&thread, NULL, errand_run, &errand);
    if (error) return -error;
    error = pthread_join(thread, NULL);
    return error ? -error : errand.result;
}
