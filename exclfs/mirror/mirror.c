/*
 * The mirror of one tree: what it is made of, and what the filesystem behind it can.
 */
#include "mirror.h"

#include <linux/magic.h>
#include <sys/eventfd.h>
#include <sys/vfs.h>

/* Also what was made by half: in glibc a lock of zeros is one that can be destroyed. */
void mirror_free(struct mirror *mirror) {
    inodes_destroy(mirror);
    questions_destroy(mirror);
    gates_destroy(mirror);
    mounts_destroy(mirror);
    nested_destroy(mirror);
    backing_destroy(mirror);
    writeback_destroy(mirror);
    tree_destroy(mirror);
    locks_destroy(mirror);
    leader_destroy(mirror);
    pthread_mutex_destroy(&mirror->replacing);
    sem_destroy(&mirror->begun);
    if (mirror->finished >= 0) close(mirror->finished);
    if (mirror->proc_self_fd >= 0) close(mirror->proc_self_fd);
    if (mirror->proc >= 0) close(mirror->proc);
    free(mirror);
}

/* Whether file handles of the root's device can be opened again; found out by opening the root's own. */
static bool handles_work(struct mirror *mirror) {
    union {
        struct file_handle handle;
        char space[sizeof(struct file_handle) + MAX_HANDLE_SZ];
    } root;
    root.handle.handle_bytes = MAX_HANDLE_SZ;
    int mount;
    if (name_to_handle_at(mirror->source, "", &root.handle, &mount, AT_EMPTY_PATH)) return false;
    int fd = open_by_handle_at(mirror->source, &root.handle, O_PATH | O_CLOEXEC);
    if (fd < 0) return false;
    close(fd);
    return true;
}

/* On overlayfs a file that is copied up to be written has a new birth time, and is the same file. */
static bool births_count(struct mirror *mirror) {
    struct statfs filesystem;
    return fstatfs(mirror->source, &filesystem) == 0 && filesystem.f_type != OVERLAYFS_SUPER_MAGIC;
}

/* Whether it is one of the filesystems that ask nobody, and have no flush operation. */
static bool is_local(int fd) {
    static const long known[] = {EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC, TMPFS_MAGIC, F2FS_SUPER_MAGIC};
    struct statfs status;
    if (fstatfs(fd, &status)) return false;
    for (unsigned i = 0; i < sizeof known / sizeof *known; i++)
        if (status.f_type == known[i]) return true;
    return false;
}

static int mirror_root(struct mirror *mirror) {
    struct statx attributes;
    if (statx(mirror->source, "", AT_EMPTY_PATH, STATX_WANTED, &attributes)) return -errno;
    mirror->home.dev = key_of(&attributes).dev;
    mirror->home.mount = mount_of(&attributes);
    mirror->births = births_count(mirror);
    atomic_store(&mirror->handles, mirror->settings.privileged && handles_work(mirror));
    mirror->flushes = !is_local(mirror->source);
    mirror->home.local = !mirror->flushes || !mirror->births; /* an overlay asks its layers */
    mirror->root = inode_seen(mirror, NULL, "", mirror->source, &attributes, 1);
    if (mirror->root == NULL) return -ENOMEM;
    int kept = fcntl(mirror->source, F_DUPFD_CLOEXEC, 0);
    return kept < 0 ? -errno : backing_adopt(mirror, mirror->root, kept);
}

int mirror_new(struct mirror **made, int source, int device, int channel, struct settings settings) {
    struct mirror *mirror = calloc(1, sizeof *mirror);
    if (mirror == NULL) return -ENOMEM;
    mirror->settings = settings;
    mirror->source = source;
    mirror->device = device;
    atomic_store(&mirror->passthrough, settings.passthrough);
    mirror->questions.wake = mirror->gates.news = -1;
    mirror->mounts.fd = -1;
    mirror->finished = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    mirror->proc_self_fd = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    mirror->proc = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool opened = mirror->finished >= 0 && mirror->proc_self_fd >= 0 && mirror->proc >= 0;
    int error = !opened || sem_init(&mirror->begun, 0, 0) ? -errno : leader_init(mirror);
    if (!error) error = -pthread_mutex_init(&mirror->replacing, NULL);
    if (!error) error = locks_init(mirror);
    if (!error) error = tree_init(mirror);
    if (!error) error = writeback_init(mirror);
    if (!error) error = backing_init(mirror);
    if (!error) error = nested_init(mirror);
    if (!error) error = mounts_init(mirror);
    if (!error) error = inodes_init(mirror);
    if (!error) error = questions_init(mirror, channel);
    if (!error) error = gates_init(mirror);
    if (!error) error = mirror_root(mirror);
    if (error) mirror_free(mirror);
    else *made = mirror;
    return error;
}
