/*
 * Nested: what of the tree lies on another device or mount than its root, and how it is looked at.
 *
 * The tree may span several filesystems, and bind mounts of its own directories. Inode numbers of two devices are told
 * apart by the number of the device in the bits that they leave free. A mount may forbid what the mount of exclfs
 * allows; what it forbids is remembered with every inode that is reached by it (its limits).
 *
 * The one thing that must never be entered is the mount that is served: a worker would wait for a worker. So everything
 * is looked at first without asking its filesystem (AT_STATX_DONT_SYNC), which is all there is to do on a local one.
 * What is on our own mount is a loop: ELOOP. A loop may also lead through another server: our tree has its mount, and
 * its tree has ours. Whoever serves an exclfs server therefore enters no FUSE mount for it, and while all workers may
 * be waiting for other servers there is one more. So what another server asks us is always answered.
 */
#include "mirror.h"

#include <stdio.h>
#include <sys/prctl.h>

/* ---- devices -------------------------------------------------------------------------------------------- */

enum { DEVICES = 1 << 15 };

struct nested {
    atomic_ulong devices[DEVICES]; /* a hash table that only grows; the place of a device is its number */
};

int nested_init(struct mirror *mirror) {
    mirror->nested = calloc(1, sizeof *mirror->nested); /* of which no page is there before it is used */
    return mirror->nested == NULL ? -ENOMEM : 0;
}

void nested_destroy(struct mirror *mirror) { free(mirror->nested); }

/* From 1 on; no two devices have the same, until there have been 32,767. After a restart it is most often the same. */
static uint64_t number_of(struct nested *nested, dev_t dev) {
    uint64_t first = mix(dev);
    for (unsigned step = 0; step < DEVICES; step++) {
        unsigned number = (unsigned)(first + step) % DEVICES;
        if (number == 0) continue;
        unsigned long there = atomic_load(&nested->devices[number]);
        if (there == 0 && atomic_compare_exchange_strong(&nested->devices[number], &there, dev)) return number;
        if (there == dev) return number;
    }
    return first % DEVICES | 1;
}

/* st_ino as programs see it: the backing number on the root's device; elsewhere with the number of the device in the
 * high bits, which no filesystem of a size that exists uses. */
uint64_t shown_ino(const struct mirror *mirror, dev_t dev, ino_t ino) {
    return dev == mirror->home.dev ? ino : ino ^ number_of(mirror->nested, dev) << 48;
}

/* ---- looking -------------------------------------------------------------------------------------------- */

/* In the block that each thread has from its beginning: elsewhere the loader allocates it when it is first touched, which
 * every access has to find out, and which ThreadSanitizer takes for a race with a thread that has ended. */
#define OF_THREAD static _Thread_local __attribute__((tls_model("initial-exec")))

/* For whom this thread works at the moment: a thread's id, 0 for nobody; and whether that one serves an exclfs mount. */
OF_THREAD struct {
    uint32_t pid;
    enum { UNKNOWN, A_PROGRAM, A_SERVER } is;
    bool works; /* this thread is a worker, */
    bool away;  /* and may be waiting for another server */
} requester;

static const char OUR_NAME[] = "exclfs-mirror";

void nested_begin(void) {
    prctl(PR_SET_NAME, OUR_NAME);
    requester.works = true;
}

void nested_serve(struct mirror *mirror, uint32_t pid) {
    requester.pid = pid;
    requester.is = pid == 0 ? A_PROGRAM : UNKNOWN;
    if (requester.away) atomic_fetch_sub(&mirror->away, 1);
    requester.away = false;
}

static bool for_a_server(const struct mirror *mirror) {
    if (requester.is == UNKNOWN) {
        char path[32], name[sizeof OUR_NAME + 1] = "";
        snprintf(path, sizeof path, "%u/comm", requester.pid);
        int fd = openat(mirror->proc, path, O_RDONLY | O_CLOEXEC);
        ssize_t size = fd < 0 ? 0 : read(fd, name, sizeof name - 1);
        if (fd >= 0) close(fd);
        bool ours = size == sizeof OUR_NAME && memcmp(name, OUR_NAME, sizeof OUR_NAME - 1) == 0;
        requester.is = ours ? A_SERVER : A_PROGRAM;
    }
    return requester.is == A_SERVER;
}

/* Before this worker waits for another server: somebody has to be left who answers if that server asks us. */
static void go_away(struct mirror *mirror) {
    if (!requester.works || requester.away) return;
    requester.away = true;
    atomic_fetch_add(&mirror->away, 1);
    leader_relieve(mirror);
    channel_replace(mirror);
}

bool nested_is_loop(struct mirror *mirror, const struct inode *inode) {
    if (!(atomic_load_explicit(&inode->limits, memory_order_relaxed) & SERVED)) return false;
    if (for_a_server(mirror)) return true;
    go_away(mirror);
    return false;
}

/* What is known of mounts that this thread has met: their filesystems do not change. */
enum { REMEMBERED = 8 };
OF_THREAD struct {
    uint64_t mount;
    enum filesystem filesystem;
} remembered[REMEMBERED];

static bool remembers(const struct statx *attributes, enum filesystem *filesystem) {
    unsigned at = mount_of(attributes) % REMEMBERED;
    *filesystem = remembered[at].filesystem;
    /* Other ids than these are given again. */
    return attributes->stx_mask & STATX_MNT_ID_UNIQUE && remembered[at].mount == mount_of(attributes);
}

static enum filesystem filesystem_of(struct mirror *mirror, int fd, const struct statx *attributes) {
    enum filesystem filesystem;
    if (remembers(attributes, &filesystem)) return filesystem;
    filesystem = mounts_filesystem(mirror, fd);
    unsigned at = mount_of(attributes) % REMEMBERED;
    remembered[at].mount = mount_of(attributes);
    remembered[at].filesystem = filesystem;
    return filesystem;
}

/* Attributes that a filesystem far away, or in another process, may know better. */
static int stat_there(struct mirror *mirror, int fd, const char *name, int flags, struct statx *attributes) {
    /* By a descriptor: what the name leads to may become our own mount at any moment. */
    int own = *name == 0 ? -1 : openat(fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (*name != 0 && own < 0) return -errno;
    int at = own < 0 ? fd : own;
    flags |= AT_EMPTY_PATH;
    int error = statx(at, "", flags | AT_STATX_DONT_SYNC, STATX_WANTED, attributes) ? -errno : 0;
    if (!error && key_of(attributes).dev == mirror->settings.mounted) error = -ELOOP;
    enum filesystem filesystem = error ? LOCAL : filesystem_of(mirror, at, attributes);
    bool nested = mount_of(attributes) != mirror->home.mount;
    if (filesystem == OF_A_SERVER && nested && for_a_server(mirror)) error = -ELOOP;
    if (!error && filesystem == OF_A_SERVER && nested) go_away(mirror);
    if (!error && filesystem != LOCAL && statx(at, "", flags, STATX_WANTED, attributes)) error = -errno;
    if (own >= 0) close(own);
    return error;
}

int stat_at(struct mirror *mirror, int fd, const char *name, struct statx *attributes) {
    enum filesystem filesystem;
    int flags = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | (*name == 0 ? AT_EMPTY_PATH : 0);
    if (statx(fd, name, flags | AT_STATX_DONT_SYNC, STATX_WANTED, attributes)) return -errno;
    dev_t dev = key_of(attributes).dev;
    if (dev == mirror->settings.mounted) return -ELOOP;
    bool home = dev == mirror->home.dev || (mount_of(attributes) != 0 && mount_of(attributes) == mirror->home.mount);
    if (home && mirror->home.local) return 0;
    if (remembers(attributes, &filesystem) && filesystem == LOCAL) return 0;
    return stat_there(mirror, fd, name, flags, attributes);
}

/* ---- limits --------------------------------------------------------------------------------------------- */

uint8_t nested_limits(struct mirror *mirror, struct inode *parent, int fd, const char *name,
                      const struct statx *attributes) {
    uint64_t mount = mount_of(attributes);
    if (mount == mirror->home.mount) return 0;
    if (parent != NULL && atomic_load_explicit(&parent->mount, memory_order_relaxed) == mount)
        return atomic_load_explicit(&parent->limits, memory_order_relaxed);
    int own = *name == 0 ? fd : openat(fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    uint8_t limits = own < 0 ? 0 : mounts_limits(mirror, own);
    if (*name != 0 && own >= 0) close(own);
    return limits;
}
