/*
 * Mounts: those of the server's mount namespace, as /proc/self/mountinfo has them (proc_pid_mountinfo(5)).
 *
 * No filesystem is asked: what its server would have to answer, the kernel knows by itself. The list is read again
 * when the kernel says that it has changed (poll(2), POLLPRI).
 */
#include "mirror.h"

#include <poll.h>
#include <stdio.h>

int mounts_init(struct mirror *mirror) {
    mirror->mounts.fd = open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC);
    if (mirror->mounts.fd < 0) return -errno;
    int error = pthread_mutex_init(&mirror->mounts.lock, NULL);
    return error ? -error : -pthread_mutex_init(&mirror->mounts.learning, NULL);
}

static void forget_all(struct mounts *mounts) {
    while (mounts->number > 0) {
        free(mounts->all[--mounts->number].root);
        free(mounts->all[mounts->number].point);
    }
}

void mounts_destroy(struct mirror *mirror) {
    if (mirror->mounts.fd >= 0) close(mirror->mounts.fd);
    pthread_mutex_destroy(&mirror->mounts.lock);
    pthread_mutex_destroy(&mirror->mounts.learning);
    forget_all(&mirror->mounts);
    free(mirror->mounts.all);
    free(mirror->mounts.kept); /* the inodes have gone */
}

/* The whole list as text, to be freed; NULL without memory. */
static char *read_list(int fd) {
    size_t size = 0, room = 0;
    char *text = NULL;
    if (lseek(fd, 0, SEEK_SET) < 0) return NULL;
    for (;;) {
        if (room - size < 4096) {
            room = room == 0 ? 1 << 16 : room * 2;
            char *longer = realloc(text, room);
            if (longer == NULL) break;
            text = longer;
        }
        ssize_t got = read(fd, text + size, room - size - 1);
        if (got < 0) break;
        if (got == 0) {
            text[size] = 0;
            return text;
        }
        size += (size_t)got;
    }
    free(text);
    return NULL;
}

static uint8_t limits_in(const char *options) {
    static const struct {
        const char *word;
        uint8_t limit;
    } known[] = {{"ro", READ_ONLY}, {"nosuid", NO_SUID}, {"nodev", NO_DEVICES}, {"noexec", NO_EXECUTION}};
    uint8_t limits = 0;
    for (const char *at = options, *end; *at != 0; at = *end == 0 ? end : end + 1) {
        end = strchrnul(at, ',');
        for (unsigned i = 0; i < sizeof known / sizeof *known; i++)
            if (strlen(known[i].word) == (size_t)(end - at) && strncmp(at, known[i].word, (size_t)(end - at)) == 0)
                limits |= known[i].limit;
    }
    return limits;
}

/* A copy in which \040 is a space again, and so on. */
static char *unescaped(const char *text) {
    char *copy = strdup(text), *to = copy;
    for (const char *at = copy; at != NULL && *at != 0;) {
        bool escape = at[0] == '\\' && at[1] >= '0' && at[1] <= '3' && at[2] != 0 && at[3] != 0;
        *to++ = escape ? (char)((at[1] - '0') << 6 | (at[2] - '0') << 3 | (at[3] - '0')) : *at;
        at += escape ? 4 : 1;
    }
    if (copy != NULL) *to = 0;
    return copy;
}

static bool is_distant(const char *type) {
    static const char *const known[] = {"fuse", "nfs", "cifs", "smb3", "ceph", "9p", "afs", "autofs"};
    for (unsigned i = 0; i < sizeof known / sizeof *known; i++)
        if (strncmp(type, known[i], strlen(known[i])) == 0) return true;
    return false;
}

static bool is_local(const char *type) {
    static const char *const known[] = {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs", "ramfs", "vfat", "overlay"};
    for (unsigned i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(type, known[i]) == 0) return true;
    return false;
}

/* 36 35 98:0 /root /mountpoint rw,nosuid shared:1 - ext4 /dev/root rw */
static bool parse(char *line, struct known_mount *mount) {
    unsigned major, minor;
    char *rest = line, *field[6];
    for (unsigned i = 0; i < 6; i++)
        if ((field[i] = strsep(&rest, " ")) == NULL) return false;
    char *type = rest == NULL ? NULL : strstr(rest, "- ");
    if (type == NULL || sscanf(field[2], "%u:%u", &major, &minor) != 2) return false;
    type += 2;
    strsep(&type, " ");
    const char *name = strstr(rest, "- ") + 2;
    strsep(&type, " ");
    mount->root = unescaped(field[3]);
    mount->point = unescaped(field[4]);
    mount->distant = is_distant(name);
    mount->local = is_local(name);
    mount->id = atoi(field[0]);
    mount->dev = makedev(major, minor);
    mount->limits = limits_in(field[5]) | (type == NULL ? 0 : limits_in(type) & READ_ONLY);
    if (strncmp(name, "fuse", 4) == 0) mount->limits |= SERVED;
    if (mount->root != NULL && mount->point != NULL) return true;
    free(mount->root);
    free(mount->point);
    return false;
}

static void read_again(struct mounts *mounts) {
    char *text = read_list(mounts->fd), *rest = text, *line;
    if (text == NULL) return;
    forget_all(mounts);
    mounts->readings++;
    while ((line = strsep(&rest, "\n")) != NULL) {
        struct known_mount mount;
        if (!parse(line, &mount)) continue;
        if ((mounts->number & (mounts->number - 1)) == 0) { /* full at each power of two */
            struct known_mount *more =
                realloc(mounts->all, (mounts->number == 0 ? 1 : mounts->number * 2) * sizeof *more);
            if (more == NULL) {
                free(mount.root);
                free(mount.point);
                break;
            }
            mounts->all = more;
        }
        mounts->all[mounts->number++] = mount;
    }
    free(text);
}

struct mounts *mounts_lock(struct mirror *mirror) {
    struct mounts *mounts = &mirror->mounts;
    pthread_mutex_lock(&mounts->lock);
    struct pollfd changed = {.fd = mounts->fd, .events = POLLPRI};
    if (poll(&changed, 1, 0) > 0 || mounts->readings == 0) read_again(mounts);
    return mounts;
}

/* The id in mountinfo of the mount that a descriptor is on: proc_pid_fdinfo(5). */
int mounts_id(const struct mirror *mirror, int fd) {
    char path[64], text[512];
    snprintf(path, sizeof path, "self/fdinfo/%d", fd);
    int info = openat(mirror->proc, path, O_RDONLY | O_CLOEXEC);
    if (info < 0) return -1;
    ssize_t size = read(info, text, sizeof text - 1);
    close(info);
    text[size < 0 ? 0 : size] = 0;
    const char *line = strstr(text, "mnt_id:");
    return line == NULL ? -1 : atoi(line + 7);
}

uint8_t mounts_limits(struct mirror *mirror, int fd) {
    int id = mounts_id(mirror, fd);
    uint8_t limits = 0;
    struct mounts *mounts = mounts_lock(mirror);
    for (size_t i = 0; i < mounts->number; i++)
        if (mounts->all[i].id == id) limits = mounts->all[i].limits;
    pthread_mutex_unlock(&mounts->lock);
    return limits;
}

enum filesystem mounts_filesystem(struct mirror *mirror, int fd) {
    int id = mounts_id(mirror, fd);
    enum filesystem filesystem = OTHER_FILESYSTEM;
    struct mounts *mounts = mounts_lock(mirror);
    for (size_t i = 0; i < mounts->number; i++)
        if (mounts->all[i].id == id)
            filesystem = mounts->all[i].limits & SERVED ? OF_A_SERVER : mounts->all[i].local ? LOCAL : OTHER_FILESYSTEM;
    pthread_mutex_unlock(&mounts->lock);
    return filesystem;
}
